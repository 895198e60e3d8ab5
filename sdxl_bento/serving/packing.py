"""The models in BentoML's store that this service needs, and those that a bento contains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bentoml
from bentoml.exceptions import NotFound
from bentoml.models import BentoModel

from sdxl_bento.config import DEFAULT_MODEL
from sdxl_bento.errors import ConfigurationError

if TYPE_CHECKING:
    from sdxl_bento.config import Settings


class RequiredModel(BentoModel):  # type: ignore[misc]  # untyped upstream
    """A model that has to be in the local store. `bentoml build` packs it into the bento.

    BentoML's own class would look for a missing model in BentoCloud, and only report that this
    failed.
    """

    def resolve(self, *args: Any, **kwargs: Any) -> bentoml.Model:
        """The stored model. Raises NotFound, with the command that creates the model."""
        self._check()
        stored: bentoml.Model = super().resolve(*args, **kwargs)
        return stored

    def to_info(self, *args: Any, **kwargs: Any) -> Any:
        """What a bento records about the model. Raises NotFound as `resolve` does."""
        self._check()
        return super().to_info(*args, **kwargs)

    def _check(self) -> None:
        if self.stored is None:
            raise NotFound(missing_model(str(self.tag)))


def missing_model(tag: str) -> str:
    """The message for a missing model: what the store holds, and how to create the model."""
    name = tag.partition(":")[0]
    source = "embedded" if name == DEFAULT_MODEL.partition(":")[0] else "<folder or hub id>"
    command = f"python -m export {source}" + ("" if source == "embedded" else f" --name {name}")
    tags = sorted(str(model.tag) for model in bentoml.models.list())
    content = f"It holds {', '.join(tags)}." if tags else "It is empty."
    return (
        f"there is no model {tag} in BentoML's model store. {content} "
        f"Make the model with `{command}`, or name another in SDXL_MODEL."
    )


def with_packed_models(settings: Settings, bento: bentoml.Bento | None) -> Settings:
    """The settings with the models of a bento, unless the environment names other models."""
    if bento is None or {"model", "models"} & settings.model_fields_set:
        return settings
    tags = [str(info.tag) for info in bento.info.all_models]
    if not tags:
        return settings
    return settings.model_copy(update={"model": tags[0], "models": tuple(tags[1:])})


def require_models(settings: Settings) -> None:
    """Raises NotFound unless every model of the settings is in the store."""
    for tag in settings.model_tags:
        RequiredModel(tag)._check()


def check_aliases(settings: Settings) -> None:
    """Raises ConfigurationError if an alias stands for a model that the settings don't name."""
    names = {tag.partition(":")[0] for tag in settings.model_tags}
    for alias, target in settings.model_aliases:
        if target.partition(":")[0] not in names:
            raise ConfigurationError(
                f"SDXL_MODEL_ALIASES has {alias}={target}, but the models of SDXL_MODEL and "
                f"SDXL_MODELS are {', '.join(settings.model_tags)}"
            )
