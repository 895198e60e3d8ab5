"""The answers of the Open Inference Protocol: tensors of pictures, and what is known of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired

import numpy as np
from typing_extensions import TypedDict

from sdxl_bento import __version__
from sdxl_bento.drawing import Answer
from sdxl_bento.protocols.kserve.v2.fields import OUTPUTS, Inference, inputs
from sdxl_bento.protocols.kserve.v2.tensors import Output, TensorHeader
from sdxl_bento.serving.results import ModelSummary

EXTENSIONS = ["binary_tensor_data", "model_repository"]


class ResultParameters(TypedDict):
    """What there is to say of a result as a whole. `warnings`: one message on each line.

    A parameter of this protocol is a text, a number or a truth value.
    """

    warnings: str


class InferenceResult(TypedDict):
    """The JSON of the answer to an inference."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    parameters: NotRequired[ResultParameters]
    outputs: list[TensorHeader]


class ServerMetadata(TypedDict):
    """What this server is."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(TypedDict):
    """The engine is alive."""

    live: bool


class ServerReady(TypedDict):
    """All models are loaded."""

    ready: bool


class ModelReady(TypedDict):
    """The model is loaded."""

    name: str
    ready: bool


class TensorMetadata(TypedDict):
    """An input or output of a model. -1 in its shape stands for any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    """The inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class IndexedModel(TypedDict):
    """A model in the repository's index, and its state."""

    name: str
    version: str
    state: str
    reason: str


def inference_result(
    inference: Inference, model: ModelSummary, answers: Sequence[Answer]
) -> tuple[InferenceResult, bytes]:
    """The JSON of an answer, and the raw bytes of those outputs that were asked for as binary."""
    tensors: list[TensorHeader] = []
    raw: list[bytes] = []
    for requested in inference.outputs:
        output = output_tensor(requested.name, answers)
        if requested.binary:
            tensor, data = output.as_binary()
            raw.append(data)
        else:
            tensor = output.as_json()
        tensors.append(tensor)
    result: InferenceResult = {
        "model_name": model.name,
        "model_version": version_of(model),
        "outputs": tensors,
    }
    if inference.id is not None:
        result["id"] = inference.id
    warnings = [each.message for answer in answers for each in answer.warnings]
    if warnings:
        result["parameters"] = {"warnings": "\n".join(warnings)}
    return result, b"".join(raw)


def output_tensor(name: str, answers: Sequence[Answer]) -> Output:
    """The output `name` of all rows, in the shape [rows], or [rows, num_images] if that is over 1.

    Pixels have [height, width, 3] as further axes.
    """
    pictures = [picture for answer in answers for picture in answer.pictures]
    per_row = len(answers[0].pictures)
    shape = (len(answers),) if per_row == 1 else (len(answers), per_row)
    if name == "image":
        return Output(name, OUTPUTS[name], shape, [picture.data for picture in pictures])
    if name == "image_id":
        ids = [(picture.image_id or "").encode() for picture in pictures]
        return Output(name, OUTPUTS[name], shape, ids, is_text=True)
    if name == "seed":
        seeds = np.array([picture.seed for picture in pictures], "<i8")
        return Output(name, OUTPUTS[name], shape, seeds)
    images = [image for answer in answers for image in answer.images()]
    pixels = np.stack([np.asarray(image.convert("RGB"), np.uint8) for image in images])
    return Output(name, OUTPUTS[name], shape + pixels.shape[1:], pixels)


def server_metadata() -> ServerMetadata:
    """Name, version and extensions of this server."""
    return {"name": "sdxl-bento", "version": __version__, "extensions": EXTENSIONS}


def model_metadata(model: ModelSummary) -> ModelMetadata:
    """The inputs and outputs of a model, which are the same for all."""
    return {
        "name": model.name,
        "versions": [version_of(model)],
        "platform": f"sdxl_{model.backend}",
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [-1] if size == 1 else [-1, size]}
            for name, (datatype, size) in inputs().items()
        ],
        "outputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": [-1, -1, -1, 3] if name == "pixels" else [-1],
            }
            for name, datatype in OUTPUTS.items()
        ],
    }


def version_of(model: ModelSummary) -> str:
    """The version in a model's tag."""
    return model.tag.partition(":")[2]
