"""A judge on loopback that speaks OpenAI's chat completions, and fails as real ones do."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


def likes_longer(body: Body) -> float:
    """Probability of token m: how much of the text of both answers is the one shown first."""
    first, second = (part.split('"""')[1] for part in body["messages"][-1]["content"].split('"output": ')[1:])
    return (len(first) + 1) / (len(first) + len(second) + 2)


class JudgeServer:
    """`faults` are what the first calls meet, in order: a status, `malformed`, `html` or `dropped`.

    It prefers by log-probabilities, unless `says` has it answer in words.
    """

    def __init__(
        self,
        prefers: Callable[[Body], float] = likes_longer,
        faults: Iterable[int | str] = (),
        *,
        key: str = "",
        logprobs: bool = True,
        says: Callable[[Body], str] | None = None,
    ) -> None:
        self.prefers, self.faults, self.key, self.logprobs = prefers, list(faults), key, logprobs
        self.says = says
        self.calls: list[Body] = []
        self.times: list[float] = []
        self.answered = 0
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    def __enter__(self) -> "JudgeServer":
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                judge.models(self)

            def do_POST(self) -> None:
                judge.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def models(self, handler: BaseHTTPRequestHandler) -> None:
        if self.refuses(handler):
            return
        send(handler, 200, json.dumps({"data": [{"id": "toy"}]}))

    def refuses(self, handler: BaseHTTPRequestHandler) -> bool:
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            said = {"error": {"message": f"Incorrect API key: {handler.headers.get('Authorization')}"}}
            send(handler, 401, json.dumps(said))
            return True
        return False

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        assert handler.path == "/v1/chat/completions"
        if self.refuses(handler):
            return
        with self.lock:
            self.calls.append(body)
            self.times.append(time.monotonic())
            fault = self.faults.pop(0) if self.faults else None
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            self.fail(handler, fault) if fault else send(handler, 200, json.dumps(self.completion(body)))
        finally:
            with self.lock:
                self.under_way -= 1
                self.answered += fault is None

    def completion(self, body: Body) -> Body:
        if self.says:
            message = {"role": "assistant", "content": self.says(body)}
            return {"choices": [{"index": 0, "message": message}], "usage": {}}
        share = min(max(self.prefers(body), 1e-9), 1 - 1e-9)
        tokens = {"m": math.log(share), "M": math.log1p(-share), "The": -20.0}
        top = [
            {"token": token, "logprob": value} for token, value in sorted(tokens.items(), key=lambda t: -t[1])
        ]
        choice: Body = {"index": 0, "finish_reason": "length"}
        choice["message"] = {"role": "assistant", "content": top[0]["token"]}
        if self.logprobs:
            choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
        prompt = sum(len(message["content"]) for message in body["messages"]) // 4
        return {"id": "x", "choices": [choice], "usage": {"prompt_tokens": prompt, "completion_tokens": 1}}

    def fail(self, handler: BaseHTTPRequestHandler, fault: int | str) -> None:
        match fault:
            case "malformed":
                send(handler, 200, '{"choices": [{"mess')
            case "html":
                send(handler, 200, "<html>gateway</html>", kind="text/html")
            case "dropped":
                handler.send_response(200)
                handler.send_header("Content-Length", "1000")
                handler.end_headers()
                handler.wfile.write(b'{"choices": [')
                handler.wfile.flush()
                handler.close_connection = True
            case int():
                more = {"Retry-After": "0.01"} if fault == 429 else {}
                said = {"error": {"message": f"cannot now, {handler.headers.get('Authorization')}"}}
                send(handler, fault, json.dumps(said), **more)
            case _:
                raise AssertionError(fault)


def send(
    handler: BaseHTTPRequestHandler, status: int, text: str, *, kind: str = "application/json", **more: str
) -> None:
    data = text.encode()
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **more}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)
