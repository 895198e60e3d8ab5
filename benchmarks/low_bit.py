"""What do 8-bit linear layers do to the embedded model's predictions and pictures?

PSNR against float32 of one UNet output (8 rows at the native size, its own range as the peak) and
of three pictures (20 steps, guidance 5, peak 255), on the CPU; fp8 is emulated there, to the same
numbers but for the order of sums. The last line is one JSON document.

    python -m benchmarks.low_bit
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from benchmarks.report import machine
from export.embedded import WEIGHTS
from export.likeness import PIXEL_PEAK, psnr_db, psnr_of_error
from export.model.graphs import UNetRows, unet_example
from sdxl_bento.backends.quantized import LAYERS, quantize_unet

PROMPTS = (
    "a red circle on a blue background",
    "a green square on a white background",
    "a yellow triangle on a black background",
)


def main() -> None:
    exact = pipeline()
    side = exact.unet.config.sample_size
    inputs = unet_example("base", exact.unet, rows=8, height=side, width=side)
    wanted, drawn = outputs(exact, inputs)
    found: dict[str, Any] = {"benchmark": "low_bit", **machine()}
    for kind in LAYERS:
        other = pipeline()
        layers = quantize_unet(other.unet, kind)
        output, pictures = outputs(other, inputs)
        found[kind] = {
            "layers": len(layers),
            "unet_psnr_db": round(psnr_db(output, wanted), 1),
            "unet_max_abs_error": round(float((output - wanted).abs().max()), 4),
            "pictures_psnr_db": [
                round(psnr_of_error(float(((a - b) ** 2).mean()), PIXEL_PEAK), 1)
                for a, b in zip(pictures, drawn, strict=True)
            ],
        }
        print(kind, found[kind])
    print(json.dumps(found))


def pipeline() -> Any:
    from diffusers import StableDiffusionXLPipeline

    made: Any = StableDiffusionXLPipeline
    loaded = made.from_pretrained(WEIGHTS / "base", torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def outputs(
    pipe: Any, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, list[np.ndarray[Any, np.dtype[np.float64]]]]:
    with torch.no_grad():
        prediction = UNetRows(pipe.unet)(**inputs)
    pictures = []
    for seed, prompt in enumerate(PROMPTS):
        random = torch.Generator().manual_seed(seed)
        made = pipe(prompt, num_inference_steps=20, guidance_scale=5.0, generator=random)
        pictures.append(np.asarray(made.images[0], dtype=np.float64))
    return prediction, pictures


if __name__ == "__main__":
    main()
