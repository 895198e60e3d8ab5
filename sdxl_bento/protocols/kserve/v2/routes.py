"""V2, the Open Inference Protocol: POST /v2/models/{model}/infer. See docs/guides/kserve.md.

A row of the batch is a call of its own. `repository` has the routes that ask about models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sdxl_bento.drawing import Answer
from sdxl_bento.errors import SDXLError
from sdxl_bento.pictures.cache import CacheControl
from sdxl_bento.protocols.http.answers import cache_header
from sdxl_bento.protocols.http.api import API, api_of
from sdxl_bento.protocols.http.bodies import MAX_BATCH_BYTES, Call, cache_control
from sdxl_bento.protocols.http.caller import Caller, limited, request_id_of
from sdxl_bento.protocols.http.errors import UnsupportedBody, error_response, logged
from sdxl_bento.protocols.kserve.instances import draw_all, most_instances
from sdxl_bento.protocols.kserve.v2.fields import OUTPUTS, Inference, understood
from sdxl_bento.protocols.kserve.v2.tensors import HEADER_LENGTH, Output

PROTOCOL = "open_inference"


def routes() -> list[Route]:
    """For `app.web_app`."""
    return [
        Route("/v2/models/{model}/infer", _infer, methods=["POST"]),
        Route("/v2/models/{model}/versions/{version}/infer", _infer, methods=["POST"]),
    ]


def model_of(request: Request) -> str:
    """The model's name, or its tag where the address has a version."""
    return ":".join(request.path_params.values())


async def _infer(request: Request) -> Response:
    api = api_of(request)
    request_id = "invalid"
    inference: Inference | None = None
    error: SDXLError | None = None
    try:
        request_id = request_id_of(request.headers)
        most = most_instances(api)
        inference = understood(await _body(request), request.headers, model_of(request), most)
    except SDXLError as exc:
        error = exc
    caller = Caller(request.receive)
    if inference is None:  # still run, to be counted
        call = Call(request_id, True, {"model": model_of(request)}, caller, error, PROTOCOL)
        calls = [call]
    else:
        calls = _calls(inference, request_id, caller, cache_control(request.headers))
    try:
        answers = await draw_all(api, calls)
        assert inference is not None
        return _response(api, request_id, inference, answers)
    except Exception as exc:  # whatever it is, the client gets our error body
        return error_response(logged(exc, request_id), request_id)


def _calls(
    inference: Inference, request_id: str, caller: Caller, control: CacheControl
) -> list[Call]:
    """One call for each row."""
    wants_pixels = any(output.name == "pixels" for output in inference.outputs)
    calls = []
    for index, params in enumerate(inference.rows):
        name = request_id if len(inference.rows) == 1 else f"{request_id}.{index}"
        # A cached JPEG or WebP has lost the pixels that it was made of.
        exact = params.output_format == "png"
        allowed = control if exact else replace(control, read=control.read and not wants_pixels)
        calls.append(
            Call(name, True, None, caller, protocol=PROTOCOL, cache=allowed, validated=params)
        )
    return calls


async def _body(request: Request) -> bytes:
    """The body, whatever its content type: Triton's client sends none with binary data."""
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise UnsupportedBody("Content-Encoding", coding, "identity: nothing compressed")
    return await limited(request, MAX_BATCH_BYTES).body()


def _response(
    api: API, request_id: str, inference: Inference, answers: Sequence[Answer]
) -> Response:
    model = api.generator.models.ready(answers[0].order.params.model)
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for wanted in inference.outputs:
        output = _output(wanted.name, answers)
        if wanted.binary:
            described, data = output.as_binary()
            tensors.append(described)
            raw.append(data)
        else:
            tensors.append(output.as_json())
    named = {} if inference.id is None else {"id": inference.id}
    version = model.tag.partition(":")[2]
    document = {"model_name": model.name, "model_version": version, **named, "outputs": tensors}
    header = json.dumps(document).encode()
    headers = {"X-Request-Id": request_id, "Cache-Control": "no-store", **cache_header(answers)}
    if not raw:
        return Response(header, headers=headers, media_type="application/json")
    headers[HEADER_LENGTH] = str(len(header))
    body = b"".join([header, *raw])
    return Response(body, headers=headers, media_type="application/octet-stream")


def _output(name: str, answers: Sequence[Answer]) -> Output:
    """[rows], or [rows, num_images] where that is over 1; pixels have [height, width, 3] more."""
    pictures = [picture for answer in answers for picture in answer.pictures]
    each = len(answers[0].pictures)
    shape = (len(answers),) if each == 1 else (len(answers), each)
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
