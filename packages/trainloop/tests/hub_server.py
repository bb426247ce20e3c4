"""A hub on loopback: repositories of bytes, and the faults a network has."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?")
_FILE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")


class HubServer:
    """Speaks what `huggingface_hub` asks for while it downloads.

    Attributes:
        cut: path to how many bytes each next answer sends before the connection breaks.
        stall: path to how many bytes are sent before nothing comes any more.
        corrupt: paths whose bytes arrive changed.
        status: path, or `api`, to the error that is answered.
        gets: (path, first byte asked for) of each download.
    """

    def __init__(self) -> None:
        self._repos: dict[tuple[str, str], dict[str, bytes]] = {}
        self.cut: dict[str, list[int]] = {}
        self.stall: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.status: dict[str, int] = {}
        self.gets: list[tuple[str, int]] = []
        self.closed = threading.Event()
        self.lfs_above = 1000
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, repo: str, content: Path | dict[str, bytes], kind: str = "model") -> None:
        if isinstance(content, Path):
            content = {p.relative_to(content).as_posix(): p.read_bytes() for p in content.rglob("*") if p.is_file()}
        self._repos[kind, repo] = dict(content)

    def repo(self, kind: str, repo: str) -> dict[str, bytes] | None:
        return self._repos.get((kind, repo))

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(k.encode() + v for k, v in sorted(files.items()))).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file(head=True)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/"):
            self._api(path)
        else:
            self._file(head=False)

    def do_POST(self) -> None:
        self._api(unquote(urlsplit(self.path).path))

    def _error(self, status: int, code: str | None = None) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code} if code else {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], head: bool = False) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body)), "Connection": "close"} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if not head:
            self.wfile.write(body)
        self.close_connection = True  # so that a hub that is closed is gone

    def _files(self, kind: str, repo: str, revision: str | None) -> dict[str, bytes] | None:
        files = self.server_hub.repo(kind, repo)
        if files is None:
            self._error(404, "RepoNotFound")
        elif revision not in (None, "main", commit_of(files)):
            self._error(404, "RevisionNotFound")
        else:
            return files
        return None

    def _api(self, path: str) -> None:
        if "api" in self.server_hub.status:
            return self._error(self.server_hub.status["api"])
        match = _API.fullmatch(path)
        if match is None:
            return self._error(404)
        kinds, repo, what, revision, below = match.groups()
        files = self._files(kinds[:-1], repo, revision)
        if files is None:
            return None
        body: object
        if what == "paths-info":
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
            body = [self._entry(name, files[name]) for name in asked if name in files]
        elif what == "tree" and below:
            return self._error(404, "EntryNotFound")  # all files are looked for from the root
        elif what == "tree":
            body = [self._entry(name, data) for name, data in files.items()]
        else:
            body = {"id": repo, "sha": commit_of(files), "siblings": [{"rfilename": f} for f in files], "tags": []}
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _entry(self, name: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
        if len(data) > self.server_hub.lfs_above:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _file(self, head: bool) -> None:
        hub = self.server_hub
        dataset, repo, revision, name = _FILE.fullmatch(unquote(urlsplit(self.path).path)).groups()
        files = self._files("dataset" if dataset else "model", repo, revision)
        if files is None:
            return None
        commit = {"X-Repo-Commit": commit_of(files)}
        if name not in files:
            return self._answer(404, b"", commit | {"X-Error-Code": "EntryNotFound"}, head)
        if name in hub.status and not head:
            return self._error(hub.status[name])
        data = files[name]
        etag = hashlib.sha256(data).hexdigest() if len(data) > hub.lfs_above else git_sha1(data)
        headers = commit | {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if len(data) > hub.lfs_above:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        if name in hub.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        last = int(asked[2]) + 1 if asked and asked[2] else len(data)
        body = data[first:last]
        if asked:
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{len(data)}"
        if not head:
            hub.gets.append((name, first))
        if name in hub.stall and not head:
            headers["Content-Length"] = str(len(body))
            self._answer(206 if asked else 200, body[: hub.stall[name]], headers)
            hub.closed.wait(60)
            return None
        if hub.cut.get(name) and not head:
            headers["Content-Length"] = str(len(body))
            self._answer(206 if asked else 200, body[: hub.cut[name].pop(0)], headers)
            return None
        return self._answer(206 if asked else 200, body, headers, head)
