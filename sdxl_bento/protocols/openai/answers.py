"""What OpenAI's clients get: the bodies of answers, of errors, and the count of tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import RequestCancelled
from sdxl_bento.order import Resolved
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.http import envelopes
from sdxl_bento.protocols.http.answers import base64_of
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.errors import error_body, error_response, logged, status_of
from sdxl_bento.protocols.http.validation import renamed

CLIP_TOKENS = 77  # each prompt is padded or cut to these
BLOCK = 8  # one of SDXL's latents stands for 8x8 pixels


def response_body(answer: Answer, images_url: str | None) -> dict[str, Any]:
    """The body of a whole answer; pictures as links under `images_url`, if there is one.

    A picture that could not be stored has no link, and comes as base64 all the same.
    """
    first = answer.pictures[0]
    return {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": first.output_format,
        "size": f"{first.width}x{first.height}",
        "data": [_datum(picture, images_url) for picture in answer.pictures],
        "usage": usage(answer.order, answer.pictures),
    }


def usage(order: Resolved, pictures: Sequence[Picture]) -> dict[str, Any]:
    """OpenAI counts tokens. Here: CLIP's, and one for each 8x8 pixels of a picture in or out."""
    text = CLIP_TOKENS * (2 if order.params.uses_guidance else 1)
    blocks = [_blocks(picture) for picture in pictures]
    image = blocks[0] if order.redraws else 0
    return {
        "input_tokens": text + image,
        "input_tokens_details": {"text_tokens": text, "image_tokens": image},
        "output_tokens": sum(blocks),
        "output_tokens_details": {"text_tokens": 0, "image_tokens": sum(blocks)},
        "total_tokens": text + image + sum(blocks),
    }


def failed(error: Exception, call: Call, names: Mapping[str, str]) -> Response:
    """The answer to a call that failed, in the caller's names of the parameters."""
    answer = error_response(renamed(logged(error, call.request_id), names), call.request_id)
    if isinstance(error, RequestCancelled):
        answer.headers["x-should-retry"] = "false"  # OpenAI's clients try a 409 again
    return answer


def failed_event(error: Exception, call: Call, names: Mapping[str, str]) -> dict[str, Any]:
    """The same, as the data of an event."""
    body = error_body(renamed(logged(error, call.request_id), names), call.request_id)
    return envelopes.openai(body["error"], status_of(error))


def _datum(picture: Picture, images_url: str | None) -> dict[str, Any]:
    identity = {"seed": picture.seed, "image_id": picture.image_id}
    if images_url is None or picture.image_id is None:
        return {"b64_json": base64_of(picture.data), **identity}
    return {"url": f"{images_url}/{picture.image_id}.{picture.output_format}", **identity}


def _blocks(picture: Picture) -> int:
    return -(-picture.width // BLOCK) * -(-picture.height // BLOCK)
