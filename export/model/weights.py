"""Weight files: choosing those of a component, inspecting them, copying and converting them.

Only safetensors is read. Variants (`model.fp16.safetensors`) and shards are recognised by the names
that diffusers and transformers give them, and are copied under their plain names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from export.errors import SourceError, UnsafeSourceError
from sdxl_bento.dtypes import FROM_SAFETENSORS, torch_dtype
from sdxl_bento.integrity import combined_digest as combined_digest  # re-exported
from sdxl_bento.integrity import digest as digest
from sdxl_bento.layout import PICKLES as PICKLES
from sdxl_bento.layout import is_beside
from sdxl_bento.manifest import WeightDtype

VARIANTS: Mapping[WeightDtype, str] = {"fp16": "fp16", "bf16": "bf16"}
MAGIC_BYTES = 9
MOST_HEADER_BYTES = 100_000_000  # as the safetensors library allows
_INTEGERS = {"I64", "I32", "I16", "I8", "U8", "BOOL"}


def choose(names: Collection[str], stem: str, dtype: WeightDtype | None, where: object) -> str:
    """The name of the weight file, or of the index of shards, to take from `names`.

    With `dtype`, the variant of that dtype is preferred to the plain file. Without, the fp16
    variant is preferred, which is half the download and the dtype in which SDXL is served. If
    neither is there, the variant of another dtype is taken.
    Raises `SourceError` if there is none, `UnsafeSourceError` if there are only pickles.
    """
    variant = VARIANTS.get(dtype) if dtype else "fp16"
    order = dict.fromkeys([*([variant] if variant else []), "", "bf16", "fp16", "fp32"])
    for each in order:
        for name in _names(stem, each):
            if name in names:
                return name
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise UnsafeSourceError(
            where,
            f"pickled weights only ({', '.join(pickles[:3])}), which can run code when loaded",
            f"{stem}.safetensors; convert them on a machine you can throw away",
        )
    raise SourceError(
        where, _without_weights(names, stem), f"{stem}.safetensors, or its shards with an index"
    )


def _names(stem: str, variant: str) -> tuple[str, str]:
    """The file of a variant, and the index of its shards."""
    dotted = f".{variant}" if variant else ""
    return f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json"


def _without_weights(names: Collection[str], stem: str) -> str:
    """What there is in place of a component's weights."""
    found = sorted(name for name in names if name.endswith(".safetensors"))
    shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
    if any(re.match(rf"{stem}.*-\d+-of-\d+", name) for name in found):
        return f"shards without their index ({shown})"
    if any(name.startswith(f"{stem}.") for name in found):
        return f"weights of an unknown variant only ({shown})"
    return f"no weights under that name, but {shown}" if found else "no weights"


def shards(index: Path) -> tuple[dict[str, object], list[str]]:
    """The content of an index file, and the names of its shards, which are in the same folder."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(index, f"no readable index ({error!r})", "JSON with weight_map") from None
    if not names:
        raise SourceError(index, "an index of no shards", "a weight_map that names them")
    for name in names:
        if not is_beside(name):
            raise UnsafeSourceError(index, f"a shard at {name!r}", "shards beside their index")
        if not name.endswith(".safetensors"):
            raise UnsafeSourceError(index, f"a shard {name!r}", "safetensors shards")
    return content, names


def check_start(first: bytes, where: object, note: str = "") -> None:
    """Raise unless `first` (`MAGIC_BYTES` or more) can begin a safetensors file.

    Such a file begins with the length of its header, in eight bytes, and the header's brace. `note`
    is appended to the description of what was found.
    """
    length = int.from_bytes(first[:8], "little")
    if len(first) >= MAGIC_BYTES and length <= MOST_HEADER_BYTES and first[8:9] == b"{":
        return
    if first[:2] == b"PK" or first[:1] == b"\x80":
        raise UnsafeSourceError(
            where, f"a pickle or zip file{note}, which can run code when loaded", "safetensors"
        )
    raise SourceError(where, f"no safetensors file{note}", "the whole of a .safetensors file")


def inspect(path: Path) -> tuple[WeightDtype, tuple[str, ...]]:
    """The dtype of most numbers in a safetensors file, and the names of its tensors.

    Raises `SourceError` if the file is truncated, is not a safetensors file, or has a dtype that
    SDXL does not use.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = tuple(file.keys())
            numbers: Counter[str] = Counter()
            for name in names:
                tensor = file.get_slice(name)
                count = 1
                for side in tensor.get_shape():
                    count *= side
                numbers[tensor.get_dtype()] += count
    except (SafetensorError, OSError) as error:
        raise SourceError(
            path, f"a broken safetensors file ({error})", "the whole file; copy or fetch it again"
        ) from None
    unknown = sorted(set(numbers) - set(FROM_SAFETENSORS) - _INTEGERS)
    floats = [(count, name) for name, count in numbers.items() if name in FROM_SAFETENSORS]
    if unknown or not floats:
        raise SourceError(
            path, f"tensors of {', '.join(unknown) or 'no float dtype'}", "F16, BF16 or F32"
        )
    return FROM_SAFETENSORS[max(floats)[1]], names


def copy(source: Path, target: Path) -> None:
    """Copy a file's content without its permissions; links are followed."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def convert(source: Path, target: Path, dtype: WeightDtype) -> None:
    """Write `source` with its floating-point tensors in `dtype`; integers are not changed.

    Raises `SourceError` if a finite number becomes infinite.
    """
    import torch
    from safetensors.torch import save_file

    converted_dtype = torch_dtype(dtype)
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(source, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            tensor = file.get_tensor(name)
            if tensor.is_floating_point():
                converted = tensor.to(converted_dtype)
                if not torch.isfinite(converted).all() and torch.isfinite(tensor).all():
                    raise SourceError(
                        source, f"{name} leaves the range of {dtype}", "--dtype bf16 or fp32"
                    )
                tensor = converted
            tensors[name] = tensor.contiguous()
    save_file(tensors, target, metadata={"format": "pt"})
    target.chmod(0o644)  # as the copied files, where the library lets only the owner read


def share_equal(folder: Path) -> None:
    """Replace equal weight files below `folder` by hard links to one file.

    SDXL's refiner comes with the base model's VAE and second text encoder, 1.6 GB in fp16. Where
    the file system has no hard links, the copies stay.
    """
    by_size: dict[int, list[Path]] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        by_size.setdefault(path.stat().st_size, []).append(path)
    for paths in by_size.values():
        first: dict[str, Path] = {}
        for path in paths if len(paths) > 1 else []:
            original = first.setdefault(digest(path), path)
            if original != path:
                _link(original, path)


def _link(original: Path, path: Path) -> None:
    draft = path.with_name(f".{path.name}")
    try:
        os.link(original, draft)
    except OSError:
        return
    draft.replace(path)
