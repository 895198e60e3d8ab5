"""Draws in this process, with the model loaded as the service would load it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from sdxl_bento.cli.drawer import InitImage, OnProgress, Result
from sdxl_bento.cli.failures import ExitCode, Failure
from sdxl_bento.cli.store import find
from sdxl_bento.config import Settings, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from sdxl_bento.cli.fields import Fields
    from sdxl_bento.pictures.publish import Task
    from sdxl_bento.serving.generator import Generation, Generator

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
            from sdxl_bento.serving.generator import Generator

            self._generator = Generator(self._settings, warm=self._warm)
            self._generator.start()
            await _loaded(self._generator)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._generator.stop()

    async def draw(
        self,
        fields: Fields,
        init_image: InitImage | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Run one call. Raises SDXLError."""
        from sdxl_bento.pictures.encode import decode
        from sdxl_bento.protocols.http.validation import parse_params

        params = parse_params(fields).model_copy(update={"model": None})  # there is but one
        if init_image is None:
            task: Task = "generate"
            generation = await self._generator.generate(params, on_progress=on_progress)
        else:
            image = await asyncio.to_thread(decode, init_image.data, self._settings.max_pixels)
            task = "refine" if init_image.refine_only else "img2img"
            work = self._generator.refine if init_image.refine_only else self._generator.generate
            generation = await work(params, image=image, on_progress=on_progress)
        return await asyncio.to_thread(_result, generation, task, self._settings)


def local_settings(model: str | None) -> Settings:
    """The service's settings, for one model only.

    Raises:
        ConfigurationError, ModelNotFound: a setting is wrong, or the store has no such model.
    """
    settings = load_settings()
    tag = find(model or settings.model).tag
    return settings.model_copy(update={"model": tag, "models": (), "drain_s": DRAIN_S})


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


def _result(generation: Generation, task: Task, settings: Settings) -> Result:
    from sdxl_bento.pictures.encode import encode
    from sdxl_bento.pictures.publish import file_text

    params = generation.params
    files, images = [], []
    for made in generation.images:
        text = file_text(generation, made, task) if settings.embed_metadata else {}
        files.append(
            encode(
                made.image, params.output_format,
                png_level=settings.png_level, quality=params.output_quality, text=text,
            )
        )  # fmt: skip
        width, height = made.image.size
        images.append(
            {"format": params.output_format, "seed": made.seed, "width": width, "height": height}
        )
    answer: dict[str, Any] = {
        "request_id": generation.request_id,
        "model": params.model,
        "images": images,
        "params": params.model_dump(mode="json"),
        "timings": {
            f"{name.removesuffix('_s')}_ms": round(seconds * 1e3, 1)
            for name, seconds in asdict(generation.timings).items()
        },
    }
    return Result(answer, tuple(files))
