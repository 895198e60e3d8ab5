"""A real HTTP server on loopback for one file, with ranges, that can be told to misbehave."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any


def self_signed(path: Path) -> Path:
    """A certificate for 127.0.0.1, good for a day, and its key, in one PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(host, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


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
    def running(self, certificate: Path | None = None) -> Iterator[FileServer]:
        """Serve until the end of the context; by HTTPS with a certificate and its key."""
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Stay quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
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
