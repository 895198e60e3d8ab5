"""Settings from the environment, and that each of them is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdxl_bento.config import DEFAULT_MODEL, Settings, load_settings
from sdxl_bento.errors import ConfigurationError

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "settings.md"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SDXL_{name.upper()}", raising=False)


def test_defaults() -> None:
    settings = load_settings()
    assert settings.model_tags == (DEFAULT_MODEL,)
    assert settings.device == "auto"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_MODEL", "mine:1")
    monkeypatch.setenv("SDXL_MODELS", " other:2, mine:1 ,,third:3")
    monkeypatch.setenv("SDXL_LORA_PINNED", "")
    monkeypatch.setenv("SDXL_MAX_QUEUE", "0")
    settings = load_settings()
    assert settings.model_tags == ("mine:1", "other:2", "third:3")
    assert settings.lora_pinned == ()
    assert settings.max_queue == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORKERS", "0"), ("DEVICE", "tpu"), ("PNG_LEVEL", "ten"), ("TIMEOUT_S", "-1")],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SDXL_{name}", value)
    with pytest.raises(ConfigurationError, match=f"SDXL_{name} is '{value}'"):
        load_settings()


def test_aliases_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDXL_MODEL_ALIASES", " dall-e-3 = sdxl, gpt-image-1=sdxl:v7,,")
    assert load_settings().model_aliases == (("dall-e-3", "sdxl"), ("gpt-image-1", "sdxl:v7"))
    for wrong, reason in (
        ("dall-e-3", "has not the form alias=model"),
        ("=sdxl", "has not the form"),
        ("a=", "has not the form"),
        ("a=b=c", "has not the form"),
        ("a=b,a=c", "a stands for b and for c"),
    ):
        monkeypatch.setenv("SDXL_MODEL_ALIASES", wrong)
        with pytest.raises(ConfigurationError, match=f"SDXL_MODEL_ALIASES is .*{reason}"):
            load_settings()


def test_every_setting_is_documented_with_its_default() -> None:
    text = REFERENCE.read_text("utf-8")
    rows = dict(re.findall(r"^\| `SDXL_([A-Z_]+)` \| (.*?) \|", text, re.MULTILINE))
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default in (None, ()) else f"`{str(default).lower()}`"
        assert rows[name.upper()] == shown, name
        assert field.description, name


# Settings about where, when and how much: whatever they are, the same request is the same picture.
# `model`, `device`, `dtype` and `backend` change pixels and are in the provenance as what became
# of them.
NO_PIXELS = {
    "model", "models", "device", "dtype", "threads", "backend", "allow_fallback", "verify",
    "lora_dir", "lora_cache_mb", "lora_pinned", "max_batch_rows", "max_batch_pixels", "max_running",
    "max_queue", "max_queue_megapixels", "max_pixels", "max_steps", "max_images",
    "decode_processes", "decode_timeout_s", "openvino_kernels", "memory_trim_s",
    "prompt_cache_mb", "ageing_s", "timeout_s", "drain_s", "store", "store_ttl_s", "store_max_mb",
    "store_timeout_s", "embed_metadata", "result_cache", "png_level", "batch_max_size",
    "batch_max_latency_ms", "workers", "ui", "cors_origins", "receive_timeout_s",
    "max_connections_per_client", "max_bodies_mb", "log_error_messages", "model_aliases",
    "unknown_fields",
}  # fmt: skip


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_whether_it_changes_pixels(name: str) -> None:
    marked = name in Settings().pixel_options
    assert marked != (name in NO_PIXELS), (
        f"{name}: either annotate it with CHANGES_PIXELS, or list it here as one that does not"
    )


def test_the_settings_that_change_pixels_are_in_the_provenance() -> None:
    settings = Settings(vae_tile_pixels=5000, vae_slicing=True, attention_slicing=True)
    assert settings.pixel_options == {
        "vae_tile_pixels": 5000,
        "attention_slicing": 1,
        "vae_slicing": 1,
    }
