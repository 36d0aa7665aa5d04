"""As much of W&B's server as a run needs: it keeps a run's history and tells where it ends."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY = "wandb-history.jsonl"


class Server:
    """history: of each run, by its id, the lines as they came. views: as they were saved.

    mute_after: the operation after whose answer there is none any more, though connections are
    taken.
    """

    def __init__(self) -> None:
        self.url = ""
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.views: list[dict[str, Any]] = []
        self.mute_after: str | None = None
        self.mute = False
        self.over = threading.Event()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            chunk = json.loads(body).get("files", {}).get(HISTORY)
            if chunk:
                lines = self.history[path.split("/")[-2]]
                assert chunk["offset"] == len(lines), "W&B would overwrite lines, or leave a gap"
                lines += map(json.loads, chunk["content"])
            return {}
        if path != "/graphql":
            return {}
        asked = json.loads(body)
        operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        if operation is None:
            return {"data": {}}
        variables = asked.get("variables") or {}
        name = str(variables.get("name"))
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        self.mute = self.mute_after is not None and self.mute_after == operation[1]
        match operation[1]:
            case "RunResumeStatus":
                known = self.history.get(name)
                bucket = None if known is None else self._resumed(name)
                return {"data": {"model": {**project, "bucket": bucket}}}
            case "UpsertBucket":
                new = name not in self.history
                lines = self.history.setdefault(name, [])
                bucket = {"id": name, "name": name, "displayName": name, "config": "{}"}
                bucket |= {"project": project, "historyLineCount": len(lines)}
                return {"data": {"upsertBucket": {"bucket": bucket, "inserted": new}}}
            case "Viewer":
                return {"data": {"viewer": {"id": "u", "username": "me", "entity": "me"}}}
            case "UpsertView2":
                self.views.append(variables)
                view = {"id": "1", "name": "nw-abc-v"}
                return {"data": {"upsertView": {"view": view, "inserted": True}}}
            case "CreateRunFiles":
                files = [
                    {"name": file, "uploadUrl": f"{self.url}/upload/{file}"}
                    for file in variables["files"]
                ]
                created = {"runID": "x", "uploadHeaders": [], "files": files}
                return {"data": {"createRunFiles": created}}
        return {"data": {}}

    def _resumed(self, name: str) -> dict[str, Any]:
        lines = self.history[name]
        return {
            "id": name,
            "name": name,
            "displayName": name,
            "summaryMetrics": json.dumps(lines[-1] if lines else {}),
            "logLineCount": 0,
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in lines[-1:]]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if server.mute:
                server.over.wait()
                return
            answer = json.dumps(server.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_PUT = do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()
