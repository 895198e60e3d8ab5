"""Drawing on a server, by the native protocol (docs/guides/native.md)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

import httpx

from sdxl_bento.cli.drawer import Drawn, OnProgress, Source
from sdxl_bento.cli.failures import ExitCode, Failure
from sdxl_bento.serving.results import Progress

if TYPE_CHECKING:
    from sdxl_bento.cli.fields import Fields

CONNECT_S = 10.0
SILENCE_S = 60.0  # a stream says every ten seconds that it is still there
_JSON = {"Accept": "application/json"}


class RemoteDrawer:
    """A server. Its pictures are cancelled when the connection is closed."""

    def __init__(self, url: str) -> None:
        self._url = url
        # A call may take as long as the server lets it, and as many as are asked for run at once.
        limits = httpx.Limits(max_connections=None)
        timeout = httpx.Timeout(None, connect=CONNECT_S)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def draw(
        self, fields: Fields, source: Source | None = None, on_progress: OnProgress | None = None
    ) -> Drawn:
        """Run one call; there is progress for text to image only. Raises Failure."""
        try:
            if source is not None:
                return await self._redraw(fields, source)
            if on_progress is None:
                response = await self._http.post("/generate", json=fields, headers=_JSON)
                return drawn(answer_of(response, self._url))
            return await self._stream(fields, on_progress)
        except httpx.TransportError as error:
            raise unreachable(self._url, error) from error

    async def _redraw(self, fields: Fields, source: Source) -> Drawn:
        route = "/refine" if source.refine_only else "/img2img"
        body = {**fields, "image": base64.b64encode(source.data).decode("ascii")}
        return drawn(answer_of(await self._http.post(route, json=body, headers=_JSON), self._url))

    async def _stream(self, fields: Fields, on_progress: OnProgress) -> Drawn:
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        asked = self._http.stream("POST", "/generate/stream", json=fields, timeout=timeout)
        async with asked as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                await response.aread()
                answer_of(response, self._url)
                raise _unexpected(f"{self._url} answers with no stream of events")
            try:
                async for name, data in _events(response):
                    if name == "done":
                        return drawn(data)
                    if name == "error":
                        raise Failure.of_status(data["error"]["status"], data["error"])
                    if name in ("queued", "step"):
                        on_progress(_progress(data))
            except (ValueError, KeyError, TypeError) as error:
                raise _unexpected(f"{self._url} sends events of another kind ({error!r})") from None
        message = f"{self._url} ended the stream before the picture was done"
        raise Failure.of(ExitCode.UNREACHABLE, "connection_lost", message)


def get(url: str, path: str, timeout_s: float = CONNECT_S) -> dict[str, Any]:
    """What a server answers to a question. Raises Failure."""
    try:
        response = httpx.get(url + path, timeout=timeout_s, headers=_JSON)
    except httpx.TransportError as error:
        raise unreachable(url, error) from error
    return answer_of(response, url)


def answer_of(response: httpx.Response, url: str) -> dict[str, Any]:
    """The JSON of an answer. Raises Failure for an error, or for what is none of ours."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        if response.is_success:
            return body
        error = body.get("error")
        if isinstance(error, dict) and "message" in error:
            after = response.headers.get("retry-after", "")
            if after.isdigit():
                error = {"retry_after_s": int(after)} | error
            raise Failure.of_status(response.status_code, error)
    raise _unexpected(
        f"{url} answers {response.request.url.path} with {response.status_code} and no JSON that "
        "sdxl-bento writes; is it the right address?"
    )


def drawn(answer: dict[str, Any]) -> Drawn:
    """A server's answer, its pictures decoded. Raises Failure."""
    try:
        files = [
            base64.b64decode(image.pop("b64_json"), validate=True) for image in answer["images"]
        ]
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise _unexpected(f"the server's answer has no pictures in it ({error!r})") from None
    return Drawn(answer, tuple(files))


def unreachable(url: str, error: httpx.TransportError) -> Failure:
    """Nothing answers, or no longer does."""
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        message = f"no server answers at {url} ({_reason(error)}); is it running?"
        return Failure.of(ExitCode.UNREACHABLE, "unreachable", message)
    message = f"the connection to {url} was lost ({_reason(error)})"
    return Failure.of(ExitCode.UNREACHABLE, "connection_lost", message)


def _unexpected(message: str) -> Failure:
    return Failure.of(ExitCode.FAILED, "unexpected_answer", message)


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Server-sent events: names with their data. Comments are left out."""
    name = ""
    async for line in response.aiter_lines():
        field, _, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            yield name, json.loads(value)


def _progress(data: dict[str, Any]) -> Progress:
    return Progress(
        request_id=data["request_id"],
        index=data["index"],
        stage=data["stage"],
        step=data.get("step", 0),
        steps=data.get("steps", 0),
        position=data.get("position", 0),
    )
