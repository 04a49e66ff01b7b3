"""A stand-in of the Hugging Face Hub: what its client asks to make, fill and read a repository."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves on a free port of this machine once `serve_forever` runs; keeps all in memory.

    Attributes:
        files: repository -> name -> content.
        private: repository -> whether it was made so.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_secret":
            return self._answer(401, {"error": "not logged in"})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.files.setdefault(repo, {})
            self.server.private[repo] = asked.get("private") or asked.get("visibility") == "private"
            return self._answer(200, {"url": f"{self.server.address}/{repo}"})
        repo, action = self._repo()
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in files
            ]
            return self._answer(200, {"files": modes})
        if action == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[repo][line["value"]["path"]] = content
            oid = {"commitUrl": f"{self.server.address}/{repo}/commit/1", "commitOid": _REVISION}
            return self._answer(200, oid)
        return self._answer(404, {"error": self.path})

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            repo, action = self._repo()
            if repo not in self.server.files:
                return self._answer(404, {"error": "no repository"}, "RepoNotFound")
            names = [{"rfilename": name} for name in self.server.files[repo]]
            if action == "tree":
                return self._answer(
                    200,
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": _hash(data)}
                        for name, data in self.server.files[repo].items()
                    ],
                )
            info = {"id": repo, "sha": _REVISION, "private": False, "siblings": names}
            return self._answer(200, info)
        if self.path.startswith("/api/"):
            return self._answer(404, {"error": self.path})
        owner, name, *_, file = self.path.lstrip("/").split("/")  # owner/name/resolve/main/file
        data = self.server.files.get(f"{owner}/{name}", {}).get(file)
        if data is None:
            return self._answer(404, {"error": "no file"}, "EntryNotFound")
        self.send_response(200)
        self.send_header("ETag", f'"{_hash(data)}"')
        self.send_header("X-Repo-Commit", _REVISION)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        return None

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _repo(self) -> tuple[str, str]:
        owner, name, action = self.path.removeprefix("/api/models/").split("/")[:3]
        return f"{owner}/{name}", action

    def _answer(self, status: int, body: object, error: str | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(data)


def _hash(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
