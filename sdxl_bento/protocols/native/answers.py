"""The native JSON of an answer: what the routes send, and the command line prints."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from sdxl_bento.drawing import Answer
from sdxl_bento.params import OutputFormat
from sdxl_bento.pictures.encode import base64_of
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.http.answers import (
    Milliseconds,
    WarningDetail,
    milliseconds,
    warnings_json,
)
from sdxl_bento.protocols.http.errors import ErrorDetail, error_detail, logged, status_of
from sdxl_bento.protocols.http.schemas import Base64
from sdxl_bento.serving.results import LoraSummary, ModelSummary


class NativePicture(TypedDict):
    """One picture of an answer."""

    b64_json: NotRequired[Base64]  # missing only where the command line has written the file
    format: OutputFormat
    seed: int
    image_id: Annotated[str | None, Field(description="Null if the store did not take it.")]
    width: int
    height: int
    cache: NotRequired[
        Annotated[Literal["hit", "miss"], Field(description="Only if results are cached.")]
    ]


class NativeAnswer(TypedDict):
    """The answer to a call: its pictures, and the parameters that draw them again."""

    id: Annotated[str | None, Field(description="The first picture's.")]
    request_id: str
    model: str
    images: Annotated[list[NativePicture], Field(min_length=1)]
    params: dict[str, Any]
    cut_from: NotRequired[
        Annotated[
            str,
            Field(
                description="Size of the picture to redraw, if it had to be cropped or scaled.",
                examples=["129x127"],
            ),
        ]
    ]
    timings: Milliseconds
    warnings: NotRequired[list[WarningDetail]]  # only if there are any


class BatchErrorDetail(ErrorDetail):
    """What went wrong with a call whose response has the status 200 all the same.

    `status` is the one that the error would have had as a response of its own.
    """

    status: int


class BatchError(TypedDict):
    """What takes the place of a call's answer in a batch, or in a stream, if the call fails."""

    error: BatchErrorDetail


class ModelList(TypedDict):
    """The loaded models."""

    models: list[ModelSummary]


class LoraList(TypedDict):
    """The adapters that a call may name."""

    loras: list[LoraSummary]


class SamplerList(TypedDict):
    """The samplers that a call may name."""

    samplers: list[str]


class Cancelled(TypedDict):
    """The call that was cancelled."""

    request_id: str
    cancelled: bool


def answer_json(answer: Answer, *, with_files: bool = True) -> dict[str, Any]:
    """The JSON form of an answer, a `NativeAnswer`.

    `with_files`: contain the pictures' files in base64. Without, they have to be sent otherwise.
    """
    params = answer.order.params
    body: NativeAnswer = {
        "id": answer.pictures[0].image_id,
        "request_id": answer.generation.request_id,
        "model": params.model,
        "images": [_picture_json(picture, with_files) for picture in answer.pictures],
        "params": params.model_dump(mode="json"),
        "timings": milliseconds(answer.generation.timings),
    }
    if (cut := answer.order.cut_from) is not None:
        body["cut_from"] = "{}x{}".format(*cut)
    if answer.warnings:
        body["warnings"] = warnings_json(answer)
    return {**body}


def error_json(error: Exception, request_id: str) -> dict[str, Any]:
    """What a batch or a stream contains for a call that failed, a `BatchError`. It is logged."""
    reported = error_detail(logged(error, request_id), request_id)
    detail: BatchErrorDetail = {**reported, "status": int(status_of(error))}
    return {"error": detail}


def _picture_json(picture: Picture, with_file: bool) -> NativePicture:
    described: NativePicture = {
        "format": picture.output_format,
        "seed": picture.seed,
        "image_id": picture.image_id,
        "width": picture.width,
        "height": picture.height,
    }
    if with_file:
        described = {"b64_json": base64_of(picture.data), **described}
    if picture.cached is not None:
        described["cache"] = "hit" if picture.cached else "miss"
    return described
