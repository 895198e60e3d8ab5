"""Networks without weights, made from their configs: to compare names and shapes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from export.errors import SourceError

if TYPE_CHECKING:
    from torch import nn


def skeleton(name: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of the component `name` with this config, which takes no memory.

    Raises `SourceError` if there is no network with such a config.
    """
    from accelerate import init_empty_weights

    try:
        with init_empty_weights():
            return _make(name, config)
    except Exception as error:  # a config can be wrong in as many ways as libraries have errors
        raise SourceError(
            f"{name}/config.json", f"no model ({error!r})"[:300], "the config of an SDXL model"
        ) from error


def _make(name: str, config: Mapping[str, Any]) -> nn.Module:
    import diffusers
    import transformers

    classes: Any = transformers
    if name == "unet":
        make: Any = diffusers.UNet2DConditionModel
        return make.from_config(dict(config))  # type: ignore[no-any-return]
    if name == "vae":
        make = diffusers.AutoencoderKL
        return make.from_config(dict(config))  # type: ignore[no-any-return]
    make = classes.CLIPTextModel if name == "text_encoder" else classes.CLIPTextModelWithProjection
    return make(classes.CLIPTextConfig(**config))  # type: ignore[no-any-return]
