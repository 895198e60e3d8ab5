"""The loaded models, and the one place where a model is looked up by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sdxl_bento.errors import ConfigurationError, ModelNotFound, NotReady, readable
from sdxl_bento.serving.adapter_files import AdapterFiles
from sdxl_bento.serving.results import LoraSummary, ModelSummary

if TYPE_CHECKING:
    from sdxl_bento.diffusion.lora.pool import LoraPool
    from sdxl_bento.params import ResolvedParams
    from sdxl_bento.serving.loaded import Loaded

_MOST_KEYS = 20


class ModelRegistry:
    """The models that this process serves. The first one is the default. It is empty at first.

    Attributes:
        adapter_files: keeps the adapters as the disk has them.
    """

    def __init__(self, state: Callable[[], str], aliases: Iterable[tuple[str, str]] = ()) -> None:
        """
        Args:
            state: gives the engine's state, which errors name while there is no model.
            aliases: further names of models, each with the name or tag of its model.
        """
        self._state = state
        self._aliases = dict(aliases)
        self._models: Mapping[str, Loaded] = {}
        self.adapter_files = AdapterFiles(self._pools)

    def publish(self, models: Mapping[str, Loaded]) -> None:
        """Serve these models from now on, by their names.

        Raises:
            ConfigurationError: an alias stands for no model, or is the name of one.
        """
        for alias, target in self._aliases.items():
            if not any(model.answers_to(target) for model in models.values()):
                wrong, names = f"there is no model {target}", f"; there are {', '.join(models)}"
            elif any(model.answers_to(alias) for model in models.values()):
                wrong, names = f"{alias} is the name of a model", ""
            else:
                continue
            raise ConfigurationError(f"SDXL_MODEL_ALIASES has {alias}={target}, but {wrong}{names}")
        self._models = models

    def __bool__(self) -> bool:
        return bool(self._models)

    def loaded(self) -> list[Loaded]:
        """The models, the default one first."""
        return list(self._models.values())

    def find(self, name: object) -> Loaded | None:
        """The model that a client calls `name`, or None. If `name` is None: the default model.

        A model answers to its name, to its exact tag, to its tag in the settings, and to the
        aliases that the settings give it.
        """
        if isinstance(name, str):
            name = self._aliases.get(name, name)
        models = self.loaded()
        if name is None:
            return models[0] if models else None
        return next((model for model in models if model.answers_to(name)), None)

    def get(self, name: str | None = None) -> Loaded:
        """The model that a client calls `name`. Raises ModelNotFound, NotReady."""
        if not self._models:
            raise NotReady(self._state())
        model = self.find(name)
        if model is None:
            raise ModelNotFound(str(name), list(self._models))
        return model

    def name_of(self, name: object) -> str | None:
        """The name of the model that a client calls `name`; None if there is no such model.

        `name` may be any value, as a client may send anything.
        """
        model = self.find(name)
        return model.name if model is not None else None

    def summaries(self) -> list[ModelSummary]:
        """What clients may know about the models, the default one first."""
        return [model.summary(default=not index) for index, model in enumerate(self.loaded())]

    def ready(self, name: str) -> ModelSummary:
        """The summary of a model that can draw now. Raises ModelNotFound, NotReady."""
        if (state := self._state()) != "ready":
            raise NotReady(state)
        model = self.get(name)
        return model.summary(default=model is self.loaded()[0])

    def defaults(self, name: str | None = None) -> ResolvedParams:
        """The parameters of a call that sets none itself. Raises ModelNotFound, NotReady."""
        from sdxl_bento.diffusion.plan import resolve
        from sdxl_bento.order import Order
        from sdxl_bento.params import GenerateParams

        order = Order("generate", GenerateParams(prompt=""))
        return resolve(order, self.get(name).facts, seed=0).params

    def sides(self) -> tuple[int, int] | None:
        """The least and the most pixels of a side that any model draws; None without models."""
        limits = [model.size_limits for model in self.loaded()]
        if not limits:
            return None
        return min(each.min for each in limits), max(each.max for each in limits)

    def adapters(self) -> list[LoraSummary]:
        """The adapters of all models, by name, as `adapter_files` has seen them last."""
        summaries: dict[str, LoraSummary] = {}
        for model in self.loaded():
            for lora in model.served.adapters.listed():
                other = summaries.get(lora.name)
                summaries[lora.name] = LoraSummary(
                    name=lora.name,
                    models=(*(other.models if other else ()), model.name),
                    size_bytes=lora.size_bytes,
                    loaded=lora.loaded or (other is not None and other.loaded),
                    pinned=lora.pinned,
                    skipped=_some(lora.skipped) or (other.skipped if other else ()),
                )
        return [summaries[name] for name in sorted(summaries)]

    def _pools(self) -> list[LoraPool]:
        return [model.served.adapters for model in self.loaded()]


def _some(keys: Sequence[str]) -> tuple[str, ...]:
    """As many as a list can show."""
    more = len(keys) - _MOST_KEYS
    shown = map(readable, keys[:_MOST_KEYS])
    return (*shown, f"and {more} more") if more > 0 else tuple(shown)
