"""Choosing, inspecting and converting weight files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.errors import SourceError, UnsafeSourceError
from export.model import weights

PLAIN, HALF, BRAIN = "model.safetensors", "model.fp16.safetensors", "model.bf16.safetensors"
INDEX = "model.safetensors.index.json"
HALF_INDEX = "model.safetensors.index.fp16.json"


@pytest.mark.parametrize(
    ("names", "dtype", "chosen"),
    [
        ([PLAIN], None, PLAIN),
        ([PLAIN, HALF], None, HALF),
        ([PLAIN, HALF], "fp16", HALF),
        ([PLAIN, HALF], "fp32", PLAIN),
        ([PLAIN, HALF], "bf16", PLAIN),
        ([HALF], "fp32", HALF),
        ([BRAIN], None, BRAIN),
        ([BRAIN], "fp16", BRAIN),
        ([BRAIN, HALF], "bf16", BRAIN),
        ([BRAIN, PLAIN], None, PLAIN),
        (["model.safetensors.index.bf16.json"], None, "model.safetensors.index.bf16.json"),
        (["model.fp32.safetensors"], None, "model.fp32.safetensors"),
        ([INDEX, HALF_INDEX], None, HALF_INDEX),
        ([INDEX, HALF_INDEX], "fp32", INDEX),
        ([PLAIN, "pytorch_model.bin"], None, PLAIN),
    ],
)
def test_choose(names: list[str], dtype: Any, chosen: str) -> None:
    assert weights.choose(names, "model", dtype, "here") == chosen


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.ckpt", "x.pt", "x.pth"])
def test_choose_refuses_pickles(name: str) -> None:
    with pytest.raises(UnsafeSourceError, match="run code"):
        weights.choose([name, "config.json"], "model", None, "here")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("notes.txt", "no weights\n"),
        ("other.safetensors", "no weights under that name, but other.safetensors"),
        ("model.non_ema.safetensors", r"an unknown variant only \(model\.non_ema\.safetensors\)"),
        ("model-00001-of-00002.safetensors", "shards without their index"),
    ],
)
def test_choose_finds_nothing(name: str, found: str) -> None:
    with pytest.raises(SourceError, match=found):
        weights.choose(["config.json", name], "model", None, "here")


def write(path: Path, **arrays: Any) -> Path:
    save_file({name: np.asarray(value) for name, value in arrays.items()}, path)
    return path


def test_inspect_goes_by_numbers_not_by_tensors(tmp_path: Path) -> None:
    path = write(
        tmp_path / PLAIN,
        a=np.zeros(3, np.float32), b=np.zeros(3, np.float32), c=np.zeros((4, 4), np.float16),
        ids=np.arange(77),
    )  # fmt: skip
    dtype, names = weights.inspect(path)
    assert dtype == "fp16"
    assert set(names) == {"a", "b", "c", "ids"}


@pytest.mark.parametrize("array", [np.zeros(3, np.float64), np.arange(3)])
def test_inspect_refuses_other_dtypes(tmp_path: Path, array: Any) -> None:
    with pytest.raises(SourceError, match="F16, BF16 or F32"):
        weights.inspect(write(tmp_path / PLAIN, a=array))


def test_convert(tmp_path: Path) -> None:
    source = write(tmp_path / "a", x=np.float32([1 / 3, -2.5]), ids=np.arange(3))
    weights.convert(source, tmp_path / "b", "fp16")
    found = load_file(tmp_path / "b")
    assert found["x"].dtype == np.float16
    np.testing.assert_allclose(found["x"], [1 / 3, -2.5], rtol=1e-3)
    assert found["ids"].tolist() == [0, 1, 2]
    weights.convert(tmp_path / "b", tmp_path / "c", "fp32")
    assert weights.inspect(tmp_path / "c")[0] == "fp32"
    weights.convert(source, tmp_path / "d", "bf16")
    assert weights.inspect(tmp_path / "d")[0] == "bf16"


def test_convert_refuses_overflow(tmp_path: Path) -> None:
    source = write(tmp_path / "a", x=np.float32([1e6]))
    with pytest.raises(SourceError, match="x leaves the range of fp16"):
        weights.convert(source, tmp_path / "b", "fp16")
    weights.convert(source, tmp_path / "b", "bf16")


def test_combined_digest_covers_names_and_content() -> None:
    one = weights.combined_digest({"a": "1", "b": "2"})
    assert one == weights.combined_digest({"b": "2", "a": "1"})
    assert one != weights.combined_digest({"a": "2", "b": "1"})


def test_share_equal(tmp_path: Path) -> None:
    for name in ("base", "refiner"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "same.safetensors", x=np.float32([1, 2]))
    write(tmp_path / "refiner" / "other.safetensors", x=np.float32([1, 3]))
    weights.share_equal(tmp_path)
    same = [(tmp_path / name / "same.safetensors") for name in ("base", "refiner")]
    assert same[0].stat().st_ino == same[1].stat().st_ino
    assert (tmp_path / "refiner" / "other.safetensors").stat().st_nlink == 1
    assert not list(tmp_path.rglob(".*"))
