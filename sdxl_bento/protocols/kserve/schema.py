"""KServe's V1, and V2, the Open Inference Protocol."""

from __future__ import annotations

from typing import Any

from sdxl_bento import errors
from sdxl_bento.protocols.http import errors as http
from sdxl_bento.protocols.http.operations import (
    BASE64,
    BINARY,
    CALL_HEADERS,
    DRAWS,
    FLAG,
    JSON,
    MODEL,
    OBJECT,
    PICTURE_HEADERS,
    REQUEST_ID_BACK,
    TEXT,
    WHOLE,
    Protocol,
    Schema,
    answer,
    body,
    header,
    listed,
    media,
    nullable,
    only,
    parameter,
    pictures,
    some,
)
from sdxl_bento.protocols.http.schemas import KSERVE_ERROR
from sdxl_bento.protocols.kserve.v2.tensors import DATATYPES, HEADER_LENGTH

V1 = Protocol("KServe V1", KSERVE_ERROR)
V2 = Protocol("Open Inference (V2)", KSERVE_ERROR)
_VERSION = parameter("version", "path", "The version in the model's tag.")
_CIRCLE = {"prompt": "a red circle", "parameters": {"seed": 1, "num_inference_steps": 20}}


def paths(params: Schema) -> dict[str, Any]:
    """`params` is the schema of the native fields."""
    return _v1(params) | _v2_server() | _v2_models() | _v2_repository()


# V1


def _v1(params: Schema) -> dict[str, Any]:
    picture = some({"format": TEXT, "b64": BASE64, "seed": WHOLE, "image_id": nullable(TEXT)})
    prediction = some({"model_name": TEXT, "prompt": TEXT, "image": picture})
    prediction["properties"]["images"] = listed(picture, minItems=2)
    json = media(JSON, some({"predictions": listed(prediction, minItems=1)}))
    text = "A prediction for each instance; of one prompt by itself, the picture."
    return {
        "/v1/models/{model}:predict": V1.post(
            "Draw every instance, or one prompt.",
            answer(text, json, pictures(), headers=PICTURE_HEADERS),
            body=body(media(JSON, _predict_body(params), {"instances": [_CIRCLE]})),
            parameters=[MODEL, *CALL_HEADERS],
            fails=DRAWS,
        )
    }


def _predict_body(params: Schema) -> Schema:
    """An instance has the native fields beside its prompt, in `parameters`, or both."""
    fields = {**params["properties"], "parameters": {"anyOf": [OBJECT, {"type": "null"}]}}
    by_itself = only(fields)
    items = listed({"anyOf": [TEXT, by_itself]}, minItems=1)
    shared = {name: fields[name] for name in ("parameters", "slo_ms", "priority")}
    lists = [only({name: items, **shared}, required=[name]) for name in ("instances", "inputs")]
    return {"anyOf": [*lists, by_itself]}


# V2


def _v2_server() -> dict[str, Any]:
    about = some({"name": TEXT, "version": TEXT, "extensions": listed(TEXT)})
    live, ready = (media(JSON, some({name: FLAG})) for name in ("live", "ready"))
    return {
        "/v2": V2.get("Name, version and extensions.", answer("About it.", media(JSON, about))),
        "/v2/health/live": V2.get(
            "Is the engine alive?", answer("It is.", live), fails=(errors.EngineDead,)
        ),
        "/v2/health/ready": V2.get(
            "Are the models loaded?", answer("They are.", ready), fails=(errors.NotReady,)
        ),
    }


def _v2_models() -> dict[str, Any]:
    found: dict[str, Any] = {}
    tensor = some({"name": TEXT, "datatype": TEXT, "shape": listed(WHOLE)})
    about = some({"name": TEXT, "versions": listed(TEXT), "platform": TEXT})
    about["properties"] |= {"inputs": listed(tensor), "outputs": listed(tensor)}
    ready = some({"name": TEXT, "ready": FLAG})
    ask = (errors.ModelNotFound, errors.NotReady)
    for path, parameters in (
        ("/v2/models/{model}", [MODEL]),
        ("/v2/models/{model}/versions/{version}", [MODEL, _VERSION]),
    ):
        found[path] = V2.get(
            "Inputs and outputs of a model.",
            answer("About it.", media(JSON, about)),
            parameters=parameters,
            fails=ask,
        )
        found[f"{path}/ready"] = V2.get(
            "Is a model loaded?",
            answer("It is.", media(JSON, ready)),
            parameters=parameters,
            fails=ask,
        )
        found[f"{path}/infer"] = _infer(parameters)
    return found


def _infer(parameters: list[dict[str, Any]]) -> dict[str, Any]:
    length = parameter(
        HEADER_LENGTH,
        "header",
        "Bytes of the JSON, where raw tensors follow it.",
        {"type": "integer", "minimum": 0},
    )
    headers = {**REQUEST_ID_BACK, HEADER_LENGTH: header("Bytes of the JSON.", WHOLE)}
    prompt = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a red circle"]}
    example = {"inputs": [prompt], "parameters": {"seed": 1}}
    return V2.post(
        "Draw every row.",
        answer(
            "Tensors, in the JSON or as raw bytes behind it.",
            media(JSON, _infer_answer()),
            media(BINARY),
            headers=headers,
        ),
        body=body(media(JSON, _infer_body(), example), media(BINARY)),
        parameters=[*parameters, length, *CALL_HEADERS],
        fails=DRAWS,
    )


def _infer_body() -> Schema:
    parameters = {"anyOf": [OBJECT, {"type": "null"}]}
    tensor = {
        "name": TEXT,
        "shape": listed({"type": "integer", "minimum": 0}),
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "data": listed({"type": ["string", "number", "boolean", "array"]}),
        "parameters": parameters,
    }
    wanted = some({"name": TEXT, "parameters": parameters})
    wanted["required"] = ["name"]
    inputs = some(tensor, required=["name", "shape", "datatype"])
    fields: dict[str, Schema] = {
        "id": TEXT,
        "inputs": listed(inputs),
        "outputs": {"anyOf": [listed(wanted), {"type": "null"}]},
        "parameters": parameters,
    }
    return some(fields, required=["inputs"])


def _infer_answer() -> Schema:
    tensor = some({"name": TEXT, "datatype": TEXT, "shape": listed(WHOLE)})
    tensor["properties"] |= {"data": listed({}), "parameters": OBJECT}
    fields = {"model_name": TEXT, "model_version": TEXT, "id": TEXT, "outputs": listed(tensor)}
    return some(fields, required=["model_name", "model_version", "outputs"])


def _v2_repository() -> dict[str, Any]:
    model = some(dict.fromkeys(("name", "version", "state", "reason"), TEXT))
    reads = (http.MalformedBody, http.BodyTooLarge, errors.InvalidInput)
    ready = body(media(JSON, some({"ready": FLAG}, required=[])), required=False)
    load = body(media(JSON, OBJECT), required=False)
    loads = {"body": load, "parameters": [MODEL]}
    found = (*reads, errors.ModelNotFound, errors.NotReady)
    return {
        "/v2/repository/index": V2.post(
            "The models of the settings and their state.",
            answer("The models.", media(JSON, listed(model))),
            body=ready,
            fails=reads,
        ),
        "/v2/repository/models/{model}/load": V2.post(
            "Nothing to do for a loaded model; others can't be loaded.",
            answer("It is loaded."),
            fails=found,
            **loads,
        ),
        "/v2/repository/models/{model}/unload": V2.post(
            "Refused: models stay.", answer("Never."), fails=found, **loads
        ),
    }
