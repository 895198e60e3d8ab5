"""The BentoML service: settings → engine → routes. `bentoml serve` starts it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.exceptions import BentoMLConfigException
from bentoml.validators import ContentType
from starlette.middleware.cors import CORSMiddleware

from sdxl_bento import scratch
from sdxl_bento.app import gate_around, web_app
from sdxl_bento.config import load_settings, remember_supervisor
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.pictures.location import check_store, open_store
from sdxl_bento.pictures.publish import Pictures
from sdxl_bento.protocols.http.api import API
from sdxl_bento.protocols.http.backstop import replace_timeouts
from sdxl_bento.protocols.http.bodies import Call
from sdxl_bento.protocols.http.connections import (
    Connections,
    guard_connections,
    most_connections,
)
from sdxl_bento.protocols.http.cross_origin import CrossOriginProtection, cors_options
from sdxl_bento.protocols.http.logs import ignore_callers_errors, keep_callers_out
from sdxl_bento.protocols.http.masking import Unmask
from sdxl_bento.protocols.http.middleware import Failures
from sdxl_bento.protocols.native.fields import BatchBody, GenerateBody, ImageBody
from sdxl_bento.protocols.native.routes import draw, draw_batch
from sdxl_bento.protocols.native.stream import stream
from sdxl_bento.serving.capacity import Capacity
from sdxl_bento.serving.generator import Generator
from sdxl_bento.serving.lifecycle import announce, report_load
from sdxl_bento.serving.memory import give_back
from sdxl_bento.serving.metrics import metrics
from sdxl_bento.serving.metrics_folder import use_own_folder_in_command
from sdxl_bento.serving.packing import (
    RequiredModel,
    check_aliases,
    require_models,
    with_packed_models,
)
from sdxl_bento.serving.parent import end_with_parent, replace_dead_workers_at_once
from sdxl_bento.serving.port import require_free_port_of_command
from sdxl_bento.serving.shutdown import GRACE_S, Shutdown
from sdxl_bento.ui.page import PAGES, Page, has_page

try:
    # So early, because BentoML looks for the folder of its metrics right after this.
    require_free_port_of_command()
    use_own_folder_in_command()
    SETTINGS = load_settings()
except ConfigurationError as error:
    raise BentoMLConfigException(str(error)) from None

if bentoml.server_context.worker_index is not None:
    end_with_parent()
WEB = web_app()
ImageFile = Annotated[Path, ContentType("image/*")]


@bentoml.service(
    name="sdxl-bento",
    workers=SETTINGS.workers,
    # The engine's own admission and timeout take effect first. BentoML's are a backstop.
    traffic={
        "timeout": SETTINGS.timeout_s + 30,
        "max_concurrency": SETTINGS.workers
        * (SETTINGS.max_running + SETTINGS.max_queue + 64 + PAGES),
    },
)
@bentoml.asgi_app(WEB, path="/")
class SDXLService:
    """Stable Diffusion XL: text to image, image to image, refiner and LoRAs."""

    def __init__(self) -> None:
        self.settings = with_packed_models(SETTINGS, SDXLService.bento)
        worker = bentoml.server_context.worker_index or 1
        self.generator = Generator(self.settings, worker_index=worker - 1)
        self.pictures = Pictures(self.settings, open_store(self.settings), metrics())
        self.api = API(self.generator, self.settings, self.pictures, metrics())
        BatchBody.rules = self.api.rules
        self.page = Page(self.settings) if has_page(self.settings) else None
        WEB.state.api, WEB.state.page = self.api, self.page

    @bentoml.on_deployment
    @staticmethod
    def supervise() -> None:
        """Prepare this process, before any worker starts, for being their supervisor."""
        remember_supervisor()
        replace_dead_workers_at_once()
        scratch.remove_dead()

    @bentoml.on_deployment
    @staticmethod
    def check_models() -> None:
        """Check, before any worker starts, that the models of the settings are in the store."""
        settings = with_packed_models(SETTINGS, SDXLService.bento)
        require_models(settings)
        try:
            check_aliases(settings)
        except ConfigurationError as error:
            raise BentoMLConfigException(str(error)) from None

    @bentoml.on_deployment
    @staticmethod
    def check_image_store() -> None:
        """Check, before any worker starts, that the image store can be written to."""
        try:
            check_store(SETTINGS)
        except ConfigurationError as error:
            raise BentoMLConfigException(str(error)) from None

    @bentoml.on_startup
    async def start(self) -> None:
        """Start the engine. Its thread loads the models, so that probes are answered meanwhile."""
        ignore_callers_errors()
        if not self.settings.log_error_messages:
            keep_callers_out(asyncio.get_running_loop())
        self.generator.start()
        drain_s = self.settings.drain_s
        Shutdown(self.drain, self.close, within_s=drain_s + GRACE_S).on_signal()
        self.tasks = [
            asyncio.create_task(report_load(self.generator, metrics())),
            asyncio.create_task(give_back(self.settings.memory_trim_s)),
        ]
        if self.page is not None:
            self.tasks.append(asyncio.create_task(self.page.serve(self.api)))
        if bentoml.server_context.worker_index in (None, 1):
            self.tasks.append(asyncio.create_task(announce(self.generator, SDXLService.url)))

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Wait for running calls, unless a signal has had that done, then release everything."""
        await self.drain()
        for task in self.tasks:
            task.cancel()
        if self.page is not None:
            await self.page.aclose()
        await asyncio.to_thread(self.api.close)
        await self.close()

    async def drain(self) -> None:
        """Let running calls finish, then close the page, whose connections would stay open."""
        await self.generator.stop()
        if self.page is not None:
            self.page.close()

    async def close(self) -> None:
        """Finish what has begun in the image store, which is then unavailable."""
        await asyncio.to_thread(self.pictures.close)

    async def __is_ready__(self) -> bool:
        return self.generator.state == "ready"

    async def __is_alive__(self) -> bool:
        return self.generator.state != "dead"

    @bentoml.api(input_spec=GenerateBody)
    async def generate(self, call: Call) -> ImageFile:
        """Text to image: the picture itself for one, JSON with base64 for several."""
        return await draw(self.api, call)

    @bentoml.api(
        input_spec=BatchBody,
        batchable=True,
        max_batch_size=min(SETTINGS.batch_max_size, Capacity.of(SETTINGS).pictures),
        max_latency_ms=SETTINGS.batch_max_latency_ms,
    )
    async def generate_batch(self, calls: list[Call]) -> list[dict[str, Any]]:
        """Many calls in one: a list of results, each with its pictures or its error."""
        return await draw_batch(self.api, calls)

    @bentoml.api(input_spec=GenerateBody, route="/generate/stream")
    async def generate_stream(self, call: Call) -> ImageFile:
        """Text to image with progress, as server-sent events."""
        return await stream(self.api, call)

    @bentoml.api(input_spec=ImageBody)
    async def img2img(self, call: Call) -> ImageFile:
        """Image to image with the base model; `strength` is how much of the picture may change."""
        return await draw(self.api, call, "img2img")

    @bentoml.api(input_spec=ImageBody)
    async def refine(self, call: Call) -> ImageFile:
        """Let the refiner redraw an uploaded picture, or one of this server (`image_id`)."""
        return await draw(self.api, call, "refine")


METHODS = [method.route for method in SDXLService.apis.values()]
# The first one added is the outermost.
SDXLService.add_asgi_middleware(Unmask)
SDXLService.add_asgi_middleware(Failures)
if SETTINGS.cors_origins:
    SDXLService.add_asgi_middleware(CORSMiddleware, **cors_options(SETTINGS.cors_origins))
SDXLService.add_asgi_middleware(CrossOriginProtection, trusted=SETTINGS.cors_origins)
SDXLService.models.extend(RequiredModel(tag) for tag in SETTINGS.model_tags)
replace_timeouts()
guard_connections(
    Connections(
        SETTINGS.receive_timeout_s,
        SETTINGS.max_connections_per_client,
        most_connections(),
        lambda app: gate_around(app, WEB, METHODS, SETTINGS),
        lambda reason: metrics().turned_away(reason),
    )
)
