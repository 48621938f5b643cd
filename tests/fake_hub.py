"""A hub on this machine that misbehaves as asked: it hangs, fails, or sends half a file."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

COMMIT = "1" * 40


class Handler(BaseHTTPRequestHandler):
    """Serves one repository, the files of `server.folder`, as `server.mode` says."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def do_POST(self):
        """Say what is at some paths."""
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        names = parse_qs(asked).get("paths") or json.loads(asked)["paths"]
        paths = [self.server.folder / name for name in names]
        found = [self.entry(path) for path in paths if path.exists()]
        self.reply(200, json.dumps(found).encode(), True, "application/json")

    def answer(self, body: bool) -> None:
        server = self.server
        server.seen[f"{self.command} {self.path.split('?')[0]}"] += 1
        is_file = "/resolve/" in self.path
        if server.mode == "hangs" or (server.mode == "file hangs" and is_file and body):
            server.closing.wait(300)
        elif server.mode == "500" or (server.mode == "file 500" and is_file and body):
            self.reply(500, b"broken", body)
        elif is_file:
            self.file(body)
        else:
            self.reply(200, json.dumps(self.listing()).encode(), body, "application/json")

    def listing(self):
        """Say which files there are, in the words of the hub's API."""
        root = self.server.folder
        if "/tree/" in self.path:
            inside = self.path.split("?")[0].partition(f"/tree/{COMMIT}")[2].strip("/")
            found = (root / inside).rglob("*") if "recursive=true" in self.path.lower() else None
            return [self.entry(path) for path in sorted(found or (root / inside).iterdir())]
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        siblings = [{"rfilename": self.entry(path)["path"], "size": 1} for path in files]
        return {"id": "owner/name", "sha": COMMIT, "siblings": siblings}

    def entry(self, path: Path) -> dict:
        kind = "file" if path.is_file() else "directory"
        name = str(path.relative_to(self.server.folder))
        return {"type": kind, "path": name, "size": path.stat().st_size, "oid": "2" * 40}

    def file(self, body: bool) -> None:
        """Send a file; half of it, and the line is cut, where the mode says so."""
        path = self.server.folder / self.path.split(f"/resolve/{COMMIT}/")[1].split("?")[0]
        if not path.is_file():
            self.reply(404, b"", body)
            return
        content = path.read_bytes()
        half = self.server.mode == "half" and path.suffix in (".safetensors", ".parquet")
        self.reply(200, content[: len(content) // 2] if half else content, body, size=len(content))
        if half:
            self.close_connection = True

    def reply(self, code: int, content: bytes, body: bool, kind="text/plain", size=None) -> None:
        self.send_response(code)
        length = str(len(content) if size is None else size)
        fields = {"Content-Type": kind, "Content-Length": length, "X-Repo-Commit": COMMIT}
        for key, value in {**fields, "ETag": f'"{size}"'}.items():
            self.send_header(key, value)
        if code == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        """Print nothing."""


@contextmanager
def fake_hub(folder: Path, mode: str):
    """Give a server whose `url` is for HF_ENDPOINT and whose `seen` counts what was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.folder, server.mode, server.seen = folder, mode, Counter()
    server.closing, server.url = threading.Event(), f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
