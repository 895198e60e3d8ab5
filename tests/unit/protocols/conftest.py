"""All routes in this process, over an engine that draws nothing."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bentoml.exceptions import BentoMLException
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from sdxl_bento.app import web_app
from sdxl_bento.config import Settings
from sdxl_bento.order import Order, Resolved
from sdxl_bento.pictures.location import open_store
from sdxl_bento.pictures.publish import Pictures
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.middleware import ErrorBodies
from sdxl_bento.protocols.native.fields import BatchBody, GenerateBody, ImageBody
from sdxl_bento.protocols.native.routes import draw, draw_batch
from sdxl_bento.protocols.native.stream import stream
from sdxl_bento.serving.metrics import metrics
from tests.support import conformity
from tests.support.fake_generator import FakeGenerator


class RecordingGenerator(FakeGenerator):
    """Keeps the orders, so that tests can see what was asked for."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.orders: list[Order] = []

    def resolve(self, order: Order) -> Resolved:
        self.orders.append(order)
        return super().resolve(order)


class Bed:
    """The app, what it draws with, and a client of it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.settings = Settings(
            **{"store": str(folder), "model": "fake:1", "max_pixels": 96 * 96} | settings
        )
        self.generator = RecordingGenerator(self.settings)
        self.generator.load()
        self.pictures = Pictures(self.settings, open_store(self.settings))
        generator: Any = self.generator
        self.api = API(generator, self.settings, self.pictures, metrics())
        self.app = web_app()
        self.app.state.api, self.app.state.page = self.api, None
        _add_native(self.app, self.api)
        self.app.add_middleware(ErrorBodies)

    @property
    def last(self) -> dict[str, Any]:
        """What the last call asked for, without what it left at its default."""
        return self.generator.orders[-1].params.model_dump(exclude_defaults=True)


def _add_native(app: Starlette, api: API) -> None:
    """The routes that are methods of the BentoML service."""

    def route(path: str, body: Any, endpoint: Any) -> None:
        async def handle(request: Request) -> Response:
            try:
                arguments = await body.from_http_request(request, None)
            except BentoMLException as error:  # BentoML answers it like this
                return JSONResponse([{"error": str(error)}], error.error_code)
            answer: Response = await endpoint(arguments)
            return answer

        app.add_route(path, handle, methods=["POST"])

    async def batch(arguments: Any) -> Response:
        return JSONResponse(await draw_batch(api, arguments.calls))

    route("/generate", GenerateBody, lambda each: draw(api, each.call))
    route("/generate/stream", GenerateBody, lambda each: stream(api, each.call))
    route("/img2img", ImageBody, lambda each: draw(api, each.call, "img2img"))
    route("/refine", ImageBody, lambda each: draw(api, each.call, "refine"))
    route("/generate_batch", BatchBody, batch)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path / "store")


@pytest.fixture
def http(bed: Bed) -> Iterator[TestClient]:
    """A client for which every answer is compared with the OpenAPI document."""
    with TestClient(bed.app, raise_server_exceptions=False) as client:
        client.event_hooks["response"] = [conformity.check]
        yield client


def png(size: tuple[int, int] = (64, 72)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, "PNG")
    return out.getvalue()


def png_base64(size: tuple[int, int] = (64, 72)) -> str:
    return base64.b64encode(png(size)).decode()


def events(text: str) -> list[tuple[str, Any]]:
    """The names and data of the events in a stream."""
    parsed = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if lines:
            parsed.append((lines["event"], json.loads(lines["data"])))
    return parsed
