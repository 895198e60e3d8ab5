"""A model in memory, with what planning and clients need to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdxl_bento.serving.results import ModelSummary

if TYPE_CHECKING:
    from sdxl_bento.diffusion.plan import ModelFacts
    from sdxl_bento.diffusion.runner import Served
    from sdxl_bento.manifest import BackendInfo


@dataclass(frozen=True)
class Loaded:
    """One loaded model.

    Attributes:
        name: what requests call it.
        asked: its tag as the settings have it, which may say `latest` or nothing of a version;
            `served.model.tag` is exact.
        facts: what planning needs.
        served: the model and what runs it.
        info: the compiled backend that was chosen; None where the model runs eagerly.
        load_seconds, warm_up_seconds: what its start took.
    """

    name: str
    asked: str
    facts: ModelFacts
    served: Served
    info: BackendInfo | None
    load_seconds: float
    warm_up_seconds: float = 0.0

    @property
    def tag(self) -> str:
        """The exact tag in BentoML's store."""
        return self.served.model.tag

    def answers_to(self, name: object) -> bool:
        """Whether a client may call the model `name`: its name, its tag, or the one asked for.

        A model that was asked for without a version is its name's latest.
        """
        names = {self.name, self.asked, self.tag}
        if ":" not in self.asked:
            names.add(f"{self.asked}:latest")
        return isinstance(name, str) and name in names

    def summary(self, *, default: bool) -> ModelSummary:
        """What a client may know of it. `default`: it is the model of requests that name none."""
        model, manifest = self.served.model, self.facts.manifest
        return ModelSummary(
            name=self.name,
            tag=model.tag,
            default=default,
            default_width=manifest.base.width,
            default_height=manifest.base.height,
            size_multiple=manifest.size_limits.multiple,
            has_refiner=model.refiner is not None,
            dtype=str(model.placement.dtype).removeprefix("torch."),
            backend=self.info.label if self.info is not None else self.served.backend.name,
            device=str(model.placement.device),
            load_seconds=round(self.load_seconds, 3),
            warm_up_seconds=round(self.warm_up_seconds, 3),
        )
