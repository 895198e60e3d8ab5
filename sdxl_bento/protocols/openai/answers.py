"""What OpenAI's clients get: the bodies of answers and errors, and the count of tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, NotRequired

from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import RequestCancelled
from sdxl_bento.order import Resolved
from sdxl_bento.pictures.encode import base64_of
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.http import envelopes
from sdxl_bento.protocols.http import errors as http
from sdxl_bento.protocols.http.answers import WarningDetail, warnings_json
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.envelopes import OpenAIError
from sdxl_bento.protocols.http.errors import error_detail, logged, status_of
from sdxl_bento.protocols.http.schemas import Base64
from sdxl_bento.serving.results import ModelSummary

CLIP_TOKENS = 77  # every prompt is padded or cut to this length
BLOCK = 8  # one of SDXL's latents represents 8x8 pixels
# OpenAI's models have a date of creation. Ours get that of the process, which is all it knows.
_CREATED = int(time.time())


class TokenDetails(TypedDict):
    """How tokens are divided between text and pictures."""

    text_tokens: int
    image_tokens: int


class Usage(TypedDict):
    """The tokens of a call, as `usage` counts them."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int


class OpenAIImage(TypedDict):
    """One picture of an answer: a file in base64, or a link."""

    b64_json: NotRequired[Base64]
    url: NotRequired[str]
    seed: int
    image_id: str | None


class OpenAIImages(TypedDict):
    """The answer to a call."""

    created: int
    background: str
    output_format: str
    size: str
    data: Annotated[list[OpenAIImage], Field(min_length=1)]
    usage: Usage
    warnings: NotRequired[list[WarningDetail]]


class PictureEvent(TypedDict):
    """What the events of a stream say of a picture, be it a partial one or not."""

    type: str
    b64_json: Base64
    created_at: int
    output_format: str
    size: str
    quality: str
    background: str


class PartialImageEvent(PictureEvent):
    """An event with a preview of picture `index` of the call."""

    partial_image_index: int
    index: int


class CompletedEvent(PictureEvent):
    """An event with picture `index` of the call."""

    usage: Usage
    index: int
    seed: int
    image_id: str | None
    warnings: NotRequired[list[WarningDetail]]


class OpenAIModel(TypedDict):
    """A model in OpenAI's list."""

    id: str
    object: str
    created: int
    owned_by: str


class LoadedModel(OpenAIModel):
    """The answer about one model. KServe's V1 client reads `name` and `ready`."""

    name: str
    ready: bool


class OpenAIModels(TypedDict):
    """The answer about all models. KServe's V1 client reads `models`."""

    object: str
    data: list[OpenAIModel]
    models: list[str]


def response_body(answer: Answer, images_url: str | None) -> OpenAIImages:
    """The body of an answer to a call without `stream`.

    `images_url`: pictures are sent as links below it; None for pictures in base64. A picture that
    could not be stored has no link and is sent in base64.
    """
    first = answer.pictures[0]
    body: OpenAIImages = {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": first.output_format,
        "size": f"{first.width}x{first.height}",
        "data": [_image(picture, images_url) for picture in answer.pictures],
        "usage": usage(answer.order, answer.pictures),
    }
    if answer.warnings:
        body["warnings"] = warnings_json(answer)
    return body


def usage(order: Resolved, pictures: Sequence[Picture]) -> Usage:
    """OpenAI bills tokens. Here: those of CLIP, and one per 8x8 pixels of a picture in or out."""
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


def model_json(model: ModelSummary) -> OpenAIModel:
    """A loaded model in OpenAI's list."""
    return {"id": model.name, "object": "model", "created": _CREATED, "owned_by": "sdxl-bento"}


def error_response(error: Exception, call: Call) -> Response:
    """The response to a call that failed."""
    response = http.error_response(logged(error, call.request_id), call.request_id)
    if isinstance(error, RequestCancelled):
        response.headers["x-should-retry"] = "false"  # OpenAI's clients repeat a call after 409
    return response


def error_event(error: Exception, call: Call) -> OpenAIError:
    """The data of the event with which a call in a stream fails."""
    detail = error_detail(logged(error, call.request_id), call.request_id)
    return envelopes.openai(detail, status_of(error))


def _image(picture: Picture, images_url: str | None) -> OpenAIImage:
    if images_url is None or picture.image_id is None:
        return {
            "b64_json": base64_of(picture.data),
            "seed": picture.seed,
            "image_id": picture.image_id,
        }
    return {
        "url": f"{images_url}/{picture.image_id}.{picture.output_format}",
        "seed": picture.seed,
        "image_id": picture.image_id,
    }


def _blocks(picture: Picture) -> int:
    return -(-picture.width // BLOCK) * -(-picture.height // BLOCK)
