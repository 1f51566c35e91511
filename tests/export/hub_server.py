"""As much of the Hugging Face hub as an upload of small files asks for: it keeps what is sent."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    address: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)

    def answer(self, path: str, raw: bytes) -> dict[str, Any]:
        if path.endswith("/repos/create"):
            self.created.append(json.loads(raw))
            made = self.created[-1]
            return {"url": f"{self.address}/{made['organization']}/{made['name']}"}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(raw)["files"]]
            return {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        if "/commit/" in path:
            lines = [json.loads(line) for line in raw.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            self.files |= {file["path"]: base64.b64decode(file["content"]) for file in sent}
            return {"commitUrl": f"{self.address}/me/model/commit/0", "commitOid": "0" * 40, "success": True}
        return {"warnings": [], "errors": []}  # of the card's front matter


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = (
                self.rfile.read(int(self.headers["Content-Length"]))
                if "Content-Length" in self.headers
                else self.chunks()
            )
            hub.tokens.add(self.headers["Authorization"] or "")
            body = json.dumps(hub.answer(self.path.partition("?")[0], raw)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def chunks(self) -> bytes:
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
