"""As much of W&B's GraphQL server as saving a report asks for: it keeps what is sent."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ID = "VmlldzoxMjM="
PROJECT = {"id": "1", "name": "paft", "entityName": "me", "createdAt": "", "isBenchmark": False, "user": None}


@contextmanager
def wandb_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, variables of every report saved so far)"""
    saved: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"] or 0))
            answer = _answer(json.loads(raw), saved) if self.path == "/graphql" else {}
            body = json.dumps({"data": answer}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", saved
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def _answer(asked: dict[str, Any], saved: list[dict[str, Any]]) -> dict[str, Any]:
    if "upsertView" in asked["query"]:
        sent = asked["variables"]
        saved.append(sent)
        view = {"id": ID, "name": sent["name"], "displayName": sent["displayName"], "description": ""}
        view |= {"type": "runs", "spec": sent["spec"], "project": {"name": "paft", "entityName": "me"}}
        return {"upsertView": {"view": view, "inserted": True}}
    if "models(" in asked["query"]:
        page = {"endCursor": None, "hasNextPage": False}
        return {"models": {"edges": [{"node": PROJECT, "cursor": ""}], "pageInfo": page}}
    viewer = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
    return {"viewer": viewer}
