"""Weights of a component for graphs that were compiled without them.

A compiled graph of `inductor` names the tensors it needs, each by a `Recipe`. They are made from
the component's safetensors once for each device, however many graphs ask for them: a UNet and its
variant with slots share one set.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from sdxl_bento.errors import ArtifactMismatch, ConfigurationError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Recipe:
    """How to make one tensor.

    Attributes:
        keys: tensors of the safetensors files, joined along their first side if several.
        dtype: as torch names it, "bfloat16".
        shape, stride: as the graph was compiled for.
        values: "plain" for the tensor itself; "int8" or "fp8" for the numbers of its quantized
            form, "int8-scale" or "fp8-scale" for the scales of its rows.
    """

    keys: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    values: str = "plain"

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Recipe:
        return cls(
            tuple(fields["keys"]),
            fields["dtype"],
            tuple(fields["shape"]),
            tuple(fields["stride"]),
            fields.get("values", "plain"),
        )


class SharedWeights:
    """The tensors of one component folder on one device, made when they are first asked for."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._tensors: dict[Recipe, torch.Tensor] = {}

    def make(self, recipes: Mapping[str, Recipe]) -> dict[str, torch.Tensor]:
        """A tensor for each recipe, by the same names. Keep this object while they are used.

        Raises:
            ConfigurationError: the folder has no safetensors, or lacks a tensor.
            ArtifactMismatch: a tensor has another shape than the graph was compiled for.
        """
        missing = [recipe for recipe in recipes.values() if recipe not in self._tensors]
        if missing:
            self._read(missing)
        return {name: self._tensors[recipe] for name, recipe in recipes.items()}

    def _read(self, recipes: list[Recipe]) -> None:
        from safetensors import safe_open

        paths = sorted(self._folder.glob("*.safetensors"))
        if not paths:
            raise ConfigurationError(
                f"{self._folder}: no .safetensors file, which the compiled parts take their "
                "weights from; export the model again"
            )
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
            files = {key: file for file in opened for key in file.keys()}  # noqa: SIM118
            for recipe in recipes:
                if recipe not in self._tensors:
                    self._tensors[recipe] = self._one(recipe, files)

    def _one(self, recipe: Recipe, files: Mapping[str, Any]) -> torch.Tensor:
        import torch

        absent = [key for key in recipe.keys if key not in files]
        if absent:
            raise ConfigurationError(f"{self._folder}: no tensor {absent[0]!r} in its safetensors")
        tensors = [files[key].get_tensor(key).to(self._device) for key in recipe.keys]
        tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        if recipe.values != "plain":
            from sdxl_bento.backends.quantized import quantize_weight

            kind, _, scale_wanted = recipe.values.partition("-")
            tensor = quantize_weight(tensor, kind)[1 if scale_wanted else 0]
        if tuple(tensor.shape) != recipe.shape:
            raise ArtifactMismatch(
                f"{self._folder}: {', '.join(recipe.keys)} is {list(tensor.shape)}, the compiled "
                f"part was built for {list(recipe.shape)}; export the model again"
            )
        tensor = tensor.to(getattr(torch, recipe.dtype))
        if tensor.stride() != recipe.stride:
            tensor = torch.empty_strided(
                recipe.shape, recipe.stride, dtype=tensor.dtype, device=tensor.device
            ).copy_(tensor)
        return tensor


_LOADED: WeakValueDictionary[tuple[str, str], SharedWeights] = WeakValueDictionary()
_LOCK = Lock()


def shared(folder: Path, device: torch.device) -> SharedWeights:
    """The weights of `folder` on `device`: the same object as long as it is in use."""
    key = (str(folder.resolve()), str(device))
    with _LOCK:
        weights = _LOADED.get(key)
        if weights is None:
            weights = _LOADED[key] = SharedWeights(folder, device)
        return weights
