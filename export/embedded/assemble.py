"""Writes trained parts as the pipeline folders that ship, in half precision.

They hold nothing of the machine that trained them, such as paths.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch

from export.embedded.denoising import build_scheduler
from export.embedded.networks import BasePipeline, Pipeline, RefinerPipeline, Unet, Vae
from export.embedded.text import TextEncoders
from export.embedded.tokenizer import PADS, save_tokenizer

# Keys of SDXL's scheduler file that Euler itself ignores but other schedulers read when they take
# over its configuration. Without the first key, DDIM would clip latents at 1.
_SCHEDULER_EXTRAS = {
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "sample_max_value": 1.0,
    "trained_betas": None,
}
# Keys in which the libraries record where and how a part was loaded.
_TRACES = ("_name_or_path", "is_local", "local_files_only", "backend")


def _clean_configs(folder: Path) -> None:
    """Rewrite every configuration file without traces of the building machine."""
    for path in folder.rglob("*.json"):
        if path.name not in {
            "config.json",
            "model_index.json",
            "scheduler_config.json",
            "tokenizer_config.json",
        }:
            continue
        values = json.loads(path.read_text())
        for key in _TRACES:
            values.pop(key, None)
        if "dtype" in values:
            # Without it transformers would load half precision, and diffusers single precision.
            values["dtype"] = "float32"
        if path.name == "scheduler_config.json":
            values.update(_SCHEDULER_EXTRAS)
        path.write_text(json.dumps(values, indent=2) + "\n")


def _publish(pipeline: Pipeline, target: Path) -> None:
    """Save beside ``target``, then swap, so that a reader never sees an incomplete folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
        fresh = Path(scratch) / target.name
        pipeline.to(torch.float16).save_pretrained(fresh, safe_serialization=True)
        for name, pad in PADS.items():
            if (fresh / name).exists():  # adds vocab.json and merges.txt, which SDXL's folders have
                save_tokenizer(fresh / name, pad)
        _clean_configs(fresh)
        if target.exists():
            shutil.move(target, Path(scratch) / "old")
        shutil.move(fresh, target)


def publish_base(encoders: TextEncoders, vae: Vae, unet: Unet, target: Path) -> None:
    """Write the text-to-image pipeline."""
    pipeline = BasePipeline(
        vae=vae,
        text_encoder=encoders.first,
        text_encoder_2=encoders.second,
        tokenizer=encoders.tokenizers[0],
        tokenizer_2=encoders.tokenizers[1],
        unet=unet,
        scheduler=build_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    _publish(pipeline, target)


def publish_refiner(encoders: TextEncoders, vae: Vae, unet: Unet, target: Path) -> None:
    """Write the image-to-image pipeline that finishes the pictures of the base model."""
    pipeline = RefinerPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=encoders.second,
        tokenizer=None,
        tokenizer_2=encoders.tokenizers[1],
        unet=unet,
        scheduler=build_scheduler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    _publish(pipeline, target)
