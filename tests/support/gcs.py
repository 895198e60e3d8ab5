"""As much of Google's storage, by its JSON interface on loopback, as reading needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class GoogleStorage:
    """One bucket, `models`; `objects` holds the content by name."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[GoogleStorage]:
        storage = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = storage._answer(self.path, self.headers.get("Range", ""))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

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

    def _answer(self, path: str, wanted: str) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/models/o(?:/(.+))?", parts.path)
        if found is None:
            return 404, {}, b"{}"
        if found[1] is None:
            prefix = query.get("prefix", "")
            names = [name for name in sorted(self.objects) if name.startswith(prefix)]
            return self._json({"kind": "storage#objects", "items": list(map(self._entry, names))})
        name = unquote(found[1])
        if name not in self.objects:
            return 404, {}, b"{}"
        if query.get("alt") != "media":
            return self._json(self._entry(name))
        content = self.objects[name]
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if part is None:
            return 200, {}, content
        first, last = int(part[1]), min(int(part[2]), len(content) - 1)
        where = f"bytes {first}-{last}/{len(content)}"
        return 206, {"Content-Range": where}, content[first : last + 1]

    def _json(self, content: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def _entry(self, name: str) -> dict[str, Any]:
        content = self.objects[name]
        md5 = hashlib.md5(content)
        return {
            "kind": "storage#object", "bucket": "models", "name": name, "size": str(len(content)),
            "etag": md5.hexdigest()[:8], "md5Hash": base64.b64encode(md5.digest()).decode(),
            "updated": "2026-01-01T00:00:00Z", "timeCreated": "2026-01-01T00:00:00Z",
        }  # fmt: skip
