"""A real HTTP server on loopback for one file, with ranges, that can be told to misbehave."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer:
    """Serves `content` at every path. What the attributes say holds from the next request on.

    `breaks` lists after how many bytes the next answers of more than a few bytes break off.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag: str | None = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        self.ranges = True
        self.breaks: list[int] = []
        self.headers: dict[str, str] = {}
        self.status: int | None = None
        self.redirect: str | None = None
        self.bytes_per_s = 0.0
        self.asked: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.sent = 0
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[FileServer]:
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Stay quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def change(self, content: bytes) -> None:
        """Replace the file."""
        self.content = content
        self.etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    def _answer(self, request: Any) -> None:
        self.asked.append({name.lower(): value for name, value in request.headers.items()})
        self.paths.append(request.path)
        if self.redirect and not request.path.startswith("/moved"):
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        content, first = self.content, 0
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        condition = request.headers.get("If-Range")
        if found and self.ranges and condition in (None, self.etag):
            first = int(found[1])
            body = content[first : int(found[2]) + 1 if found[2] else None]
            request.send_response(self.status or 206)
            last = first + len(body) - 1
            request.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        else:
            body = content
            request.send_response(self.status or 200)
        request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        for name, value in self.headers.items():
            request.send_header(name, value)
        request.end_headers()
        if len(body) > 16 and self.breaks:
            body = body[: self.breaks.pop(0)]
            request.close_connection = True
        self._send(request, body)

    def _send(self, request: Any, body: bytes) -> None:
        chunk = 1 << 16
        try:
            for start in range(0, len(body), chunk):
                request.wfile.write(body[start : start + chunk])
                self.sent += len(body[start : start + chunk])
                if self.bytes_per_s:
                    time.sleep(chunk / self.bytes_per_s)
            request.wfile.flush()
        except OSError:
            request.close_connection = True
