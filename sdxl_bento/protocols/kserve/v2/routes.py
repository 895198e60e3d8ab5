"""V2, the Open Inference Protocol: POST /v2/models/{model}/infer. See docs/guides/kserve.md.

Each row of the batch is a call of its own. The routes that ask about models are in `repository`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import SDXLError
from sdxl_bento.pictures.cache import CacheControl
from sdxl_bento.protocols.http.answers import cache_header, warning_header
from sdxl_bento.protocols.http.api import API, api_of
from sdxl_bento.protocols.http.bodies import MAX_BATCH_BYTES, Call, cache_control, refuse_compressed
from sdxl_bento.protocols.http.caller import Caller, limited, request_id_of, whole_body
from sdxl_bento.protocols.http.errors import error_response, logged
from sdxl_bento.protocols.http.off_loop import off_loop
from sdxl_bento.protocols.http.translation import Translation
from sdxl_bento.protocols.kserve.cloud_events import refuse_events
from sdxl_bento.protocols.kserve.instances import check_capacity, draw_all, max_instances
from sdxl_bento.protocols.kserve.v2.answers import inference_result
from sdxl_bento.protocols.kserve.v2.fields import Inference, read_inference
from sdxl_bento.protocols.kserve.v2.tensors import HEADER_LENGTH

PROTOCOL = "open_inference"


def routes() -> list[Route]:
    """For `app.web_app`."""
    return [
        Route("/v2/models/{model}/infer", _infer, methods=["POST"]),
        Route("/v2/models/{model}/versions/{version}/infer", _infer, methods=["POST"]),
    ]


def model_of(request: Request) -> str:
    """The model's name, or its tag if the address contains a version."""
    return ":".join(request.path_params.values())


async def _infer(request: Request) -> Response:
    api = api_of(request)
    request_id = "invalid"
    inference: Inference | None = None
    error: SDXLError | None = None
    try:
        request_id = request_id_of(request.headers)
        translation, most = Translation(api.rules), max_instances(api)
        body, headers = await _body(request), request.headers
        inference = await off_loop(
            len(body), read_inference, body, headers, model_of(request), most, translation
        )
        check_capacity(api, "inputs", inference.rows)
    except SDXLError as exc:
        inference, error = None, exc
    caller = Caller(request.receive)
    if inference is None:  # it is run all the same, so that it is counted
        call = Call(request_id, True, {"model": model_of(request)}, caller, error, PROTOCOL)
        calls = [call]
    else:
        calls = _calls(inference, request_id, caller, cache_control(request.headers))
    try:
        answers = await draw_all(api, calls)
        assert inference is not None
        return _response(api, request_id, inference, answers)
    except Exception as exc:  # every error is answered in the protocol's format
        return error_response(logged(exc, request_id), request_id)


def _calls(
    inference: Inference, request_id: str, caller: Caller, control: CacheControl
) -> list[Call]:
    """One call for each row."""
    wants_pixels = any(output.name == "pixels" for output in inference.outputs)
    calls = []
    rows = zip(inference.rows, inference.translations, strict=True)
    for index, (params, translation) in enumerate(rows):
        name = request_id if len(inference.rows) == 1 else f"{request_id}.{index}"
        cache = control
        if wants_pixels and params.output_format != "png":
            cache = replace(control, read=False)  # the pixels cannot be read from a lossy file
        call = Call(name, True, None, caller, protocol=PROTOCOL, cache=cache)
        calls.append(replace(call, validated=params, translation=translation))
    return calls


async def _body(request: Request) -> bytes:
    """The body. Its content type is not checked: Triton's client sends none with binary data."""
    refuse_events(request.headers)
    refuse_compressed(request.headers)
    return await whole_body(limited(request, MAX_BATCH_BYTES))


def _response(
    api: API, request_id: str, inference: Inference, answers: Sequence[Answer]
) -> Response:
    model = api.generator.models.ready(answers[0].order.params.model)
    result, raw = inference_result(inference, model, answers)
    header = json.dumps(result).encode()
    headers = {"X-Request-Id": request_id, "Cache-Control": "no-store"}
    headers |= cache_header(answers) | warning_header(answers)
    if not any(output.binary for output in inference.outputs):
        return Response(header, headers=headers, media_type="application/json")
    headers[HEADER_LENGTH] = str(len(header))
    return Response(header + raw, headers=headers, media_type="application/octet-stream")
