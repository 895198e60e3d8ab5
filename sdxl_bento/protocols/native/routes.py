"""The native routes, which BentoML calls. See docs/guides/native.md."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from sdxl_bento.order import Task
from sdxl_bento.protocols.http.answers import answer_headers, picture_response
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.errors import error_response, logged
from sdxl_bento.protocols.native.answers import answer_json, error_json


async def draw(api: API, call: Call, task: Task = "generate") -> Response:
    """POST /generate, /img2img, /refine. Errors are answered, never raised.

    One picture is answered by its file. Several pictures, or one if the client accepts
    `application/json`, are answered as JSON.
    """
    try:
        answer = await api.run(call, task)
    except Exception as error:  # every error is answered in the protocol's format
        return error_response(logged(error, call.request_id), call.request_id)
    if call.wants_json or len(answer.pictures) > 1:
        return JSONResponse(answer_json(answer), headers=answer_headers(answer))
    picture = answer.pictures[0]
    name = f"{picture.image_id or call.request_id}.{picture.output_format}"
    return picture_response(answer, {"Content-Disposition": f'inline; filename="{name}"'})


async def draw_batch(api: API, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """POST /generate_batch: one result for each call, a `NativeAnswer` or a `BatchError`."""

    async def result(call: Call) -> dict[str, Any]:
        try:
            return answer_json(await api.run(call))
        except Exception as error:  # the other calls of the batch are not affected
            return error_json(error, call.request_id)

    return list(await asyncio.gather(*map(result, calls)))
