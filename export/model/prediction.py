"""What a model predicts: the noise (epsilon) or a velocity (v-prediction, arXiv 2202.00512).

The weights look alike, and the wrong choice draws noise. Trainers say it in the header of a file in
several spellings, or by tensors that are nothing but marks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from export.errors import NotSDXLError, SourceError
from sdxl_bento.manifest import PredictionType

OPTION = "--prediction-type epsilon or v_prediction"
ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

_EPSILON = {"epsilon", "eps", "epspred", "epsilonprediction", "noise", "e"}
_VELOCITY = {
    "v", "vpred", "vprediction", "velocity", "velocityprediction", "vparam", "vparameterization",
}  # fmt: skip
_HINT = re.compile(r"v[-_ .]?pred|v[-_ .]?param", re.IGNORECASE)
_V_MARK, _ZERO_MARK = "v_pred", "ztsnr"


@dataclass(frozen=True)
class Stated:
    """What a file says. `note` is what the user should know of it, or empty."""

    prediction: PredictionType | None
    zero_terminal_snr: bool
    note: str = ""


def parse(value: object) -> PredictionType | None:
    """The prediction type in any of its spellings; None if it is none of them."""
    if not isinstance(value, str):
        return None
    plain = re.sub(r"[^a-z]", "", value.lower())
    if plain in _EPSILON:
        return "epsilon"
    return "v_prediction" if plain in _VELOCITY else None


def stated(
    where: object,
    tensors: Collection[str],
    metadata: Mapping[str, str],
    chosen: PredictionType | None = None,
) -> Stated:
    """What the names of a file's tensors and its header say.

    Marks among the tensors count for more than the header, which merging programs copy blindly.

    Args:
        where: the file, for messages.
        tensors: names of all tensors.
        metadata: of the safetensors header.
        chosen: what the user has said; then the file may say anything.

    Raises:
        SourceError: the header says something unknown, or contradicts itself.
    """
    said = _said(metadata)
    marked = {name.rpartition(".")[2] for name in tensors}
    zero = _ZERO_MARK in marked or metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    if chosen is not None:
        return Stated(chosen, zero)
    texts = ", ".join(f"{key}: {text!r:.60}" for key, (text, _) in said.items())
    found = {prediction for _, prediction in said.values()}
    if _V_MARK in marked:
        note = ""
        if found - {"v_prediction"}:
            note = f"the tensor v_pred marks v-prediction, which is taken; the header has {texts}"
        return Stated("v_prediction", zero, note)
    if None in found or len(found) > 1:
        raise SourceError(where, f"{texts} in its header", OPTION)
    return Stated(next(iter(found), None), zero)


def hint(name: str, prediction: PredictionType) -> str:
    """A note if a model's name suggests another prediction type than it is taken to have."""
    if prediction == "v_prediction" or not _HINT.search(name):
        return ""
    return (
        f"the name {name} suggests v-prediction, but nothing in the model says so; it is taken "
        "for epsilon. If its pictures are noise, export it with --prediction-type v_prediction"
    )


def scheduler_changes(
    where: object,
    config: Mapping[str, Any],
    chosen: PredictionType | None,
    zero_terminal_snr: bool | None,
) -> dict[str, Any]:
    """What has to change in a scheduler's config: spellings, and what the user has said.

    Raises `NotSDXLError` if the config has an unknown prediction type and the user has said none.
    """
    changes: dict[str, Any] = {}
    value = config.get("prediction_type", "epsilon")
    prediction = chosen or parse(value)
    if prediction is None:
        raise NotSDXLError(where, f"prediction_type: {value!r}", OPTION)
    if prediction != value:
        changes["prediction_type"] = prediction
    if zero_terminal_snr is not None and zero_terminal_snr != bool(
        config.get("rescale_betas_zero_snr")
    ):
        changes |= ZERO_TERMINAL_SNR if zero_terminal_snr else {"rescale_betas_zero_snr": False}
    return changes


def _said(metadata: Mapping[str, str]) -> dict[str, tuple[str, PredictionType | None]]:
    """Key of the header → its text, and what it stands for (None: unknown)."""
    said: dict[str, tuple[str, PredictionType | None]] = {}
    for key in ("modelspec.prediction_type", "prediction_type", "ss_prediction_type"):
        text = metadata.get(key, "")
        if text.strip().lower() not in ("", "none", "null", "unknown"):
            said[key] = text, parse(text)
    text = metadata.get("ss_v_parameterization", "")
    if text.lower() in ("true", "false"):
        said["ss_v_parameterization"] = (
            text,
            "v_prediction" if text.lower() == "true" else "epsilon",
        )
    return said
