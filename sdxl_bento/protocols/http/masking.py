"""What BentoML's middleware is told of a request: nothing that its caller has written.

BentoML puts the path as it is into the labels of its metrics, so that whoever asks for many
unknown paths fills the memory, and into its access log, beside the Content-Type. Paths contain the
ids of pictures and of calls. So its middleware sees the route's template instead, such as
`/images/{image_id}`. `Unmask`, which runs after it, restores the request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

OTHER = "other"
_ORIGINAL = "sdxl_bento.original"
_RESTORED = ("path", "raw_path", "query_string", "headers")
_MEDIA_TYPES = frozenset(
    (
        *(b"application/json", b"application/octet-stream", b"application/x-www-form-urlencoded"),
        *(b"multipart/form-data", b"text/plain"),
    )
)
# Headers that are passed on if they have the form that they must have.
_PASSED_ON = {
    b"content-length": re.compile(rb"\d{1,20}"),
    b"traceparent": re.compile(rb"[0-9a-f-]{1,64}"),
    b"x-forwarded-for": re.compile(rb"[0-9A-Fa-f.:, \[\]]{1,512}"),
    b"x-forwarded-proto": re.compile(rb"https?"),
}


class Labels:
    """The templates of all routes, for a path to be named by."""

    def __init__(self, routes: Iterable[BaseRoute], paths: Iterable[str] = ()) -> None:
        self._plain = set(paths)
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        for route in routes:
            if isinstance(route, Mount) and route.path:
                pattern = re.compile(re.escape(route.path) + r"(/|\Z)")
                self._patterns.append((pattern, route.path))
            elif isinstance(route, Route) and "{" in route.path:
                self._patterns.append((route.path_regex, route.path))
            elif isinstance(route, Route):
                self._plain.add(route.path)

    @property
    def plain(self) -> frozenset[str]:
        """The addresses of the routes without parameters."""
        return frozenset(self._plain)

    def of(self, path: str) -> str:
        """The template of the first route that the path matches, or `OTHER`."""
        if path in self._plain:
            return path
        return next((name for pattern, name in self._patterns if pattern.match(path)), OTHER)


def masked(scope: Scope, label: str) -> Scope:
    """The scope without anything that the caller has chosen, for `Unmask` to restore."""
    headers = []
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type = value.split(b";")[0].strip().lower()
            headers.append((name, media_type if media_type in _MEDIA_TYPES else OTHER.encode()))
        elif (form := _PASSED_ON.get(name)) and form.fullmatch(value):
            headers.append((name, value))
    replaced = {"path": label, "raw_path": label.encode(), "query_string": b"", "headers": headers}
    return {**scope, **replaced, _ORIGINAL: scope}


class Unmask:
    """ASGI middleware that restores what `masked` has replaced."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        original = scope.get(_ORIGINAL)
        if original is not None:
            scope = {**scope, **{key: original[key] for key in _RESTORED}}
        await self.app(scope, receive, send)
