"""A hub on this machine: whole, with repositories of the real layout, or one that fails as asked.

It speaks the part of the hub's protocol that downloads use: what a repository holds at a commit,
names that moved, files with their tags, large files that lie elsewhere, gates, and xet's headers.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from loraudit.data import hub as ours

COMMIT = "1" * 40
TOKEN = "hf_of_a_user_with_access"
LARGE = (".safetensors", ".parquet", ".bin", ".h5", ".msgpack", ".ot", ".mlmodel")
"""Files that the hub keeps elsewhere: their address answers with the place and the SHA-256."""


@dataclass
class Repository:
    """A folder's files as one commit of a repository. `gated`: only `TOKEN` opens it."""

    folder: Path
    commit: str = COMMIT
    gated: bool = False

    def files(self) -> list[Path]:
        return [path for path in sorted(self.folder.rglob("*")) if path.is_file()]

    def entry(self, path: Path) -> dict:
        """Say what the hub's tree says of a path."""
        name = str(path.relative_to(self.folder))
        if path.is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": "2" * 40}
        content = path.read_bytes()
        found = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
        if path.suffix in LARGE:
            large = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
            found |= {"lfs": large, "xetHash": sha256(content)}
        return found

    def info(self, name: str) -> dict:
        """Say what the hub's API says of the whole repository, sizes included."""
        siblings = []
        for entry in map(self.entry, self.files()):
            file = {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
            if large := entry.get("lfs"):
                file["lfs"] = {**large, "sha256": large["oid"]}
            siblings.append(file)
        gated = "manual" if self.gated else False
        return {"id": name, "sha": self.commit, "siblings": siblings, "gated": gated}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves the server's repositories, as `server.mode` says."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server = self.server
        path, _, query = unquote(self.path).partition("?")
        server.seen[f"{self.command} {path}"] += 1
        is_file = "/resolve/" in path or path.startswith("/elsewhere/")
        if server.mode == "hangs" or (server.mode == "file hangs" and is_file and body):
            server.closing.wait(300)
        elif server.mode == "500" or (server.mode == "file 500" and is_file and body):
            self.reply(500, b"broken", body)
        elif path.startswith("/elsewhere/"):
            self.content(path, body)
        elif found := self.repository(path.removeprefix("/api/")):
            self.of_repository(found, path, query, body)

    def repository(self, path: str) -> Repository | None:
        """Return the repository that a path is about; if it is not given, answer why."""
        kind = "datasets" if path.lstrip("/").startswith("datasets/") else "models"
        parts = path.lstrip("/").removeprefix("datasets/").removeprefix("models/").split("/")
        for old, new in self.server.renamed.items():
            if "/".join([*parts, ""]).startswith(f"{old}/"):
                place = unquote(self.path).replace(old, new, 1)
                self.reply(307, b"", False, fields={"Location": place})
                return None
        name = "/".join(parts[:2])
        found = self.server.repositories.get(f"{kind}/{name}")
        sent = self.headers.get("Authorization")
        if found is None:
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif sent not in (None, f"Bearer {TOKEN}"):
            self.refuse(403 if found.gated else 401, "GatedRepo" if found.gated else None,
                        "Invalid credentials in Authorization header")  # fmt: skip
        elif found.gated and sent is None:
            self.refuse(401, "GatedRepo", f"Access to {kind[:-1]} {name} is restricted.")
        elif found.commit not in self.path and "/xet-" not in self.path:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        else:
            return found
        return None

    def of_repository(self, found: Repository, path: str, query: str, body: bool) -> None:
        if "/resolve/" in path:
            self.file(found, path.split(f"/resolve/{found.commit}/")[1], body)
        elif "/tree/" in path:
            inside = found.folder / path.partition(f"/tree/{found.commit}")[2].strip("/")
            all_of_it = "recursive=true" in query.lower()
            paths = sorted(inside.rglob("*") if all_of_it else inside.iterdir())
            self.json([found.entry(each) for each in paths], body)
        elif "/xet-read-token/" in path:
            fields = {"X-Xet-Cas-Url": self.server.xet, "X-Xet-Access-Token": "token"}
            self.reply(200, b"{}", body, fields={**fields, "X-Xet-Token-Expiration": "9999999999"})
        else:
            name = "/".join(path.removeprefix("/api/").split("/")[1:3])
            self.json(found.info(name), body)

    def file(self, found: Repository, name: str, body: bool) -> None:
        """Send a small file, or the place of a large one."""
        path = found.folder / name
        if not path.is_file():
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        fields = {"X-Repo-Commit": found.commit}
        content = path.read_bytes()
        if path.suffix not in LARGE:
            self.reply(200, content, body, fields={**fields, "ETag": f'"{git_id(content)}"'})
            return
        digest = sha256(content)
        self.server.large[digest] = content
        renewal = f"{self.server.url}/api/models/any/name/xet-read-token/{found.commit}"
        fields |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        fields |= {"X-Xet-Hash": digest, "Link": f'<{renewal}>; rel="xet-auth"'}
        # The place has another host's name, as the real one's has.
        place = self.server.url.replace("127.0.0.1", "localhost")
        fields["Location"] = f"{place}/elsewhere/{digest}"
        self.reply(302, b"", body, fields=fields)

    def content(self, path: str, body: bool) -> None:
        """Send a large file; half of it, and the line is cut, where the mode says so."""
        content = self.server.large[path.rpartition("/")[2]]
        half = self.server.mode == "half"
        fields = {"Content-Length": str(len(content))}
        self.reply(200, content[: len(content) // 2] if half else content, body, fields=fields)
        if half:
            self.close_connection = True

    def json(self, content: object, body: bool) -> None:
        text = json.dumps(content).encode()
        self.reply(200, text, body, fields={"Content-Type": "application/json"})

    def refuse(self, code: int, reason: str | None, message: str) -> None:
        fields = {"X-Error-Message": message, **({"X-Error-Code": reason} if reason else {})}
        self.reply(code, b"", False, fields=fields)

    def reply(self, code: int, content: bytes, body: bool, fields: dict | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(content)), **(fields or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        """Print nothing."""


@contextmanager
def fake_hub(repositories: dict[str, Repository], mode: str = "sound", renamed=None):
    """Give a server whose `url` is for HF_ENDPOINT and whose `seen` counts what was asked for.

    The repositories are called models/owner/name or datasets/owner/name; `renamed` gives old names
    their new ones. Xet's storage, whose address large files name, is a closed port.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.repositories, server.mode, server.seen = repositories, mode, Counter()
    server.renamed, server.large, server.xet = renamed or {}, {}, "http://127.0.0.1:9"
    server.closing, server.url = threading.Event(), f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


def point_at(monkeypatch, url: str, cache: Path, **settings: object) -> None:
    """Let the hub's client, in this process, ask `url`, keep files in `cache` and wait for nothing.

    Further settings are the client's constants: HF_HUB_OFFLINE=True, for example. It reads the
    environment once, when it is imported, so the constants are what can be set here.
    """
    place = url + "/{repo_id}/resolve/{revision}/{filename}"
    told = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": place, "HF_HUB_CACHE": str(cache)}
    told |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_DOWNLOAD_TIMEOUT": 0.3}
    told |= {"HF_TOKEN_PATH": str(cache / "token"), **settings}
    for name, value in told.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ours, "PATIENCE", 0.3)
    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", hurried)
