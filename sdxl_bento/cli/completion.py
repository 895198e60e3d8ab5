"""What the shell proposes. Quick, and never a reason to fail: it reads names, not models."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps


def _quietly(names: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    @wraps(names)
    def complete(incomplete: str) -> list[str]:
        try:
            return [name for name in names() if name.startswith(incomplete)]
        except Exception:  # a shell's prompt is no place for it
            return []

    complete.__annotations__ = {"incomplete": str, "return": list[str]}
    del complete.__wrapped__  # typer looks at the signature
    return complete


@_quietly
def sampler_names() -> list[str]:
    """Names of samplers."""
    from sdxl_bento.sampler_names import SAMPLERS

    return list(SAMPLERS)


@_quietly
def formats() -> list[str]:
    """Names of file formats."""
    return ["png", "webp", "jpeg"]


@_quietly
def model_tags() -> list[str]:
    """Names and tags of models in the local store."""
    from sdxl_bento.cli.store import folders

    tags = {f"{folder.parent.name}:{folder.name}" for folder in folders()}
    return sorted(tags | {tag.partition(":")[0] for tag in tags})


@_quietly
def lora_names() -> list[str]:
    """Names of adapters of the models in the local store and of SDXL_LORA_DIR."""
    from sdxl_bento.cli.store import folders
    from sdxl_bento.config import load_settings

    inside = {path.stem for folder in folders() for path in folder.glob("loras/*.safetensors")}
    more = load_settings().lora_dir
    return sorted(inside | {path.stem for path in (more.glob("*.safetensors") if more else ())})
