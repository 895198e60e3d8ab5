"""What the shell proposes for an option's value.

It has to be quick, so only names of files are read; and whatever fails, nothing is proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps


def _quietly(names: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    @wraps(names)
    def complete(incomplete: str) -> list[str]:
        try:
            return [name for name in names() if name.startswith(incomplete)]
        except Exception:  # an error has no place in a shell's prompt
            return []

    complete.__annotations__ = {"incomplete": str, "return": list[str]}
    del complete.__wrapped__  # typer looks at the signature
    return complete


def one_of(values: Sequence[str]) -> Callable[[str], list[str]]:
    """The values that a field may have."""
    return _quietly(lambda: list(values))


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
    from sdxl_bento.diffusion.lora.folder import look

    inside = {path.stem for folder in folders() for path in folder.glob("loras/*.safetensors")}
    more = load_settings().lora_dir
    return sorted(inside | (look(more).files.keys() if more else set()))
