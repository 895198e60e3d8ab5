"""V1's route as the OpenAPI document describes it."""

from __future__ import annotations

from typing import Any

from sdxl_bento.protocols.http.envelopes import KServeError
from sdxl_bento.protocols.http.operations import (
    CALL_HEADERS,
    DRAWS,
    JSON,
    MODEL,
    OBJECT,
    PICTURE_HEADERS,
    STRING,
    Protocol,
    Schema,
    array_of,
    closed_object,
    media,
    picture_content,
    ref,
    request_body,
    response,
)
from sdxl_bento.protocols.http.schemas import answer_components
from sdxl_bento.protocols.kserve.v1.answers import Predictions
from sdxl_bento.protocols.kserve.v1.fields import LISTS, SHARED

V1 = Protocol("KServe V1", KServeError)
_CIRCLE = {"prompt": "a red circle", "parameters": {"seed": 1, "num_inference_steps": 20}}


def components() -> dict[str, Schema]:
    """The schemas of answers and errors."""
    return answer_components(Predictions, KServeError)


def paths(params: Schema) -> dict[str, Any]:
    """The path items. `params` is the schema of the native fields."""
    text = "A prediction for each instance. One prompt without a list is answered by its picture."
    return {
        "/v1/models/{model}:predict": V1.post(
            "Draw every instance, or one prompt.",
            response(
                text,
                media(JSON, ref(Predictions)),
                picture_content(),
                headers=PICTURE_HEADERS,
            ),
            body=request_body(media(JSON, _body(params), {"instances": [_CIRCLE]})),
            parameters=[MODEL, *CALL_HEADERS],
            fails=DRAWS,
        )
    }


def _body(params: Schema) -> Schema:
    """An instance has the native fields beside its prompt, in `parameters`, or both."""
    fields = {**params["properties"], "parameters": {"anyOf": [OBJECT, {"type": "null"}]}}
    single = closed_object(fields)
    instances = array_of({"anyOf": [STRING, single]}, minItems=1)
    shared = {name: fields[name] for name in SHARED}
    lists = [closed_object({name: instances, **shared}, required=[name]) for name in LISTS]
    return {"anyOf": [*lists, single]}
