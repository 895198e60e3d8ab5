"""Contender (a): diffusers' pipeline in a plain handler, one request at a time.

What most tutorials show. The lock is not optional: a pipeline keeps its scheduler's state.

    python -m benchmarks.contenders.plain TAG PORT
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.contenders.pipeline import Ask, draw, load


def make_app(tag: str) -> Starlette:
    pipeline = load(tag)
    lock = asyncio.Lock()

    async def generate(request: Request) -> Response:
        ask = Ask.model_validate_json(await request.body())
        async with lock:
            [png] = await asyncio.to_thread(draw, pipeline, [ask])
        return Response(png, media_type="image/png")

    async def ready(_: Request) -> Response:
        return Response()

    routes = [Route("/generate", generate, methods=["POST"]), Route("/readyz", ready)]
    return Starlette(routes=routes)


if __name__ == "__main__":
    _, tag, port = sys.argv
    uvicorn.run(make_app(tag), host="127.0.0.1", port=int(port), log_level="warning")
