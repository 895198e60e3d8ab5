"""The body of the answer to a V1 prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from sdxl_bento.drawing import Answer
from sdxl_bento.pictures.encode import base64_of
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.http.answers import WarningDetail, warnings_json
from sdxl_bento.protocols.http.schemas import Base64


class PredictedImage(TypedDict):
    """One picture of a prediction."""

    format: str
    b64: Base64
    seed: int
    image_id: str | None


class Prediction(TypedDict):
    """The pictures of one instance. `images` are all of them, if there are several."""

    model_name: str
    prompt: str
    image: PredictedImage
    images: NotRequired[Annotated[list[PredictedImage], Field(min_length=2)]]
    warnings: NotRequired[list[WarningDetail]]


class Predictions(TypedDict):
    """The answer to a call: a prediction for each instance."""

    predictions: Annotated[list[Prediction], Field(min_length=1)]


def response_body(answers: Sequence[Answer]) -> Predictions:
    """The body with one prediction for each answer."""
    return {"predictions": [_prediction(answer) for answer in answers]}


def _prediction(answer: Answer) -> Prediction:
    params = answer.order.params
    images = [_image(picture) for picture in answer.pictures]
    prediction: Prediction = {
        "model_name": params.model,
        "prompt": params.prompt,
        "image": images[0],
    }
    # The protocol has one prediction for each instance, so several pictures are a field of it.
    if len(images) > 1:
        prediction["images"] = images
    if answer.warnings:
        prediction["warnings"] = warnings_json(answer)
    return prediction


def _image(picture: Picture) -> PredictedImage:
    return {
        "format": picture.output_format,
        "b64": base64_of(picture.data),
        "seed": picture.seed,
        "image_id": picture.image_id,
    }
