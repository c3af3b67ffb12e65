"""A local server that answers as the Hub does when a model is put there, and keeps what it was sent."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubStandIn(ThreadingHTTPServer):
    """token: the one that may write. repositories: what each holds, by the names of the files."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> HubStandIn:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            return self._answer(200, {"url": f"{self.server.url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        repository = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self._answer(200, {"files": [file | {"shouldIgnore": False} for file in files]})
        assert "/commit/" in self.path, self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repositories[repository][line["value"]["path"]] = content
        self.server.commits += 1
        url = f"{self.server.url}/{repository}/commit/1"
        self._answer(200, {"success": True, "commitOid": "1", "commitUrl": url, "hookOutput": ""})

    def _answer(self, status: int, content: object) -> None:
        written = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(written)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, *arguments: object) -> None:
        """Nothing on the terminal."""
