"""Warm-up: run each stage before the first request, so that kernels are ready and costs are known.

The measured costs are stored beside the model, in one profile for each device, and are corrected as
the engine runs.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_bento.diffusion.plan import plan, resolve
from sdxl_bento.manifest import PROFILES
from sdxl_bento.order import Order
from sdxl_bento.params import GenerateParams
from sdxl_bento.serving.requests import to_request

if TYPE_CHECKING:
    from sdxl_bento.diffusion.model import Placement
    from sdxl_bento.engine.core import Engine
    from sdxl_bento.engine.request import Request
    from sdxl_bento.serving.loaded import Loaded

logger = logging.getLogger(f"bentoml.{__name__}")
STEPS = 2  # the first forward of a kind is slower than all others, so there has to be a second


def warm_up(engine: Engine, models: Mapping[str, Loaded], placement: Placement) -> dict[str, float]:
    """Run every compiled shape, and draw pictures with each model by each of its UNets.

    Returns the seconds that each model took, by its name.

    Raises:
        SDXLError: a model cannot draw these pictures.
    """
    seconds = {}
    for loaded in models.values():
        begin = time.perf_counter()
        loaded.served.backend.warm_up()
        profile = _profile(loaded, placement)
        _read(engine, profile, loaded.name)
        for request in _requests(loaded):
            engine.submit(request)
            while engine.step():
                pass
            if request.error is not None:
                raise request.error
        _write(engine, profile, loaded.name)
        seconds[loaded.name] = time.perf_counter() - begin
    return seconds


def keep_profiles(engine: Engine, models: Mapping[str, Loaded], placement: Placement) -> None:
    """Store what the engine has learned about its costs."""
    for loaded in models.values():
        _write(engine, _profile(loaded, placement), loaded.name)


def _requests(loaded: Loaded) -> list[Request]:
    """One request without guidance, one with it, and one with the refiner if there is one."""
    variants = [{"guidance_scale": 1.0}, {"guidance_scale": 5.0}]
    if loaded.facts.refiner_scheduler is not None:
        variants.append({"guidance_scale": 5.0, "refiner": True, "high_noise_frac": 0.5})
    requests = []
    for index, options in enumerate(variants):
        fields = {"prompt": "warm-up", "num_inference_steps": STEPS, "sampler": "euler", **options}
        order = Order("generate", GenerateParams.model_validate(fields))
        job = plan(resolve(order, loaded.facts, seed=0), loaded.facts)
        requests.append(to_request(f"warm-up/{loaded.name}/{index}", job, 0.0, None))
    return requests


def _profile(loaded: Loaded, placement: Placement) -> Path:
    """The file of the profile for a device, backend and precision."""
    name = placement.device.type
    if name == "cuda":
        import torch

        name = torch.cuda.get_device_name(placement.device).lower().replace(" ", "-")
    dtype = str(placement.dtype).removeprefix("torch.")
    backend = loaded.info.label if loaded.info is not None else "eager"
    return loaded.served.model.folder / PROFILES / f"{name}-{backend}-{dtype}.json"


def _read(engine: Engine, path: Path, model: str) -> None:
    try:
        cells = json.loads(path.read_text())
        engine.cost.load({**cell, "model": model} for cell in cells)
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the cost profile %s is not used: %s", path, error)


def _write(engine: Engine, path: Path, model: str) -> None:
    cells = [cell for cell in engine.cost.dump() if cell["model"] == model]
    try:
        path.parent.mkdir(exist_ok=True)
        scratch = path.with_suffix(f".{time.monotonic_ns()}.tmp")
        scratch.write_text(json.dumps(cells, indent=1))
        scratch.replace(path)  # atomic, since several workers may write it
    except OSError as error:
        logger.info("the cost profile is not stored: %s", error)
