"""The parts of an inference request around its tensors: nothing in them is read over in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.protocols.http.translation import Translation

REQUEST = ("id", "model_name", "inputs", "outputs", "parameters")
INPUT = ("name", "shape", "datatype", "data", "parameters")
OUTPUT = ("name", "parameters")
# `content_type` is how MLServer's clients say that a tensor is what its datatype says.
INPUT_PARAMETERS = ("binary_data_size", "content_type")
OUTPUT_PARAMETERS = ("binary_data",)
_PLAIN = ("str", "np")


def check_envelope(
    document: Mapping[str, Any], model: str, translation: Translation
) -> dict[str, Any]:
    """The document with the known fields of the request, of its inputs and of its outputs.

    Args:
        document: the JSON of a request.
        model: the name or tag in the address, which the request may repeat.
        translation: of the call.

    Raises InvalidInput for the first field that nobody reads.
    """
    document = translation.known(document, REQUEST)
    name = document.get("model_name")
    if name is not None and name not in (model, model.partition(":")[0]):
        raise InvalidInput("model_name", name, f"{model}, as the address says, or nothing")
    parameters = document.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise InvalidInput("parameters", parameters, "an object")
    outputs = document.get("outputs")
    if not isinstance(outputs, list | None):
        raise InvalidInput("outputs", outputs, "a list of objects with a name")
    document["inputs"] = _tensors(
        document.get("inputs"), "inputs", INPUT, INPUT_PARAMETERS, translation
    )
    document["outputs"] = _tensors(outputs, "outputs", OUTPUT, OUTPUT_PARAMETERS, translation)
    if isinstance(document["inputs"], list):
        for index, tensor in enumerate(document["inputs"]):
            _check_input(tensor, f"inputs.{index}")
    for index, tensor in enumerate(document["outputs"] or ()):
        _check_output(tensor, f"outputs.{index}")
    return document


def _tensors(
    tensors: Any,
    place: str,
    known: tuple[str, ...],
    parameters: tuple[str, ...],
    translation: Translation,
) -> Any:
    """The tensors with their known fields. What is no list or no object is for others to refuse."""
    if not isinstance(tensors, list):
        return tensors
    checked: list[Any] = []
    for index, each in enumerate(tensors):
        if not isinstance(each, Mapping):
            checked.append(each)
            continue
        at = f"{place}.{index}"
        tensor = translation.known(each, known, at)
        more = tensor.get("parameters")
        if isinstance(more, Mapping):
            tensor["parameters"] = translation.known(more, parameters, f"{at}.parameters")
        elif more is not None and place == "outputs":  # those of inputs are checked when read
            raise InvalidInput(f"{at}.parameters", more, "an object")
        checked.append(tensor)
    return checked


def _check_input(tensor: Any, place: str) -> None:
    parameters = tensor.get("parameters") if isinstance(tensor, Mapping) else None
    if not isinstance(parameters, Mapping):
        return
    kind = parameters.get("content_type")
    if kind is not None and kind not in _PLAIN:
        raise InvalidInput(f"{place}.parameters.content_type", kind, f"one of {', '.join(_PLAIN)}")
    if parameters.get("binary_data_size") is not None and "data" in tensor:
        allowed = "no data beside binary_data_size, which says that it follows the JSON"
        raise InvalidInput(f"{place}.data", "elements", allowed)


def _check_output(tensor: Any, place: str) -> None:
    parameters = (tensor.get("parameters") if isinstance(tensor, Mapping) else None) or {}
    binary = parameters.get("binary_data", False)
    if not isinstance(binary, bool):
        raise InvalidInput(f"{place}.parameters.binary_data", binary, "true or false")
