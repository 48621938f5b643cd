"""Put the context of RO-Crate into the HTTP cache of rocrate-validator: no network is needed then.

Run it with the validator's own Python: `python crate_context.py CACHE FILE`. FILE is the context
that the package rocrate has. It is that of a later version than a bundle's, with all of its terms.
"""

import io
import sys
from pathlib import Path

import requests
from requests_cache import CachedSession
from urllib3 import HTTPResponse

URL = "https://w3id.org/ro/crate/1.1/context"

cache, file = sys.argv[1:]
content = Path(file).read_bytes()
session = CachedSession(cache_name=cache, backend="sqlite", expire_after=-1)
response = requests.Response()
response.url, response.status_code, response._content = URL, 200, content
response.headers["Content-Type"] = "application/ld+json"
response.request = session.prepare_request(requests.Request("GET", URL))
facts = {"headers": dict(response.headers), "status": 200, "request_url": URL}
response.raw = HTTPResponse(io.BytesIO(content), preload_content=False, **facts)
session.cache.save_response(response)
