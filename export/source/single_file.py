"""A checkpoint in one file, in the layout in which SDXL was published.

Its tensors are named `model.diffusion_model.*` (UNet), `first_stage_model.*` (VAE),
`conditioner.embedders.*` (text encoders). The file holds neither configs nor a vocabulary. They are
read from a template, which is a pipeline folder; its weights are not read. Templates for SDXL base,
SDXL refiner and the embedded model come with this package, and `--config` names another one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from export.embedded import WEIGHTS
from export.errors import NotSDXLError, SourceError
from export.model import weights
from export.model.inspection import Folder
from sdxl_bento.manifest import Role

UNET, VAE = "model.diffusion_model.", "first_stage_model."
FIRST_ENCODER = "conditioner.embedders.0.transformer."
SECOND_ENCODER: Mapping[Role, str] = {
    "base": "conditioner.embedders.1.model.",
    "refiner": "conditioner.embedders.0.model.",
}
CONFIGS = Path(__file__).parent / "configs"
TEMPLATES: Mapping[Role, tuple[Path, ...]] = {
    "base": (CONFIGS / "base", WEIGHTS / "base"),
    "refiner": (CONFIGS / "refiner", WEIGHTS / "refiner"),
}

# Prefixes of tensor names by which checkpoints of other families are recognised.
_OTHERS = {
    "cond_stage_model.model.": "Stable Diffusion 2",
    "cond_stage_model.": "Stable Diffusion 1",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "edm_vpred.": "CosXL (EDM noise)",
    "edm_": "Playground 2.5 (EDM noise)",
    "down_blocks.": "a UNet alone, in diffusers' layout",
    "input_blocks.": "a UNet alone",
    "diffusion_model.": "a UNet alone",
    "decoder.": "a VAE alone",
    "text_model.": "a text encoder alone",
}  # fmt: skip

_ADAPTER = re.compile(r"[._]lora[._]|^lora_|^lycoris_|\.lora_[AB]|lora_linear_layer|\.(hada|lokr)_")


@dataclass(frozen=True)
class Checkpoint:
    """The header of a file: shapes by tensor name, and metadata.

    `keys` maps names to those in the file, if wrappers stand in front of modules there.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    keys: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read the header. Raises `SourceError` if the file is broken."""
        weights.inspect(path)
        with safe_open(path, framework="numpy") as file:
            keys = {_unwrapped(name): name for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(file.get_slice(key).get_shape()) for name, key in keys.items()}
            return cls(path, shapes, file.metadata() or {}, keys)

    def has(self, prefix: str) -> bool:
        """Whether a tensor's name starts with `prefix`."""
        return any(name.startswith(prefix) for name in self.shapes)


def _unwrapped(name: str) -> str:
    """A tensor's name without what torch.compile and DataParallel put in front of modules."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def recognise(checkpoint: Checkpoint) -> Role:
    """The role of the checkpoint. Raises `NotSDXLError` for other models, and for parts of one."""
    _refuse_adapters(checkpoint)
    _refuse_others(checkpoint)
    missing = [
        what
        for prefix, what in (
            (UNET, "UNet"), (VAE, "VAE"), ("conditioner.embedders.0.", "text encoders")
        )
        if not checkpoint.has(prefix)
    ]  # fmt: skip
    if missing:
        raise NotSDXLError(
            checkpoint.path, f"a checkpoint without {' and '.join(missing)}",
            "one with UNet, VAE and text encoders in SDXL's original layout",
        )  # fmt: skip
    if checkpoint.has(SECOND_ENCODER["base"]) and checkpoint.has(FIRST_ENCODER):
        return "base"
    if checkpoint.has(SECOND_ENCODER["refiner"]):
        return "refiner"
    raise NotSDXLError(
        checkpoint.path, "text encoders of another kind", "CLIP-L and OpenCLIP-bigG, as in SDXL"
    )


def check_role(checkpoint: Checkpoint, role: Role) -> None:
    """Raise `NotSDXLError` unless the checkpoint is a `role`."""
    actual = recognise(checkpoint)
    if actual == "refiner" and role == "base":
        raise NotSDXLError(checkpoint.path, "a refiner", "a base model; give it with --refiner")
    if actual != role:
        raise NotSDXLError(checkpoint.path, "a base model", "a refiner for --refiner")


def find_template(checkpoint: Checkpoint, role: Role, config: Folder | None) -> Folder:
    """The folder with configs for a checkpoint of these shapes: `config`, or a template.

    Raises `NotSDXLError` if `config` does not fit, or none of the templates.
    """
    signature = _signature(checkpoint)
    tried = []
    for folder in (config,) if config else map(Folder, TEMPLATES[role]):
        expected = _expected(folder)
        if signature == expected:
            return folder
        tried.append(str(expected))
    raise NotSDXLError(
        checkpoint.path, f"a UNet of {signature}",
        f"{' or '.join(tried)}"
        + ("" if config else ", or --config with the folder of a pipeline of that kind"),
    )  # fmt: skip


@dataclass(frozen=True)
class Signature:
    """The sizes by which UNets are distinguished."""

    in_channels: int
    width: int
    cross_attention: int
    added: int
    attentions: int

    def __str__(self) -> str:
        return (
            f"{self.in_channels} input channels, width {self.width}, context "
            f"{self.cross_attention}, added embedding {self.added}, {self.attentions} transformer "
            "blocks"
        )


def _signature(checkpoint: Checkpoint) -> Signature:
    shapes = checkpoint.shapes
    first = shapes.get(f"{UNET}input_blocks.0.0.weight", (0, 0))
    added = shapes.get(f"{UNET}label_emb.0.0.weight", (0, 0))
    keys = "attn2.to_k.weight"
    cross = [name for name in shapes if name.startswith(UNET) and name.endswith(keys)]
    context = shapes[cross[0]][1] if cross else 0
    return Signature(first[1], first[0], context, added[1], len(cross))


def _expected(folder: Folder) -> Signature:
    unet = folder.json("unet", "config.json")
    try:
        return Signature(
            int(unet["in_channels"]),
            int(unet["block_out_channels"][0]),
            int(unet["cross_attention_dim"]),
            int(unet["projection_class_embeddings_input_dim"]),
            _attentions(unet),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SourceError(
            folder.root / "unet" / "config.json", f"no usable {error}", "the config of an SDXL UNet"
        ) from None


def _attentions(unet: Mapping[str, Any]) -> int:
    """The number of transformer blocks of a UNet, on all levels and in the middle."""
    down = unet["down_block_types"]
    depth = unet.get("transformer_layers_per_block", 1)
    depths = depth if isinstance(depth, list) else [depth] * len(down)
    layers = int(unet["layers_per_block"])
    count = int(depths[-1])
    for kind, blocks in zip(down, depths, strict=True):
        if "CrossAttn" in kind:
            count += layers * blocks
    for kind, blocks in zip(unet["up_block_types"], reversed(depths), strict=True):
        if "CrossAttn" in kind:
            count += (layers + 1) * blocks
    return count


def _refuse_adapters(checkpoint: Checkpoint) -> None:
    marked = [name for name in checkpoint.shapes if _ADAPTER.search(name)]
    if marked:
        raise NotSDXLError(
            checkpoint.path, f"tensors of a LoRA or another adapter ({marked[0]})",
            "a whole SDXL checkpoint; an adapter is added to one with --lora",
        )  # fmt: skip


def _refuse_others(checkpoint: Checkpoint) -> None:
    whole = "a whole SDXL checkpoint"
    for prefix, what in _OTHERS.items():
        if checkpoint.has(prefix):
            raise NotSDXLError(checkpoint.path, f"tensors of {what} ({prefix}…)", whole)
    first = checkpoint.shapes.get(f"{UNET}input_blocks.0.0.weight", (0, 4))
    if len(first) > 1 and first[1] != 4:
        raise NotSDXLError(
            checkpoint.path, f"a UNet with {first[1]} input channels",
            "4 (inpainting and edit UNets take more)",
        )  # fmt: skip
