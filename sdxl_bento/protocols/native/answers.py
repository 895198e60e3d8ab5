"""The native JSON of an answer: what the routes send, and the command line prints."""

from __future__ import annotations

from typing import Any

from sdxl_bento.drawing import Answer
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.http.answers import base64_of, milliseconds


def answer_json(answer: Answer, *, with_files: bool = True) -> dict[str, Any]:
    """The JSON form of an answer, the pictures' files in base64 unless they are sent otherwise."""
    params = answer.order.params
    return {
        "id": answer.pictures[0].image_id,
        "request_id": answer.generation.request_id,
        "model": params.model,
        "images": [_picture_json(picture, with_files) for picture in answer.pictures],
        "params": params.model_dump(mode="json"),
        "timings": milliseconds(answer.generation.timings),
    }


def _picture_json(picture: Picture, with_file: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"b64_json": base64_of(picture.data)} if with_file else {}
    described |= {
        "format": picture.output_format,
        "seed": picture.seed,
        "image_id": picture.image_id,
        "width": picture.width,
        "height": picture.height,
    }
    if picture.cached is not None:
        described["cache"] = "hit" if picture.cached else "miss"
    return described
