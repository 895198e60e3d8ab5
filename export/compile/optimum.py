"""`--exporter optimum`: UNet and VAE decoder to ONNX by Hugging Face's optimum.

optimum's exporter needs transformers 4 and huggingface-hub below 1, so it runs in an environment of
its own. That holds the pinned packages of `constraints-optimum.txt`; all others, torch included,
come from the serving environment. It is created once, in a cache folder.

The graphs are brought to the form of those of target `onnx`: the same names of inputs, weights in a
`.data` file, slots added for adapters. optimum traces with TorchScript where `torch.onnx` here uses
the dynamo exporter, so that each can be checked against the other.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from export.compile.options import CompileOptions
from export.compile.targets.onnx import check
from export.errors import ExportError
from export.model.geometry import TIME_IDS
from sdxl_bento import scratch
from sdxl_bento.config import ExportSettings
from sdxl_bento.manifest import Role

CONSTRAINTS = Path(__file__).parents[2] / "constraints-optimum.txt"
WORKER = Path(__file__).with_name("optimum_worker.py")
INPUTS: Mapping[str, str] = {"latent_sample": "latents"}  # optimum's name -> that of target `onnx`
EXTERNAL_BYTES = 1024


def export_parts(
    model_folder: Path, role: Role, folder: Path, options: CompileOptions
) -> dict[str, Path]:
    """Write the parts of one pipeline into `folder`, as target `onnx` would.

    Args:
        model_folder: of the written model; the pipeline is its subfolder `role`.
        role: base or refiner. Of the base model's UNet a variant with slots is written too.
        folder: exists.
        options: dtypes, device and quantization; the weights are those of `model_folder`.

    Returns:
        The files by part.

    Raises:
        ExportError: the environment cannot be created, or optimum fails. The message has the end
            of its output.
    """
    python = environment(ExportSettings().cache)
    root = model_folder / role
    written = {}
    for part, component, dtype in (
        ("unet", "unet", options.dtype),
        ("vae_decoder", "vae", options.vae_dtype),
    ):
        path = folder / f"{role}_{part}.onnx"
        with tempfile.TemporaryDirectory(prefix="sdxl-bento-optimum-") as work:
            scratch.hold(Path(work))
            raw = Path(work) / path.name
            _run(
                [
                    python, "-P", WORKER, part, root / component, raw, "--dtype", dtype,
                    "--device", options.device, "--time-ids", TIME_IDS[role],
                ],
                f"optimum cannot export {role}/{part}",
            )  # fmt: skip
            adopt(raw, path)
        written[f"{role}/{part}"] = path
    if options.quantization:
        from export.compile.onnx_graph.quantize import quantize

        quantize(written[f"{role}/unet"], options.quantization, options.ranges)
    if role == "base":
        written["base/unet_slots"] = _with_slots(written["base/unet"], root / "unet")
    for path in written.values():
        check(path)
    return written


def environment(cache: Path) -> Path:
    """The Python interpreter of the environment, which is created below `cache` if it is missing.

    Raises:
        ExportError: pip cannot install the packages, for example without a network.
    """
    if not CONSTRAINTS.is_file():
        raise ExportError(
            f"--exporter optimum: {CONSTRAINTS} is missing; run the export from the source tree"
        )
    key = hashlib.sha256(CONSTRAINTS.read_bytes() + sys.prefix.encode() + sys.version.encode())
    folder = cache / f"optimum-{key.hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if python.exists():
        return python
    cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="optimum-", dir=cache))
    try:
        _run(
            [sys.executable, "-m", "venv", "--without-pip", building], "no environment for optimum"
        )
        # --no-deps: their other requirements are in the serving environment already.
        _run(
            [
                sys.executable, "-m", "pip", "--python", building / "bin" / "python", "install",
                "--quiet", "--disable-pip-version-check", "--no-deps", "-r", CONSTRAINTS,
            ],
            "the packages of constraints-optimum.txt cannot be installed",
        )  # fmt: skip
        packages = next(building.glob("lib/python*/site-packages"))
        (packages / "serving.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", "utf-8")
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        if not python.exists():  # otherwise another process has created it meanwhile
            raise
    return python


def adopt(raw: Path, path: Path) -> None:
    """Copy optimum's graph to `path`, in the form that target `onnx` writes."""
    import onnx

    model = onnx.load(raw)
    graph = model.graph
    for value in graph.input:
        value.name = INPUTS.get(value.name, value.name)
    for node in graph.node:
        node.doc_string = ""  # paths of source files
        for index, name in enumerate(node.input):
            node.input[index] = INPUTS.get(name, name)
    _constants_to_initializers(graph)
    path.with_suffix(".data").unlink(missing_ok=True)  # onnx would append to it
    onnx.save(
        model, path, save_as_external_data=True, location=path.with_suffix(".data").name,
        size_threshold=EXTERNAL_BYTES,
    )  # fmt: skip


def _constants_to_initializers(graph: Any) -> None:
    """Turn large constants in nodes into initializers, which all variants of a graph share."""
    rest = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value and len(value.raw_data) > EXTERNAL_BYTES:
            value.name = node.output[0]
            graph.initializer.append(value)
        else:
            rest.append(node)
    del graph.node[:]
    graph.node.extend(rest)


def _with_slots(plain: Path, weights: Path) -> Path:
    from diffusers import UNet2DConditionModel

    from export.compile.onnx_graph.slots import add_slots
    from sdxl_bento.backends.slots import SlotLayout

    cls: Any = UNet2DConditionModel
    with torch.device("meta"):
        unet = cls.from_config(cls.load_config(weights))
    layout = SlotLayout(unet)
    path = plain.with_name("base_unet_slots.onnx")
    add_slots(plain, path, layout, {layer: f"{layer}.weight" for layer in layout.columns})
    return path


def _run(command: list[object], what: str) -> None:
    done = subprocess.run(  # noqa: S603  fixed programs, no shell
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise ExportError(f"{what}: {tail}")
