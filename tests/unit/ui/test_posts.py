"""What reaches Gradio."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from sdxl_bento.errors import InvalidInput
from sdxl_bento.protocols.http.errors import BodyTooLarge, MalformedBody, MalformedRequest
from sdxl_bento.ui import posts

FORM = "multipart/form-data; boundary=B; charset=punycode"
FILE = b'--B\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'


async def read(body: bytes, is_upload: bool) -> tuple[bytes, str, int]:
    """The body and the Content-Type that Gradio gets, and the size of the largest piece."""

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    headers = [(b"content-type", FORM.encode())]
    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    scope, receive_again = await posts.checked(scope, receive, is_upload)
    pieces = [piece async for piece in Request(scope, receive_again).stream()]
    kind = Headers(scope=scope)["content-type"]
    return b"".join(pieces), kind, max(map(len, pieces))


async def test_uploads() -> None:
    body = FILE + b"x" * 100_000 + b"\r\n--B--\r\n"
    again, kind, largest = await read(body, is_upload=True)
    assert again == body
    assert kind == 'multipart/form-data; boundary="B"', "Gradio would use any charset"
    assert largest <= 32 << 10
    for wrong in (b"", FILE, b"--B\r\n" + b"a: b\r\n" * 999 + b"\r\n\r\n--B--"):
        with pytest.raises(MalformedBody):
            await read(wrong, is_upload=True)


async def test_calls() -> None:
    assert (await read(b'{"data": []}', is_upload=False))[0] == b'{"data": []}'
    for body, error in (
        (b'{"data": NaN}', MalformedBody),
        (b"[" * 100, MalformedBody),
        (b'{"data": 1e999}', InvalidInput),
        (b" " * (1 << 20) + b"{}", BodyTooLarge),
    ):
        with pytest.raises(error):
            await read(body, is_upload=False)


@pytest.mark.parametrize("raises", [True, False])
async def test_what_gradio_fails_at_is_the_callers_mistake(raises: bool) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)
        if raises:
            raise KeyError("my prompt")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "method": "POST", "headers": []}
    with pytest.raises(MalformedRequest):
        await posts.answered(fails, scope, send, send)
    assert not sent
    await posts.answered(PlainTextResponse("ok"), scope, send, send)
    assert sent[0]["status"] == 200


def test_paths() -> None:
    assert posts.is_plausible("/ui/assets/" + "a" * 255)
    assert not posts.is_plausible("/ui/assets/" + "ä" * 128)
    assert not posts.is_plausible("/ui/\0")
