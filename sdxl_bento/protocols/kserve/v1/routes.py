"""KServe's V1 protocol: POST /v1/models/{model}:predict. See docs/guides/kserve.md.

`v1_models` has the GET routes, which are OpenAI's, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import InvalidInput, SDXLError
from sdxl_bento.params import GenerateParams
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.http.answers import base64_of, cache_header, picture_response
from sdxl_bento.protocols.http.api import api_of
from sdxl_bento.protocols.http.bodies import MAX_BATCH_BYTES, Call, read_call
from sdxl_bento.protocols.http.errors import error_response, logged
from sdxl_bento.protocols.http.validation import parse_params
from sdxl_bento.protocols.kserve.instances import draw_all, most_instances

PROTOCOL = "kserve_v1"
LISTS = ("instances", "inputs")
SHARED = ("parameters", "slo_ms", "priority")  # beside the list: for every instance


def routes() -> list[Route]:
    """For `app.web_app`."""
    return [Route("/v1/models/{model}:predict", _predict, methods=["POST"])]


async def _predict(request: Request) -> Response:
    api = api_of(request)
    arrived = replace(await read_call(request, MAX_BATCH_BYTES), protocol=PROTOCOL)
    calls = _calls(arrived, request.path_params["model"], most_instances(api))
    try:
        answers = await draw_all(api, calls)
    except Exception as error:  # whatever it is, the client gets our error body
        return error_response(logged(error, arrived.request_id), arrived.request_id)
    if _is_raw(arrived) and len(answers[0].pictures) == 1 and not arrived.wants_json:
        return picture_response(answers[0])
    headers = {"X-Request-Id": arrived.request_id, "Cache-Control": "no-store"}
    headers |= cache_header(answers)
    return JSONResponse({"predictions": [_prediction(each) for each in answers]}, headers=headers)


def _calls(arrived: Call, model: str, most: int) -> list[Call]:
    """One call for each instance. If any is wrong, one call that says so."""
    try:
        if arrived.error is not None:
            raise arrived.error
        instances = _instances(arrived.fields, model, most)
    except SDXLError as error:
        return [replace(arrived, error=error)]
    if len(instances) == 1:
        return [replace(arrived, validated=instances[0])]
    return [
        replace(arrived, request_id=f"{arrived.request_id}.{index}", validated=params)
        for index, params in enumerate(instances)
    ]


def _is_raw(call: Call) -> bool:
    """Whether the body is one prompt by itself, which is answered by the picture itself."""
    return isinstance(call.fields, Mapping) and not any(name in call.fields for name in LISTS)


def _instances(body: object, model: str, most: int) -> list[GenerateParams]:
    """The parameters of every instance. Raises InvalidInput, with the instance's place."""
    if not isinstance(body, Mapping):
        raise InvalidInput("body", body, 'an object such as {"instances": ["a red circle"]}')
    name = next((name for name in LISTS if name in body), None)
    if name is None:
        return [parse_params(_flat(body, {}, model))]
    shared = {key: value for key, value in body.items() if key != name}
    if unknown := [key for key in shared if key not in SHARED]:
        allowed = f"{name} and, for all of them, {', '.join(SHARED)}"
        raise InvalidInput(unknown[0], shared[unknown[0]], allowed)
    items = body[name]
    if not isinstance(items, list) or not 1 <= len(items) <= most:
        shown = f"{len(items)} items" if isinstance(items, list) else items
        raise InvalidInput(name, shown, f"a list of 1 to {most} prompts or objects with a prompt")
    common = _flat(shared, {}, model)
    return [_instance(item, common, model, f"{name}.{index}") for index, item in enumerate(items)]


def _instance(item: object, common: Mapping[str, Any], model: str, place: str) -> GenerateParams:
    """The parameters of one instance of a list. Its errors say where it is."""
    try:
        return parse_params(_flat(item, common, model))
    except InvalidInput as error:
        field = place if error.field == "body" else f"{place}.{error.field}"
        raise InvalidInput(field, error.value, error.allowed) from None


def _flat(item: object, common: Mapping[str, Any], model: str) -> dict[str, Any]:
    """`{"prompt", "parameters": {…}}`, or all of it flat, or the prompt alone → native fields."""
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, Mapping):
        raise InvalidInput("body", item, 'an object such as {"prompt": "a red circle"}')
    parameters = item.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise InvalidInput("parameters", parameters, "an object with the fields of a call")
    given = {key: value for key, value in item.items() if key != "parameters"}
    fields = {**common, **given, **(parameters or {})}
    if fields.setdefault("model", model) != model:
        raise InvalidInput("model", fields["model"], f"{model}, as the address says, or nothing")
    return fields


def _prediction(answer: Answer) -> dict[str, Any]:
    params = answer.generation.params
    pictures = [_image(picture) for picture in answer.pictures]
    prediction = {"model_name": params.model, "prompt": params.prompt, "image": pictures[0]}
    # `num_images` is not of this protocol: an instance has one prediction, however many it drew.
    return prediction if len(pictures) == 1 else prediction | {"images": pictures}


def _image(picture: Picture) -> dict[str, Any]:
    return {
        "format": picture.output_format,
        "b64": base64_of(picture.data),
        "seed": picture.seed,
        "image_id": picture.image_id,
    }
