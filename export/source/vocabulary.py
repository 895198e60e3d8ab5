"""CLIP's vocabulary, which a checkpoint file in one piece does not hold.

SDXL's two tokenizers share it: 49,408 tokens in `vocab.json` and their merges in `merges.txt`, 1.6
MB together. It is copied from the template's folder, or else from the hub or its cache.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from export.errors import SourceError
from export.model.inspection import Folder
from export.model.layout import VOCABULARY
from export.source import hub

REPOSITORY = "stabilityai/stable-diffusion-xl-base-1.0"


def complete(folder: Path, token: str | None) -> None:
    """Add the vocabulary to those tokenizers below `folder` that lack it.

    Raises `SourceError` if it cannot be fetched, or does not fit the text encoders.
    """
    lacking = [
        tokenizer
        for tokenizer in sorted(folder.glob("tokenizer*"))
        if not (tokenizer / "tokenizer.json").is_file()
        and not all((tokenizer / name).is_file() for name in VOCABULARY)
    ]
    if not lacking:
        return
    try:
        files = hub.fetch_vocabulary(REPOSITORY, token)
    except SourceError as error:
        raise SourceError(
            f"{REPOSITORY}/tokenizer", f"no vocabulary: {error.found}",
            "--config with a folder that has tokenizer/vocab.json and merges.txt (any SDXL model "
            "in diffusers' layout), or the hub once: it is kept in its cache",
        ) from error  # fmt: skip
    size = Folder(folder).json("text_encoder_2", "config.json").get("vocab_size")
    with files["vocab.json"].open(encoding="utf-8") as file:
        tokens = json.load(file)
    if len(tokens) != size:
        raise SourceError(files["vocab.json"], f"{len(tokens)} tokens", f"{size}, as the encoders")
    for tokenizer in lacking:
        for name, path in files.items():
            shutil.copyfile(path, tokenizer / name)
