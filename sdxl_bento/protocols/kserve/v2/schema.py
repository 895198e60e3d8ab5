"""V2's routes as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any

from sdxl_bento import errors
from sdxl_bento.protocols.http import errors as http
from sdxl_bento.protocols.http.envelopes import KServeError
from sdxl_bento.protocols.http.operations import (
    BINARY,
    BOOLEAN,
    CALL_HEADERS,
    DRAWS,
    INTEGER,
    JSON,
    MODEL,
    OBJECT,
    REQUEST_ID_BACK,
    STRING,
    Protocol,
    Schema,
    array_of,
    closed_object,
    header,
    media,
    nullable,
    parameter,
    ref,
    request_body,
    response,
)
from sdxl_bento.protocols.http.schemas import answer_components
from sdxl_bento.protocols.kserve.v2.answers import (
    IndexedModel,
    InferenceResult,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from sdxl_bento.protocols.kserve.v2.tensors import DATATYPES, HEADER_LENGTH

V2 = Protocol("Open Inference (V2)", KServeError)
_VERSION = parameter("version", "path", "The version in the model's tag.")
_NULLABLE_OBJECT: Schema = {"anyOf": [OBJECT, {"type": "null"}]}


def components() -> dict[str, Schema]:
    """The schemas of answers and errors."""
    server = (ServerMetadata, ServerLive, ServerReady)
    models = (ModelMetadata, ModelReady, IndexedModel)
    return answer_components(*server, *models, InferenceResult, KServeError)


def paths(params: Schema) -> dict[str, Any]:
    """The path items. `params` is the schema of the native fields."""
    return _server() | _models() | _repository()


def _server() -> dict[str, Any]:
    return {
        "/v2": V2.get(
            "Name, version and extensions.",
            response("The server.", media(JSON, ref(ServerMetadata))),
        ),
        "/v2/health/live": V2.get(
            "Is the engine alive?",
            response("It is.", media(JSON, ref(ServerLive))),
            fails=(errors.EngineDead,),
        ),
        "/v2/health/ready": V2.get(
            "Are the models loaded?",
            response("They are.", media(JSON, ref(ServerReady))),
            fails=(errors.NotReady,),
        ),
    }


def _models() -> dict[str, Any]:
    items: dict[str, Any] = {}
    fails = (errors.ModelNotFound, errors.NotReady)
    for path, parameters in (
        ("/v2/models/{model}", [MODEL]),
        ("/v2/models/{model}/versions/{version}", [MODEL, _VERSION]),
    ):
        items[path] = V2.get(
            "Inputs and outputs of a model.",
            response("The model.", media(JSON, ref(ModelMetadata))),
            parameters=parameters,
            fails=fails,
        )
        items[f"{path}/ready"] = V2.get(
            "Is a model loaded?",
            response("It is.", media(JSON, ref(ModelReady))),
            parameters=parameters,
            fails=fails,
        )
        items[f"{path}/infer"] = _infer(parameters)
    return items


def _infer(parameters: list[dict[str, Any]]) -> dict[str, Any]:
    length = parameter(
        HEADER_LENGTH,
        "header",
        "Length of the JSON in bytes, if raw tensors follow it.",
        {"type": "integer", "minimum": 0},
    )
    headers = {**REQUEST_ID_BACK, HEADER_LENGTH: header("Length of the JSON in bytes.", INTEGER)}
    prompt = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a red circle"]}
    example = {"inputs": [prompt], "parameters": {"seed": 1}}
    return V2.post(
        "Draw every row.",
        response(
            "Tensors, in the JSON or as raw bytes behind it.",
            media(JSON, ref(InferenceResult)),
            media(BINARY),
            headers=headers,
        ),
        body=request_body(media(JSON, _inference(), example), media(BINARY)),
        parameters=[*parameters, length, *CALL_HEADERS],
        fails=DRAWS,
    )


def _inference() -> Schema:
    tensor = {
        "name": STRING,
        "shape": array_of({"type": "integer", "minimum": 0}),
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "data": array_of({"type": ["string", "number", "boolean", "array"]}),
        "parameters": nullable(
            closed_object({"binary_data_size": nullable(INTEGER), "content_type": nullable(STRING)})
        ),
    }
    for_output = nullable(closed_object({"binary_data": BOOLEAN}))
    output = closed_object({"name": STRING, "parameters": for_output}, required=["name"])
    inputs = closed_object(tensor, required=["name", "shape", "datatype"])
    fields: dict[str, Schema] = {
        "id": STRING,
        "model_name": nullable(STRING),
        "inputs": array_of(inputs),
        "outputs": {"anyOf": [array_of(output), {"type": "null"}]},
        "parameters": _NULLABLE_OBJECT,
    }
    return closed_object(fields, required=["inputs"])


def _repository() -> dict[str, Any]:
    reads = (http.MalformedBody, http.BodyTooLarge, errors.InvalidInput)
    only_ready = media(JSON, closed_object({"ready": BOOLEAN}))
    call = {
        "body": request_body(
            media(JSON, closed_object({"parameters": _NULLABLE_OBJECT})), required=False
        ),
        "parameters": [MODEL],
        "fails": (*reads, errors.ModelNotFound, errors.NotReady),
    }
    return {
        "/v2/repository/index": V2.post(
            "The models of the settings and their state.",
            response("The models.", media(JSON, array_of(ref(IndexedModel)))),
            body=request_body(only_ready, required=False),
            fails=reads,
        ),
        "/v2/repository/models/{model}/load": V2.post(
            "Does nothing for a loaded model. Others cannot be loaded.",
            response("It is loaded."),
            **call,
        ),
        "/v2/repository/models/{model}/unload": V2.post(
            "Refused: models stay loaded.", response("Never."), **call
        ),
    }
