"""Which files are taken of those that a repository has."""

from __future__ import annotations

from typing import ClassVar

import pytest

from export.errors import SourceError, UnsafeSourceError
from export.source import selection


class TestWanted:
    names: ClassVar[list[str]] = [
        "model_index.json",
        "README.md",
        "pipeline.py",
        "sdxl.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/model.onnx",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json",
        "vae_1_0/diffusion_pytorch_model.safetensors",
    ]

    def test_only_what_is_needed(self) -> None:
        assert set(selection.select(self.names, None, "a/b")) == {
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/vocab.json",
        }

    def test_dtype_chooses_the_variant(self) -> None:
        chosen = selection.select(self.names, "fp32", "a/b")
        assert "unet/diffusion_pytorch_model.safetensors" in chosen
        assert "unet/diffusion_pytorch_model.fp16.safetensors" not in chosen

    def test_shards_of_one_variant(self) -> None:
        stem = "diffusion_pytorch_model"
        half = [f"unet/{stem}-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
        full = [f"unet/{stem}-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
        half_index = f"unet/{stem}.safetensors.index.fp16.json"
        full_index = f"unet/{stem}.safetensors.index.json"
        names = ["model_index.json", *half, *full, half_index, full_index]
        assert selection.select(names, None, "a/b")[1:] == [half_index, *half]
        assert selection.select(names, "fp32", "a/b")[1:] == [full_index, *full]

    def test_pickles_are_refused_before_any_download(self) -> None:
        names = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"]
        with pytest.raises(UnsafeSourceError, match="a/b/unet"):
            selection.select(names, None, "a/b")

    def test_not_diffusers(self) -> None:
        with pytest.raises(SourceError, match=r"no model_index\.json"):
            selection.select(["config.json", "model.safetensors"], None, "a/b")

    def test_a_pickled_checkpoint(self) -> None:
        with pytest.raises(UnsafeSourceError, match=r"a/b/model\.ckpt(?s:.)*run code"):
            selection.select(["model.ckpt", "README.md"], None, "a/b")


@pytest.mark.parametrize("name", ["../x", "unet/../../x", "/etc/x", "a//b", "a\\..\\b", "a\0b"])
def test_names_that_lead_out(name: str) -> None:
    with pytest.raises(UnsafeSourceError, match="leads out of the folder"):
        selection.refuse_unsafe(["unet/config.json", name], "s3://a/b")


def test_plain_names_lead_nowhere_else() -> None:
    selection.refuse_unsafe(["model_index.json", "unet/config.json", "..x/y..json"], "s3://a/b")
