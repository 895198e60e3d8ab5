"""How a runtime is found by its name."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from sdxl_bento.backends import parts
from sdxl_bento.backends.parts import register, runtime
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.manifest import BackendName

NAMES = [name for name in get_args(BackendName) if name != "eager"]
HEAVY = ("torch", "onnxruntime", "openvino", "diffusers")


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_of_manifests_registers_itself(name: BackendName) -> None:
    found = runtime(name)
    assert found.load.__module__ == found.versions.__module__ == f"sdxl_bento.backends.{name}"


@pytest.mark.parametrize("name", NAMES)
def test_finding_one_imports_no_packages_and_no_other_runtime(name: str) -> None:
    script = (
        "import sys\n"
        "from sdxl_bento.backends.parts import runtime, _REGISTERED\n"
        f"runtime({name!r})\n"
        f"assert not {{*{HEAVY}}} & sys.modules.keys(), sys.modules.keys()\n"
        "print(*_REGISTERED)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120
    )
    others = {"onnx"} if name == "tensorrt" else set()  # it is ONNX Runtime with an option
    assert set(done.stdout.split()) == {name} | others


def test_eager_has_no_parts() -> None:
    with pytest.raises(ConfigurationError, match="eager has no compiled parts"):
        runtime("eager")


def test_a_registered_one_is_found_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_REGISTERED", {})
    load = register("onnx", lambda: {"it": "1"})(lambda path, options: None)  # type: ignore[arg-type,return-value]
    assert runtime("onnx").load is load
    assert runtime("onnx").versions() == {"it": "1"}
