"""KServe's V1 protocol: POST /v1/models/{model}:predict. See docs/guides/kserve.md.

Its GET routes of models have the same addresses as OpenAI's and are served by `openai.routes`.
"""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sdxl_bento.errors import SDXLError
from sdxl_bento.protocols.http.answers import cache_header, picture_response, warning_header
from sdxl_bento.protocols.http.api import API, api_of
from sdxl_bento.protocols.http.bodies import MAX_BATCH_BYTES, Call, read_call
from sdxl_bento.protocols.http.errors import error_response, logged
from sdxl_bento.protocols.http.translation import Translation
from sdxl_bento.protocols.kserve.cloud_events import refuse_events
from sdxl_bento.protocols.kserve.instances import check_capacity, draw_all, max_instances
from sdxl_bento.protocols.kserve.v1.answers import response_body
from sdxl_bento.protocols.kserve.v1.fields import instances_of, is_single, list_of

PROTOCOL = "kserve_v1"


def routes() -> list[Route]:
    """For `app.web_app`."""
    return [Route("/v1/models/{model}:predict", _predict, methods=["POST"])]


async def _predict(request: Request) -> Response:
    api = api_of(request)
    body = replace(await read_call(request, MAX_BATCH_BYTES), protocol=PROTOCOL)
    try:
        refuse_events(request.headers)
    except SDXLError as error:
        body = replace(body, error=error)
    calls = _calls(api, body, request.path_params["model"])
    try:
        answers = await draw_all(api, calls)
    except Exception as error:  # every error is answered in the protocol's format
        return error_response(logged(error, body.request_id), body.request_id)
    if is_single(body.fields) and len(answers[0].pictures) == 1 and not body.wants_json:
        return picture_response(answers[0])
    headers = {"X-Request-Id": body.request_id, "Cache-Control": "no-store"}
    headers |= cache_header(answers) | warning_header(answers)
    return JSONResponse(response_body(answers), headers=headers)


def _calls(api: API, body: Call, model: str) -> list[Call]:
    """One call for each instance. If any is wrong, one call with the error, which is counted."""
    try:
        if body.error is not None:
            raise body.error
        translation = Translation(api.rules, sent=dict(body.headers))
        instances = instances_of(body.fields, model, max_instances(api), translation)
        params = [instance.params for instance in instances]
        check_capacity(api, list_of(body.fields) or "body", params)
    except SDXLError as error:
        return [replace(body, error=error)]
    names = [f"{body.request_id}.{index}" for index in range(len(instances))]
    return [
        replace(
            body,
            request_id=body.request_id if len(instances) == 1 else name,
            validated=instance.params,
            translation=instance.translation,
        )
        for name, instance in zip(names, instances, strict=True)
    ]
