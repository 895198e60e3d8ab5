"""The check that the components of a pipeline fit each other and form SDXL, by their configs.

SDXL's UNet (arXiv 2307.01952, section 2) is conditioned on the joined hidden states of its text
encoders by cross-attention, and on the pooled embedding plus six time ids (refiner: five) by
`addition_embed_type="text_time"`. These numbers must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export.errors import NotSDXLError, SourceError
from sdxl_bento.layout import TIME_IDS as TIME_IDS  # re-exported
from sdxl_bento.manifest import PredictionType, Role


@dataclass(frozen=True)
class Geometry:
    """Sizes that follow from the configs.

    `width` and `height` are the native size in pixels. Sides of which every level of the UNet has
    whole cells are multiples of `multiple` pixels.
    """

    prediction_type: PredictionType
    width: int
    height: int
    latent_channels: int
    vae_scale_factor: int
    multiple: int


def check_geometry(root: Path, role: Role, configs: Mapping[str, dict[str, Any]]) -> Geometry:
    """Raise `NotSDXLError` or `SourceError` unless the components make one SDXL pipeline."""
    _check_unet(root / "unet" / "config.json", configs["unet"])
    _check_conditioning(root / "unet" / "config.json", role, configs)
    vae, unet = configs["vae"], configs["unet"]
    where = root / "vae" / "config.json"
    channels = integer(where, vae, "latent_channels", 4)
    if channels != unet["in_channels"]:
        raise NotSDXLError(
            where, f"{channels} latent channels", f"the UNet's {unet['in_channels']}"
        )
    scale = 2 ** (len(_levels(where, vae)) - 1)
    side = integer(root / "unet" / "config.json", unet, "sample_size") * scale
    return Geometry(
        prediction_type=_prediction(root / "scheduler" / "scheduler_config.json", configs),
        width=side,
        height=side,
        latent_channels=channels,
        vae_scale_factor=scale,
        multiple=scale * 2 ** (len(_levels(root / "unet" / "config.json", unet)) - 1),
    )


def integer(where: Path, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number from a config."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SourceError(where, f"{key}: {value!r}", "a whole number above zero")
    return value


def _levels(where: Path, config: Mapping[str, Any]) -> list[int]:
    channels = config.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise SourceError(where, f"block_out_channels: {channels!r}", "a list of channel counts")
    return channels


def _check_unet(where: Path, unet: Mapping[str, Any]) -> None:
    if unet.get("addition_embed_type") != "text_time":
        raise NotSDXLError(
            where, f"addition_embed_type: {unet.get('addition_embed_type')!r}",
            "'text_time', which marks the UNet of SDXL",
        )  # fmt: skip
    for key in ("in_channels", "out_channels"):
        if unet.get(key) != 4:
            raise NotSDXLError(
                where, f"{key}: {unet.get(key)!r}", "4 (inpainting and edit UNets take more)"
            )
    if unet.get("time_cond_proj_dim") is not None:
        raise NotSDXLError(
            where, "a UNet with its own guidance embedding (time_cond_proj_dim), as full LCM has",
            "a plain UNet; use the LCM LoRA with a base model",
        )  # fmt: skip
    for key in ("class_embed_type", "encoder_hid_dim_type"):
        if unet.get(key) is not None:
            raise NotSDXLError(where, f"{key}: {unet[key]!r}", "none, as in SDXL")


def _check_conditioning(where: Path, role: Role, configs: Mapping[str, dict[str, Any]]) -> None:
    unet = configs["unet"]
    encoders = [name for name in ("text_encoder", "text_encoder_2") if name in configs]
    hidden = sum(
        integer(where.parent.parent / name / "config.json", configs[name], "hidden_size")
        for name in encoders
    )
    cross = unet.get("cross_attention_dim")
    widths = cross if isinstance(cross, list) and cross else [cross]
    if any(width != hidden for width in widths):
        raise NotSDXLError(
            where, f"cross_attention_dim: {cross!r}",
            f"{hidden}, the joined hidden size of {' and '.join(encoders)}",
        )  # fmt: skip
    second = where.parent.parent / "text_encoder_2" / "config.json"
    pooled = integer(second, configs["text_encoder_2"], "projection_dim")
    each = integer(where, unet, "addition_time_embed_dim")
    needed = pooled + TIME_IDS[role] * each
    if unet.get("projection_class_embeddings_input_dim") != needed:
        raise NotSDXLError(
            where,
            "projection_class_embeddings_input_dim: "
            f"{unet.get('projection_class_embeddings_input_dim')!r}",
            f"{needed} = projection_dim {pooled} + {TIME_IDS[role]} time ids x {each} "
            f"for a {role} model",
        )


def _prediction(
    where: Path, configs: Mapping[str, dict[str, Any]]
) -> Literal["epsilon", "v_prediction"]:
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    if prediction == "epsilon":
        return "epsilon"
    if prediction == "v_prediction":
        return "v_prediction"
    raise NotSDXLError(where, f"prediction_type: {prediction!r}", "'epsilon' or 'v_prediction'")
