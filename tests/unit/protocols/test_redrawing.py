"""Uploaded pictures in all protocols: odd ones, their pixels, and callers that leave."""

from __future__ import annotations

import asyncio
import base64
import os
import signal

import pytest
from starlette.testclient import TestClient

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import RequestCancelled
from sdxl_bento.order import InputImage, Resolved
from sdxl_bento.params import ResolvedParams
from sdxl_bento.protocols.http.answers import answer_headers
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.caller import Caller
from sdxl_bento.protocols.native.answers import answer_json
from tests.support import odd_pictures
from tests.unit.protocols.conftest import Bed, png, png_base64


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (odd_pictures.png(50_000, 50_000), 413),
        (odd_pictures.many_scans(3000), 413),
        (odd_pictures.samples()["webp"][:-9], 422),
        (b"", 422),
    ],
)
def test_odd_pictures(http: TestClient, data: bytes, status: int) -> None:
    text = base64.encodebytes(data).decode()
    for request in (
        {"files": {"image": ("a.png", data)}, "data": {"prompt": "a"}},
        {"json": {"prompt": "a", "image": text}},
    ):
        answer = http.post("/img2img", **request)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["field"]) == (status, "image")
    edit = http.post("/v1/images/edits", files={"image": ("a.png", data)}, data={"prompt": "a"})
    assert (edit.status_code, edit.json()["error"]["param"]) == (status, "image")
    body = {"prompt": "a", "init_images": [text]}
    told = http.post("/sdapi/v1/img2img", json=body)
    assert (told.status_code, told.json()["detail"][:13]) == (status, "init_images: ")


def test_the_same_pixels_in_every_protocol(http: TestClient, bed: Bed) -> None:
    """Transparent pixels are white, and 16 bits are not cut off."""
    rows = b"\0\x12\x34\xff\xff\xff\xff\0\0"
    data = odd_pictures.png(2, 1, 16, 4, rows)
    text = base64.encodebytes(data).decode()
    http.post("/img2img", data={"prompt": "a"}, files={"image": ("a.png", data)})
    http.post("/refine", json={"prompt": "a", "image": text})
    http.post("/v1/images/edits", files={"image": ("a.png", data)}, data={"prompt": "a"})
    http.post("/sdapi/v1/img2img", json={"prompt": "a", "init_images": [text]})
    images = [order.image for order in bed.generator.orders]
    assert len(images) == 4
    for image in images:
        assert image is not None
        assert (image.mode, image.tobytes()) == ("RGB", bytes((18, 18, 18, 255, 255, 255)))


async def test_a_client_that_leaves_ends_the_decoding(bed: Bed) -> None:
    """Whatever decodes its picture is ended, and others' pictures go on."""
    pool = bed.api._decoders
    await bed.api.read_picture(png())
    (process,) = pool._processes
    os.kill(process.pid, signal.SIGSTOP)  # it hangs
    left = asyncio.Event()

    async def receive() -> dict[str, str]:
        await left.wait()
        return {"type": "http.disconnect"}

    fields = {"prompt": "a", "image": png_base64()}
    call = Call("r", False, fields, Caller(receive))  # type: ignore[arg-type]
    running = asyncio.create_task(bed.api.run(call, "img2img"))
    while pool._idle:  # noqa: ASYNC110  another task changes it
        await asyncio.sleep(0.01)
    left.set()
    with pytest.raises(RequestCancelled):
        await running
    assert not process.is_alive()
    assert (await bed.api.read_picture(png())).size == (64, 72)
    bed.api.close()
    assert not pool._processes


async def test_the_answer_says_what_was_cut(bed: Bed) -> None:
    """For a picture that was drawn at another size than it had, and for no other."""
    for size, cut in (((64, 72), None), ((65, 71), "65x71")):
        source = InputImage.of(await bed.api.read_picture(png(size)), b"")
        fields = {"model": "fake", "sampler": "ddim", "width": 64, "height": 72, "seed": 1}
        params = ResolvedParams(prompt="a", **fields)  # type: ignore[arg-type]
        answer = await drawn(bed, Resolved("img2img", params, {"image": source}))
        assert answer_headers(answer).get("X-Cut-From") == cut
        assert answer_json(answer).get("cut_from") == cut
    bed.api.close()


async def drawn(bed: Bed, order: Resolved) -> Answer:
    generation = await bed.generator.draw(order)
    return Answer(generation, tuple(await bed.pictures.publish(generation, None)))
