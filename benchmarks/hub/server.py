"""The stand-in hub: one repository at one commit, on 127.0.0.1. As on the real one, it points elsewhere for large files.

POST /faults   a list of [byte, fault]: what is to happen, once each, when a transfer of the weights comes to that byte:
               "cut" breaks the connection, "stall" sends nothing more until the client leaves, "flip" turns a bit over
GET  /faults   those that have not happened yet
GET  /asked    every request for a file: its name, the byte it began at, and when it ended (seconds since 1970; null before)
"""

import hashlib
import json
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub.weights import FILE, Weights
from mi_llm.storage import blob_id


class Hub(ThreadingHTTPServer):
    """The server of the files in a folder, and of the weights."""

    daemon_threads = True

    def __init__(self, repository: str, revision: str, folder: Path, weights: Weights, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Answer)
        self.repository, self.revision, self.weights = repository, revision, weights
        self.files = {
            path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != FILE and path.name[0] != "."
        }
        self.faults: list[tuple[int, str]] = []
        self.asked: list[dict[str, Any]] = []

    @property
    def address(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def sha256(self, name: str) -> str:
        """SHA-256 of a file."""
        return self.weights.sha256() if name == FILE else hashlib.sha256(self.files[name]).hexdigest()

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self.weights.size if name == FILE else len(self.files[name])

    def described(self) -> dict[str, Any]:
        """What the hub says of the repository."""
        siblings = []
        for name in (*self.files, FILE):
            sibling: dict[str, Any] = {"rfilename": name, "size": self.size(name), "blobId": "0" * 40}
            if is_large(name):
                sibling["lfs"] = {"sha256": self.sha256(name), "size": self.size(name), "pointerSize": 135}
            else:
                sibling["blobId"] = blob_id(self.files[name])
            siblings.append(sibling)
        return {"id": self.repository, "sha": self.revision, "siblings": siblings}

    def content(self, name: str, start: int) -> Iterator[bytes | bytearray]:
        """The file from a byte on."""
        yield from self.weights.chunks(start) if name == FILE else [self.files[name][start:]]

    def fault_before(self, end: int) -> tuple[int, str] | None:
        """Take the next fault off the list, if it lies before a byte of the weights."""
        return self.faults.pop(0) if self.faults and self.faults[0][0] < end else None


def is_large(name: str) -> bool:
    """Whether the hub keeps a file elsewhere (Git LFS), with its SHA-256."""
    return name.endswith((".bin", ".model"))


class Answer(BaseHTTPRequestHandler):
    """The answer to one request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take the faults that are to happen."""
        listed = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.faults = sorted((int(position), str(fault)) for position, fault in listed)
        self.send_json(self.server.faults)

    def do_HEAD(self) -> None:
        """Answer without the content."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer a client of the hub, or tell what has happened."""
        hub, path = self.server, urllib.parse.unquote(self.path.partition("?")[0])
        name = path.rpartition("/")[2]
        if path == "/faults":
            self.send_json(hub.faults)
        elif path == "/asked":
            self.send_json(hub.asked)
        elif path == f"/api/models/{hub.repository}/revision/{hub.revision}":
            self.send_json(hub.described())
        elif path == f"/{hub.repository}/resolve/{hub.revision}/{name}" and (name in hub.files or name == FILE):
            if is_large(name):
                linked = {"X-Linked-Etag": f'"{hub.sha256(name)}"', "X-Linked-Size": str(hub.size(name))}
                location = f"{hub.address}/elsewhere/{urllib.parse.quote(name)}"
                self.send_head(302, {"X-Repo-Commit": hub.revision, "Location": location, "Content-Length": "0", **linked})
            else:
                self.send_file(name, {"X-Repo-Commit": hub.revision, "ETag": f'"{blob_id(hub.files[name])}"'})
        elif path == f"/elsewhere/{name}" and (name in hub.files or name == FILE):
            self.send_file(name, {"Accept-Ranges": "bytes"})
        else:
            self.send_head(404, {"X-Error-Code": "RepoNotFound", "Content-Length": "0"})

    def send_head(self, status: int, head: dict[str, str]) -> None:
        """Send the first lines of an answer."""
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()

    def send_json(self, value: Any) -> None:
        """Send a value."""
        content = json.dumps(value).encode()
        self.send_head(200, {"Content-Type": "application/json", "Content-Length": str(len(content))})
        self.wfile.write(content)

    def send_file(self, name: str, head: dict[str, str]) -> None:
        """Send a file from the byte that the client asks for, and let happen what is to happen on the way."""
        asked, size = self.headers.get("Range", ""), self.server.size(name)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked:
            head |= {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        self.send_head(206 if asked else 200, head | {"Content-Length": str(size - start)})
        if self.command == "HEAD":
            return
        request: dict[str, Any] = {"name": name, "start": start, "ended": None}
        self.server.asked.append(request)
        try:
            self.send_content(name, start)
        except OSError:  # the client is gone
            self.close_connection = True
        request["ended"] = time.time()

    def send_content(self, name: str, start: int) -> None:
        """Send a file's bytes from one on, until a fault ends the transfer."""
        for chunk in self.server.content(name, start):
            end = start + len(chunk)
            fault = self.server.fault_before(end) if name == FILE else None
            if fault and fault[1] == "flip":
                chunk[max(0, fault[0] - start)] ^= 1  # type: ignore[index]
            elif fault:
                if fault[1] == "stall":
                    self.connection.recv(1)  # returns when the client closes the connection
                self.close_connection = True
                return
            self.wfile.write(chunk)
            start = end

    def log_message(self, *words: object) -> None:
        """Say nothing: `/asked` tells."""
