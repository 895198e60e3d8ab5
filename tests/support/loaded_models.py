"""Loaded models without weights, and a generator that runs them on a fake device."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sdxl_bento.diffusion.lora.pool import Listed
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.diffusion.plan import ModelFacts
from sdxl_bento.errors import AdapterNotFound
from sdxl_bento.manifest import BackendInfo, Manifest
from sdxl_bento.order import InputImage, Order, PictureRole, Resolved, Task
from sdxl_bento.params import GenerateParams
from sdxl_bento.serving.loaded import Loaded
from tests.support.manifests import manifest

SCHEDULER: Mapping[str, object] = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
CPU = Placement(torch.device("cpu"), torch.float32, "cpu")


@dataclass
class FakePool:
    """The surface of `LoraPool`: adapters by name with the size of their files."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    in_memory: Collection[str] = ()
    pinned: Collection[str] = ()
    skipped: tuple[str, ...] = ()
    hits: int = 0
    loads: int = 0
    failures: int = 0

    def names(self) -> list[str]:
        return list(self.sizes)

    def listed(self) -> list[Listed]:
        return [
            Listed(name, size, name in self.in_memory, name in self.pinned, self.skipped)
            for name, size in self.sizes.items()
        ]

    def fingerprints(self, names: Iterable[str]) -> dict[str, str]:
        wanted = sorted(names)
        for name in wanted:
            if name not in self.sizes:
                raise AdapterNotFound(name)
        return {name: f"hash of {name}" for name in wanted}


class FakeBackend:
    """Counts how often it was warmed up."""

    name = "eager"

    def __init__(self) -> None:
        self.warmed = 0

    def warm_up(self) -> None:
        self.warmed += 1


def loaded(
    name: str = "tiny",
    *,
    folder: Path = Path("/nowhere"),
    refiner: bool = False,
    pool: FakePool | None = None,
    info: BackendInfo | None = None,
    placement: Placement = CPU,
    cache: tuple[int, int] = (0, 0),
    description: Manifest | None = None,
) -> Loaded:
    """A model with native pictures of 128 x 128; `cache`: hits and misses of encoded prompts."""
    described = description or manifest(name=name)
    model = SimpleNamespace(
        name=name,
        tag=f"{name}:v1",
        folder=folder,
        manifest=described,
        placement=placement,
        refiner=object() if refiner else None,
    )
    prompts = SimpleNamespace(hits=cache[0], misses=cache[1])
    served: Any = SimpleNamespace(
        model=model,
        backend=FakeBackend(),
        adapters=pool or FakePool(),
        conditioner=SimpleNamespace(cache=prompts),
    )
    facts = ModelFacts(name, described, SCHEDULER, SCHEDULER if refiner else None)
    return Loaded(name, f"{name}:latest", facts, served, info, 1.23456, 0.98765)


def order(task: Task = "generate", source: InputImage | None = None, **params: Any) -> Order:
    """An order as a protocol makes it."""
    fields = {"prompt": "a red circle", "seed": 5, **params}
    pictures: dict[PictureRole, InputImage] = {} if source is None else {"image": source}
    return Order(task, GenerateParams.model_validate(fields), pictures)


def resolved(model: Loaded, task: Task = "generate", **params: Any) -> Resolved:
    """The same, as `model` would draw it."""
    from sdxl_bento.diffusion.plan import resolve

    return resolve(order(task, **params), model.facts, seed=0)
