"""LoRA files that are different adapters, for benchmarks that need more than a model brings."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sdxl_bento.serving.loading import folder_of


def write_variants(tag: str, folder: Path, count: int) -> list[str]:
    """Write `count` variants of the adapters of an exported model; returns their names.

    Shapes and ranks are those of the originals, in turns; every number is a little different.
    """
    originals = sorted((folder_of(tag) / "loras").glob("*.safetensors"))
    if not originals:
        raise ValueError(f"the model {tag} has no adapters")
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    names = []
    for index in range(count):
        with safe_open(originals[index % len(originals)], framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        names.append(f"variant-{index}")
        changed = {name: _varied(tensor, generator) for name, tensor in tensors.items()}
        save_file(changed, folder / f"{names[-1]}.safetensors", metadata)
    return names


def _varied(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.dim() < 2:  # alpha
        return tensor
    noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * 0.05
    return (tensor.float() + noise).to(tensor.dtype)
