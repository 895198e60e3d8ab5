"""Draws in this process, with the model loaded as the service would load it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Self

from sdxl_bento.cli.drawer import InitImage, OnProgress, Result
from sdxl_bento.cli.failures import ExitCode, Failure
from sdxl_bento.cli.store import find
from sdxl_bento.config import Settings, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from sdxl_bento.cli.fields import Fields
    from sdxl_bento.order import Order
    from sdxl_bento.params import GenerateParams
    from sdxl_bento.serving.generator import Generator

DRAIN_S = 5.0  # there are no other clients to wait for


class LocalDrawer:
    """Draws with a model that it loads on entry, which takes as long as a server's start."""

    def __init__(
        self, model: str | None, console: Console, *, warm: bool, verbose: bool = False
    ) -> None:
        self._model = model
        self._console = console
        self._warm = warm
        self._verbose = verbose

    async def __aenter__(self) -> Self:
        self._settings = local_settings(self._model)
        show_log(self._console, self._verbose)
        with self._console.status(f"Loading {self._settings.model}"):
            from sdxl_bento.drawing import Drawing
            from sdxl_bento.pictures.publish import Pictures
            from sdxl_bento.serving.generator import Generator

            self._generator = Generator(self._settings, warm=self._warm)
            self._pictures = Pictures(self._settings, store=None)
            self._drawing = Drawing(self._generator, self._settings, self._pictures)
            self._generator.start()
            await _loaded(self._generator)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._generator.stop()
        self._pictures.close()

    async def draw(
        self,
        fields: Fields,
        init_image: InitImage | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Run one call. Raises SDXLError."""
        from sdxl_bento.order import Order
        from sdxl_bento.protocols.http.validation import parse_params
        from sdxl_bento.protocols.native.answers import answer_json

        params = parse_params(fields).model_copy(update={"model": None})  # there is but one
        order = Order("generate", params)
        if init_image is not None:
            order = await asyncio.to_thread(self._redrawing, params, init_image)
        answer = await self._drawing.draw(order, on_progress=on_progress)
        body = answer_json(answer, with_files=False)
        for described in (body, *body["images"]):  # nothing is stored, so nothing has an id
            described.pop("image_id", None)
        del body["id"]
        return Result(body, tuple(picture.data for picture in answer.pictures))

    def _redrawing(self, params: GenerateParams, init_image: InitImage) -> Order:
        from sdxl_bento.order import InputImage, Order
        from sdxl_bento.pictures.decode import decode

        image = decode(init_image.data, self._settings.max_pixels)
        return Order(init_image.task, params, {"image": InputImage.of(image, init_image.data)})


def local_settings(model: str | None) -> Settings:
    """The service's settings, for one model only.

    Raises:
        ConfigurationError, ModelNotFound: a setting is wrong, or the store has no such model.
    """
    settings = load_settings()
    tag = find(model or settings.model).tag
    return settings.model_copy(
        update={
            "model": tag,
            "models": (),
            "model_aliases": (),
            "drain_s": DRAIN_S,
            "result_cache": False,
        }
    )


class _Lines(logging.Handler):
    """Prints the log through the console, which keeps it apart from the progress bars."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        from rich.markup import escape

        text = f"{record.levelname.capitalize()}: {self.format(record)}"
        self._console.print(escape(text))


def show_log(console: Console, verbose: bool) -> None:
    """Show the package's warnings on the console, or its whole log if `verbose`.

    Every logger of the package is a child of `bentoml`, whose handlers this replaces.
    """
    handler = _Lines(console)
    handler.setLevel(logging.INFO if verbose else logging.WARNING)
    # The command reports a failure at its end; its traceback is for those who ask for the log.
    handler.addFilter(lambda record: verbose or not record.exc_info)
    logger = logging.getLogger("bentoml")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


async def _loaded(generator: Generator) -> None:
    while generator.state in ("new", "loading"):  # noqa: ASYNC110  another thread changes it
        await asyncio.sleep(0.02)
    if generator.state != "ready":
        reason = generator.state_reason.removeprefix("ConfigurationError: ")
        message = f"the model cannot be loaded: {reason}"
        raise Failure.of(ExitCode.FAILED, "not_loaded", message)
