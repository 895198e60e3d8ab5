"""One table of dtypes: what is written with a name is read back by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sdxl_bento.dtypes import DTYPES, FROM_SAFETENSORS, dtype_of, torch_dtype
from sdxl_bento.manifest import WeightDtype


def test_every_dtype_of_the_manifest_is_there() -> None:
    assert set(DTYPES) == set(get_args(WeightDtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_name_is_that_of_its_library(dtype: WeightDtype, tmp_path: Path) -> None:
    converted = torch_dtype(dtype)
    assert converted.is_floating_point
    assert f"{converted.itemsize * 8}" == dtype[2:]
    assert dtype_of(converted) == dtype
    save_file({"x": torch.zeros(2, dtype=converted)}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert FROM_SAFETENSORS[file.get_slice("x").get_dtype()] == dtype


def test_others_have_no_name() -> None:
    with pytest.raises(ValueError, match="float64 is none of fp32, fp16, bf16"):
        dtype_of(torch.float64)


def test_the_table_is_light() -> None:
    script = "import sys; import sdxl_bento.dtypes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
