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


def test_every_setting_is_documented_with_its_default() -> None:
    text = REFERENCE.read_text("utf-8")
    rows = dict(re.findall(r"^\| `SDXL_([A-Z_]+)` \| (.*?) \|", text, re.MULTILINE))
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "" if default in (None, ()) else f"`{str(default).lower()}`"
        assert rows[name.upper()] == shown, name
        assert field.description, name
