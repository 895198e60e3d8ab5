"""A model in memory, with what planning and clients need to know about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdxl_bento.serving.results import ModelSummary

if TYPE_CHECKING:
    from sdxl_bento.backends.choose import Misfit
    from sdxl_bento.diffusion.plan import ModelFacts
    from sdxl_bento.diffusion.runner import Served
    from sdxl_bento.manifest import BackendInfo, SizeLimits


@dataclass(frozen=True)
class Loaded:
    """One loaded model.

    Attributes:
        name: its name in requests.
        requested_tag: its tag in the settings, where the version may be missing or `latest`.
        facts: what planning needs to know.
        served: the model and what runs it.
        info: the compiled backend that was chosen; None if the model runs eagerly.
        load_seconds: how long loading took.
        warm_up_seconds: how long warming up took.
        misfits: the backends that were tried before `info`, with the reasons.
    """

    name: str
    requested_tag: str
    facts: ModelFacts
    served: Served
    info: BackendInfo | None
    load_seconds: float
    warm_up_seconds: float = 0.0
    misfits: tuple[Misfit, ...] = ()

    @property
    def tag(self) -> str:
        """The tag in BentoML's store, with its exact version."""
        return self.served.model.tag

    @property
    def size_limits(self) -> SizeLimits:
        """The sizes that it draws."""
        return self.facts.manifest.size_limits

    def answers_to(self, name: object) -> bool:
        """Whether a client may call the model `name`.

        It may use the model's name, its exact tag, or the tag in the settings. If that tag has no
        version, `<tag>:latest` means the model, too.
        """
        names = {self.name, self.requested_tag, self.tag}
        if ":" not in self.requested_tag:
            names.add(f"{self.requested_tag}:latest")
        return isinstance(name, str) and name in names

    def summary(self, *, default: bool) -> ModelSummary:
        """What clients may know. `default`: whether requests that name no model get this one."""
        from sdxl_bento.diffusion.schedules import default_sampler, scheduler_note

        model, manifest = self.served.model, self.facts.manifest
        note = scheduler_note(self.facts.base_scheduler)
        notes = dict.fromkeys((*manifest.notes, *([note] if note else [])))
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
            unused_backends={each.label: each.reason for each in self.misfits},
            default_sampler=default_sampler(self.facts.base_scheduler),
            notes=tuple(notes),
        )
