"""Draws on a server, through the native protocol (docs/guides/native.md)."""

from __future__ import annotations

import base64
import binascii
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

import httpx
from httpx_sse import EventSource, ServerSentEvent

from sdxl_bento.cli.drawer import InitImage, OnProgress, Result
from sdxl_bento.cli.failures import ExitCode, Failure
from sdxl_bento.serving.results import Progress

if TYPE_CHECKING:
    from sdxl_bento.cli.fields import Fields

CONNECT_S = 10.0
SILENCE_S = 60.0  # without an event or a comment; the server sends a comment every ten seconds
_JSON = {"Accept": "application/json"}


class RemoteDrawer:
    """Sends calls to a server, which cancels a call when its connection is closed."""

    def __init__(self, url: str) -> None:
        self._url = url
        # The server bounds how long a call takes; how many run at once is up to the command.
        limits = httpx.Limits(max_connections=None)
        timeout = httpx.Timeout(None, connect=CONNECT_S)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def draw(
        self,
        fields: Fields,
        init_image: InitImage | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Run one call. Progress is reported for text-to-image calls only. Raises Failure."""
        try:
            if init_image is not None:
                return await self._redraw(fields, init_image)
            if on_progress is None:
                return await self._post("/generate", fields)
            return await self._stream(fields, on_progress)
        except httpx.TransportError as error:
            raise unreachable(self._url, error) from error

    async def _redraw(self, fields: Fields, init_image: InitImage) -> Result:
        route = f"/{init_image.task}"
        image = base64.b64encode(init_image.data).decode("ascii")
        return await self._post(route, {**fields, "image": image})

    async def _post(self, route: str, body: Fields) -> Result:
        response = await self._http.post(route, json=body, headers=_JSON)
        return result_of(answer_of(response, self._url))

    async def _stream(self, fields: Fields, on_progress: OnProgress) -> Result:
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        call = self._http.stream("POST", "/generate/stream", json=fields, timeout=timeout)
        async with call as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                await response.aread()
                answer_of(response, self._url)
                raise _unexpected(f"{self._url} answers with no stream of events")
            try:
                async with aclosing(EventSource(response).aiter_sse()) as events:
                    async for event in events:
                        result = _result_in(event, on_progress)
                        if result is not None:
                            return result
            except (ValueError, KeyError, TypeError) as error:
                raise _unexpected(f"{self._url} sends events of another kind ({error!r})") from None
        message = f"{self._url} ended the stream before the picture was done"
        raise Failure.of(ExitCode.UNREACHABLE, "connection_lost", message)


def get(url: str, path: str, timeout_s: float = CONNECT_S) -> dict[str, Any]:
    """The JSON that a server answers to GET `path`. Raises Failure."""
    try:
        response = httpx.get(url + path, timeout=timeout_s, headers=_JSON)
    except httpx.TransportError as error:
        raise unreachable(url, error) from error
    return answer_of(response, url)


def answer_of(response: httpx.Response, url: str) -> dict[str, Any]:
    """The JSON object in a response.

    Raises Failure for an error status, and for a body that this protocol does not have.
    """
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


def result_of(answer: dict[str, Any]) -> Result:
    """A server's answer with its pictures taken out and decoded. Raises Failure."""
    try:
        files = [
            base64.b64decode(image.pop("b64_json"), validate=True) for image in answer["images"]
        ]
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise _unexpected(f"the server's answer has no pictures in it ({error!r})") from None
    return Result(answer, tuple(files))


def unreachable(url: str, error: httpx.TransportError) -> Failure:
    """The failure that a transport error means: no connection was made, or it was lost."""
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        message = f"no server answers at {url} ({_reason(error)}); is it running?"
        return Failure.of(ExitCode.UNREACHABLE, "unreachable", message)
    message = f"the connection to {url} was lost ({_reason(error)})"
    return Failure.of(ExitCode.UNREACHABLE, "connection_lost", message)


def _unexpected(message: str) -> Failure:
    return Failure.of(ExitCode.FAILED, "unexpected_answer", message)


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__


def _result_in(event: ServerSentEvent, on_progress: OnProgress) -> Result | None:
    """The result that a `done` event carries; other events are reported or ignored.

    Raises Failure for an `error` event; ValueError, KeyError or TypeError for malformed data.
    """
    match event.event:
        case "done":
            return result_of(event.json())
        case "error":
            error = event.json()["error"]
            raise Failure.of_status(error["status"], error)
        case "queued" | "step":
            on_progress(_progress(event.json()))
    return None


def _progress(data: dict[str, Any]) -> Progress:
    return Progress(
        request_id=data["request_id"],
        index=data["index"],
        stage=data["stage"],
        step=data.get("step", 0),
        steps=data.get("steps", 0),
        position=data.get("position", 0),
    )
