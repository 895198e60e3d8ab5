"""Pages of other sites may read from this server, but not make it draw.

A browser sends forms and simple POST requests on behalf of any page, also to a server on
`localhost`. Such requests are recognised by the rule of `CrossOriginProtection` in Go 1.25's
net/http: browsers send `Sec-Fetch-Site`, older ones `Origin`. Clients that send neither are not
browsers, and are allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sdxl_bento.protocols.http.caller import known_request_id
from sdxl_bento.protocols.http.errors import CrossOrigin, error_response

ANY = "*"
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
# The headers of answers that a page of a trusted origin may read.
EXPOSED = (
    *("X-Request-Id", "X-Seed", "X-Image-Id", "X-Model", "X-Cache", "Server-Timing"),
    *("X-Cut-From", "X-Warning", "Retry-After"),
)


class CrossOriginProtection:
    """ASGI middleware that answers 403 to pages of other origins, except those of `trusted`."""

    def __init__(self, app: ASGIApp, trusted: Sequence[str] = ()) -> None:
        self.app = app
        self._trusted = frozenset(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS:
            headers = Headers(scope=scope)
            if not self._lets_in(headers):
                origin = headers.get("origin", "a page of another site")
                error = CrossOrigin("Origin", origin, _ALLOWED)
                answer = error_response(error, known_request_id(headers))
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _lets_in(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None and not self._trusted.isdisjoint((origin, ANY)):
            return True
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        return origin is None or _netloc(origin) == headers.get("host")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # a bracket that is not closed, for instance
        return None


def cors_options(trusted: Sequence[str]) -> dict[str, Any]:
    """Options of Starlette's CORSMiddleware, so that pages of `trusted` may read the answers."""
    some = {"allow_origins": list(trusted), "expose_headers": list(EXPOSED)}
    return {**some, "allow_methods": ["GET", "POST"], "allow_headers": [ANY]}


_ALLOWED = "this server's own pages, and those of SDXL_CORS_ORIGINS"
