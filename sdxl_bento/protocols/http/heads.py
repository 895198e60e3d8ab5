"""Bounds on a request's method, address and headers, which all routes share."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.types import Scope

from sdxl_bento.protocols.http.errors import MalformedRequest, MethodNotAllowed

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MAX_ADDRESS_BYTES = 8192
MAX_HEADERS = 128
MAX_CONTENT_TYPE_BYTES = 256
_HOST = re.compile(rb"[A-Za-z0-9._~:\[\]-]{0,255}")


def check_head(scope: Scope) -> None:
    """Raise MalformedRequest, which says what is wrong with the method, the address or a header."""
    if scope["method"] not in METHODS:
        raise MethodNotAllowed("method", scope["method"], f"one of {', '.join(METHODS)}")
    size = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
    if size > MAX_ADDRESS_BYTES:
        raise MalformedRequest("address", f"{size} bytes", f"at most {MAX_ADDRESS_BYTES} bytes")
    if not scope.get("query_string", b"").isascii():
        raise MalformedRequest(
            "address", "a byte over 127", "ASCII, with other bytes as %80 to %FF"
        )
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS:
        raise MalformedRequest("headers", f"{len(headers)} headers", f"at most {MAX_HEADERS}")
    for name, value in headers:
        if name == b"content-type":
            _check_content_type(value)
        elif name == b"host":
            _check_host(value)


def _check_content_type(value: bytes) -> None:
    if len(value) > MAX_CONTENT_TYPE_BYTES or not value.isascii():
        allowed = f"at most {MAX_CONTENT_TYPE_BYTES} characters of ASCII"
        raise MalformedRequest("Content-Type", value.decode("latin-1"), allowed)


def _check_host(value: bytes) -> None:
    try:
        valid = _HOST.fullmatch(value) and urlsplit(f"http://{value.decode()}").port != 0
    except ValueError:  # a bracket that is not closed, or no port
        valid = False
    if not valid:
        raise MalformedRequest("Host", value.decode("latin-1"), "a name or an address, and a port")
