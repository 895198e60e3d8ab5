"""The manifest: written and read back whole, and nothing unknown or unsound is let through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import Manifest, SizeLimits
from tests.support.manifests import manifest


def test_round_trip(tmp_path: Path) -> None:
    written = manifest()
    written.save(tmp_path)
    assert Manifest.load(tmp_path) == written


def edit(folder: Path, *keys: Any, value: Any) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("extra",), 1),
        (("base", "extra"), 1),
        (("base", "components", "unet", "extra"), 1),
        (("schema_version",), 2),
        (("family",), "sd3"),
        (("dtype",), "int8"),
        (("source", "sha256"), "abc"),
        (("base", "path"), "/etc"),
        (("base", "path"), "../other"),
        (("backends", 0, "artifacts", "unet"), "a\\b"),
        (("loras", 0, "path"), "loras/../../x"),
        (("loras", 0, "name"), "Bad Name"),
        (("backends",), []),
        (("bytes",), -1),
        (("created",), "2026-01-02T00:00:00"),
        (("size_limits", "min"), 33),
        (("size_limits", "max"), 0),
        (("size_limits", "max"), 257),
        (("size_limits", "multiple"), 0),
        (("base", "prediction_type"), "flow"),
    ],
)
def test_refused(tmp_path: Path, keys: tuple[Any, ...], value: Any) -> None:
    manifest().save(tmp_path)
    edit(tmp_path, *keys, value=value)
    with pytest.raises(ConfigurationError, match=r"manifest\.json: not a manifest of schema 1"):
        Manifest.load(tmp_path)


def test_error_names_the_field(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    edit(tmp_path, "base", "width", value="wide")
    with pytest.raises(ConfigurationError, match=r"base\.width.*export the model again"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]"])
def test_not_json(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(ConfigurationError, match="manifest"):
        Manifest.load(tmp_path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="python -m export"):
        Manifest.load(tmp_path)


def test_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest().name = "other"


def test_loras_have_distinct_names() -> None:
    lora = manifest().loras[0]
    with pytest.raises(ValidationError, match="share a name"):
        manifest(loras=(lora, lora))


@pytest.mark.parametrize(
    ("width", "height", "allowed"),
    [(128, 128, True), (32, 256, True), (0, 128, False), (48, 128, False), (128, 288, False)],
)
def test_size_limits(width: int, height: int, allowed: bool) -> None:
    assert SizeLimits(multiple=32, min=32, max=256).allows(width, height) is allowed


def test_size_limits_may_be_one_size() -> None:
    limits = SizeLimits(multiple=32, min=64, max=64)
    assert limits.allows(64, 64)
    assert not limits.allows(64, 96)
    assert not limits.allows(32, 64)


@pytest.mark.parametrize("side", [16, 48, 288])
def test_each_side_is_within_the_limits(side: int) -> None:
    limits = SizeLimits(multiple=32, min=32, max=256)
    assert not limits.allows(side, 128)
    assert not limits.allows(128, side)


@pytest.mark.parametrize(("least", "most"), [(128, 64), (48, 128), (64, 100)])
def test_limits_that_no_size_could_meet_are_refused(least: int, most: int) -> None:
    with pytest.raises(ValidationError, match="both multiples of `multiple`"):
        SizeLimits(multiple=32, min=least, max=most)


def test_pipelines_by_role() -> None:
    both = manifest()
    assert both.pipelines == {"base": both.base, "refiner": both.refiner}
    assert list(both.pipelines) == ["base", "refiner"]
    assert list(manifest(refiner=None).pipelines) == ["base"]
