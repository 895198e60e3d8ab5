"""Conversion of a checkpoint file to a pipeline folder, with diffusers' conversion of names.

Each component is converted separately, from its own tensors only, because diffusers distinguishes
the two text encoders by their width, which fails for some models. Nothing is loaded from the
network, and weights keep their dtype. The result must have exactly the tensors, with the shapes,
that the component's config requires.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from export.errors import NotSDXLError
from export.model.inspection import Folder
from export.model.layout import COMPONENTS, KINDS
from export.model.skeleton import skeleton
from export.source.selection import INDEX
from export.source.single_file import FIRST_ENCODER, SECOND_ENCODER, UNET, VAE, Checkpoint
from sdxl_bento.manifest import Role

if TYPE_CHECKING:
    from torch import Tensor

Weights = dict[str, "Tensor"]

# Tensors of some files that no model has: buffers, and state of the training.
_LEFT_OUT = ("position_ids", "logit_scale", "model_ema.", "v_pred", "ztsnr")


def unpack(checkpoint: Checkpoint, role: Role, template: Folder, target: Path) -> None:
    """Write the pipeline that `checkpoint` holds into `target`, with the configs of `template`.

    The vocabulary is not written if the template has none. Raises `NotSDXLError` if the tensors
    are not those of the configs.
    """
    target.mkdir(parents=True)
    shutil.copyfile(template.file(INDEX), target / INDEX)
    for name in COMPONENTS[role]:
        (target / name).mkdir()
        kind = KINDS[name]
        for file in dict.fromkeys((kind.config, *kind.extra_files)):
            if file in template.names(name):
                shutil.copyfile(template.file(name, file), target / name / file)
        if kind.stem:
            _unpack_weights(checkpoint, role, name, target / name)


def _unpack_weights(checkpoint: Checkpoint, role: Role, name: str, target: Path) -> None:
    from safetensors.torch import save_file

    config = Folder(target).json("config.json")
    prefix = _prefix(name, role)
    tensors = _take(checkpoint, prefix)
    try:
        converted = _convert(name, tensors, config, prefix)
    except (KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise NotSDXLError(
            checkpoint.path, f"a {name} that cannot be converted ({error!r})", "SDXL's own layout"
        ) from error
    _check(checkpoint, name, converted, config)
    stem = KINDS[name].stem
    save_file(
        {key: tensor.contiguous() for key, tensor in converted.items()},
        target / f"{stem}.safetensors",
        metadata={"format": "pt"},
    )


def _prefix(name: str, role: Role) -> str:
    prefixes = {"unet": UNET, "vae": VAE, "text_encoder": FIRST_ENCODER}
    return prefixes.get(name) or SECOND_ENCODER[role]


def _take(checkpoint: Checkpoint, prefix: str) -> Weights:
    with safe_open(checkpoint.path, framework="pt") as file:
        return {
            key: file.get_tensor(checkpoint.keys.get(key, key))
            for key in checkpoint.shapes
            if key.startswith(prefix) and not any(part in key for part in _LEFT_OUT)
        }


def _convert(name: str, tensors: Weights, config: Mapping[str, Any], prefix: str) -> Weights:
    from diffusers.loaders import single_file_utils as utils

    functions: Any = utils  # without types of its own
    if name == "unet":
        converted: Weights = functions.convert_ldm_unet_checkpoint(tensors, config)
    elif name == "vae":
        converted = functions.convert_ldm_vae_checkpoint(tensors, config)
    elif name == "text_encoder":
        converted = functions.convert_ldm_clip_checkpoint(tensors)
    else:
        tensors[f"{prefix}text_projection"]  # must exist: diffusers reads its size
        converted = functions.convert_open_clip_checkpoint(None, tensors, prefix=prefix)
    return converted


def _check(
    checkpoint: Checkpoint, name: str, converted: Weights, config: Mapping[str, Any]
) -> None:
    """Compare names and shapes with those of an empty model."""
    needed = {_plain(key): shape for key, shape in _shapes(name, config).items()}
    shapes = {_plain(key): tuple(tensor.shape) for key, tensor in converted.items()}
    missing, extra = sorted(needed.keys() - shapes.keys()), sorted(shapes.keys() - needed.keys())
    wrong = sorted(key for key in needed.keys() & shapes.keys() if needed[key] != shapes[key])
    for keys, what in (
        (missing, "lacks"), (extra, "has too much:"), (wrong, "has in another shape:")
    ):  # fmt: skip
        if keys:
            raise NotSDXLError(
                checkpoint.path, f"a {name} that {what} {keys[0]} and {len(keys) - 1} more",
                "the tensors of its config; --config names the folder of another one",
            )  # fmt: skip


def _plain(key: str) -> str:
    """A name without the level that transformers 5.6 dropped in the first encoder."""
    return key.removeprefix("text_model.")


def _shapes(name: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors of an empty model of this config."""
    state = skeleton(name, config).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
