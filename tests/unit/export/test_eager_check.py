"""One weight of one written component is spoilt: the eager copy is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.check.eager import LEAST_PSNR_DB, PARTS, verify_pipeline
from export.embedded import WEIGHTS
from export.errors import VerificationError
from export.model.inspection import Folder, Pipeline, read_pipeline
from export.model.weights import convert
from sdxl_bento.manifest import Role

# A weight that every input passes through.
FIRST = {
    "text_encoder": "encoder.layers.0.mlp.fc1.weight",
    "text_encoder_2": "encoder.layers.0.mlp.fc1.weight",
    "unet": "conv_in.weight",
    "vae": "decoder.conv_in.weight",
}
CASES = [("base", part) for part in PARTS] + [
    ("refiner", part) for part in PARTS if part != "text_encoder"
]


def written(folder: Path, role: Role, part: str, **changes: Any) -> Pipeline:
    """A pipeline whose written copy has other weights in one component; links elsewhere."""
    pipeline = read_pipeline(Folder(WEIGHTS / role), role, None)
    for component in pipeline.components.values():
        (folder / component.name).mkdir()
        for name, source in component.files.items():
            (folder / component.name / name).symlink_to(source)
    return pipeline


def weights_of(folder: Path, part: str) -> Path:
    (path,) = (folder / part).glob("*.safetensors")
    return path


def spoil(path: Path, part: str) -> None:
    """Negate one weight, as a fault in a conversion or on a disk would."""
    tensors = load_file(path)
    (name,) = (name for name in tensors if name.endswith(FIRST[part]))
    path.unlink()
    save_file(tensors | {name: -tensors[name]}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(("role", "part"), CASES)
def test_a_spoilt_weight_of_a_converted_component(tmp_path: Path, role: Role, part: str) -> None:
    pipeline = written(tmp_path, role, part)
    path = weights_of(tmp_path, part)
    source = path.resolve()
    path.unlink()
    convert(source, path, "bf16")
    figures = verify_pipeline(pipeline, tmp_path, frozenset({part}), tmp_path)
    psnr = next(figure.psnr_db for figure in figures if figure.part == f"{role}/{part}")
    assert psnr is not None
    assert psnr > LEAST_PSNR_DB
    convert(source, path, "fp32")
    spoil(path, part)
    with pytest.raises(VerificationError, match=f"{role}/{part}: .* dB from its source"):
        verify_pipeline(pipeline, tmp_path, frozenset({part}), tmp_path)


@pytest.mark.parametrize(("role", "part"), CASES)
def test_a_spoilt_weight_of_a_copy(tmp_path: Path, role: Role, part: str) -> None:
    pipeline = written(tmp_path, role, part)
    path = weights_of(tmp_path, part)
    content = bytearray(path.read_bytes())
    path.unlink()
    content[-2:] = np.float16(0.25).tobytes()
    path.write_bytes(content)
    with pytest.raises(VerificationError, match=rf"{role}/{part}: the copy of .*\.safetensors"):
        verify_pipeline(pipeline, tmp_path, frozenset(), tmp_path)
