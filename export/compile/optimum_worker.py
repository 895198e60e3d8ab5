"""Run by `export/compile/optimum.py` in an environment of its own: one network to ONNX by optimum.

It cannot import this project, because the project needs other versions of the packages there.

    python -P optimum_worker.py unet|vae_decoder FOLDER OUTPUT [--dtype fp32] [--device cpu]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

OPSET = 20
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def unet_config(model: Any, dtype: str) -> Any:
    """optimum's config of a UNet, changed to take a timestep for each row instead of a scalar."""
    from optimum.exporters.onnx.model_configs import UNetOnnxConfig
    from optimum.utils.input_generators import DummyTimestepInputGenerator

    class Timesteps(DummyTimestepInputGenerator):  # type: ignore[misc]
        def generate(self, input_name: str, *args: Any, **kwargs: Any) -> Any:
            if input_name == "timestep":
                return torch.linspace(951.0, 51.0, self.batch_size)
            return super().generate(input_name, *args, **kwargs)

    class RowsConfig(UNetOnnxConfig):  # type: ignore[misc]
        DUMMY_INPUT_GENERATOR_CLASSES = tuple(
            Timesteps if known is DummyTimestepInputGenerator else known
            for known in UNetOnnxConfig.DUMMY_INPUT_GENERATOR_CLASSES
        )

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            inputs: dict[str, dict[int, str]] = super().inputs
            return inputs | {"timestep": {0: "batch_size"}}

    return RowsConfig(model.config, task="semantic-segmentation", float_dtype=dtype)


def load_unet(folder: Path, dtype: torch.dtype, time_ids: int) -> Any:
    from diffusers import UNet2DConditionModel

    cls: Any = UNet2DConditionModel
    model = cls.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    config = model.config
    pooled = (
        config.projection_class_embeddings_input_dim - time_ids * config.addition_time_embed_dim
    )
    # optimum builds its example inputs from these, which it would read from the whole pipeline.
    model.register_to_config(
        text_encoder_projection_dim=pooled, requires_aesthetics_score=time_ids == 5
    )
    return model


def load_decoder(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL

    cls: Any = AutoencoderKL
    model = cls.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    model.forward = lambda latent_sample: model.decode(z=latent_sample)
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("unet", "vae_decoder"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--time-ids", type=int, default=6)
    args = parser.parse_args()
    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.model_configs import VaeDecoderOnnxConfig

    if args.part == "unet":
        model = load_unet(args.folder, DTYPES[args.dtype], args.time_ids)
        config = unet_config(model, args.dtype)
    else:
        model = load_decoder(args.folder, DTYPES[args.dtype])
        config = VaeDecoderOnnxConfig(
            model.config, task="semantic-segmentation", float_dtype=args.dtype
        )
    # Constants stay unfolded so that every weight keeps the name of its parameter.
    export(
        model, config, args.output, opset=OPSET, device=args.device, do_constant_folding=False,
        disable_dynamic_axes_fix=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
