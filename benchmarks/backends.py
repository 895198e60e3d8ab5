"""How fast is each compiled backend on this CPU, against eager float32, and how exact?

A UNet's forward on a CPU is bound by its matrix products where its channels are many and its
pictures large, and by what surrounds them (norms, copies, one kernel after another) where they are
few and small. A compiler takes the second away and can do little about the first, unless it
computes in fewer bits and the CPU has instructions for those. So two UNets are measured: the
embedded model's, and one of 64/128/256 channels on 32x32 latents with random weights.

Each contender runs in a fresh process and takes turns with eager float32 in another, so that a
machine that is busy with something else slows both; in one process the threads of one runtime hold
up those of the other. A figure is the ratio of the lower quartiles over the rounds, since other
work only ever adds time. Compiling is done before, into `--folder`, and its time is measured there.
Likeness is PSNR against eager float32 on the same inputs, the output's range as peak.

    python -m benchmarks.backends --folder FOLDER [--compile-only] [--rounds 15] [--models mid]

On a machine that cannot be had alone, `--threads 1 --clock processor` counts the processor's time.

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file

from benchmarks.lora import EMBEDDED, build_unet
from benchmarks.low_bit import PROMPTS, pipeline
from benchmarks.report import aim, machine, number, show, show_aims
from export.compile.calibration import watch_layers
from export.compile.onnx_graph.static import Ranges
from export.compile.options import CompileOptions
from export.compile.targets import all_targets
from export.likeness import psnr_of_error
from export.model.graphs import UNetRows, unet_example, unet_graph
from sdxl_bento.backends.choose import runtime
from sdxl_bento.backends.parts import PartOptions
from sdxl_bento.manifest import BackendInfo

CPU = torch.device("cpu")
CELLS = {"embedded": 16, "mid": 32}  # side of the latents
ROWS = (1, 2, 4, 8)
AIMS = {1: 2.5, 8: 2.0}  # rows -> times as fast as eager
AIM_DB = 40.0
PAUSE_S = 0.02  # in which the other's threads stop spinning
COMPILED = "compiled.json"
EAGER = "eager-fp32"
CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "processor": time.process_time,
}


@dataclass(frozen=True)
class Contender:
    """A backend with what it computes in."""

    backend: str
    dtype: str = "fp32"
    quantization: str | None = None

    @property
    def label(self) -> str:
        return "-".join(filter(None, (self.backend, self.dtype, self.quantization)))

    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        if self.backend == "eager":
            return ""
        try:
            runtime(self.backend).versions()  # type: ignore[arg-type]
        except ImportError as error:
            return f"{error.name} is not installed"
        if self == Contender("openvino", "bf16") and not torch.cpu._is_avx512_bf16_supported():
            return "this CPU has no bfloat16 instructions"
        return ""

    def info(self) -> BackendInfo:
        return BackendInfo(
            backend=self.backend,
            device="cpu",
            versions={},
            dtype=self.dtype,
            quantization=self.quantization,
        )


CONTENDERS = {
    contender.label: contender
    for contender in (
        Contender("eager", "bf16"),
        Contender("inductor"),
        Contender("inductor", "bf16"),
        Contender("onnx"),
        Contender("onnx", quantization="int8-weights"),
        Contender("onnx", quantization="int8"),
        Contender("onnx", quantization="int8-static"),
        Contender("openvino"),
        Contender("openvino", "bf16"),
        Contender("openvino", quantization="int8-weights"),
        Contender("openvino", quantization="int8"),
        Contender("openvino", quantization="int8-static"),
    )
}


def load_unet(model: str) -> Any:
    if model == "mid":
        return build_unet("mid")
    from diffusers import UNet2DConditionModel

    cls: Any = UNet2DConditionModel
    unet = cls.from_pretrained(EMBEDDED, torch_dtype=torch.float32)
    return unet.eval().requires_grad_(False)


def compile_one(model: str, contender: Contender, folder: Path, threads: int) -> dict[str, Any]:
    """Compile the model's UNet, unless the folder has it; what there is to know of that."""
    target = folder / model / contender.label
    record = target / COMPILED
    if record.is_file():
        known: dict[str, Any] = json.loads(record.read_text())
        return known
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    unet, weights = load_unet(model), folder / model / "unet"
    if not weights.is_dir():
        weights.mkdir()
        save_file(unet.state_dict(), weights / "diffusion_pytorch_model.safetensors")
    if contender.backend == "inductor" and contender.dtype == "bf16":
        unet = unet.to(torch.bfloat16)
    began = time.perf_counter()
    options = CompileOptions(
        CPU, contender.dtype, "fp32", weights,  # type: ignore[arg-type]
        quantization=contender.quantization, threads=threads,  # type: ignore[arg-type]
        ranges=layer_ranges(model) if contender.quantization == "int8-static" else None,
    )  # fmt: skip
    graph = unet_graph("base", unet, CELLS[model])
    compile_part = {name: each.compile_part for name, each in all_targets().items()}
    path = compile_part[contender.backend](graph, graph.trace(), target, options)  # type: ignore[index]
    seconds = round(time.perf_counter() - began, 1)
    found = {
        "path": path.relative_to(folder).as_posix(),
        "compile_s": seconds,
        "bytes": sum(p.stat().st_size for p in target.rglob("*") if p.is_file()),
    }
    record.write_text(json.dumps(found))
    return found


@torch.inference_mode()
def layer_ranges(model: str) -> Ranges:
    """For static quantization: of pictures, or, for random weights, of random inputs.

    Those are of another size than what is measured later.
    """
    if model == "embedded":
        drawing = pipeline()
        ranges = watch_layers(drawing.unet)
        for seed, prompt in enumerate(PROMPTS):
            random = torch.Generator().manual_seed(seed)
            drawing(prompt, num_inference_steps=10, guidance_scale=5.0, generator=random)
        return ranges
    unet, side = load_unet(model), CELLS[model] - 8
    ranges = watch_layers(unet)
    for rows in (2, 5):
        UNetRows(unet)(**unet_example("base", unet, rows, side, side))
    return ranges


def measure(args: argparse.Namespace, model: str, label: str) -> dict[str, Any]:
    """One contender against eager float32, by turns; what it was compiled to is in the folder."""
    eager, contender = Runner(args, model, EAGER), Runner(args, model, label)
    figures: dict[str, Any] = {"load_s": round(contender.ask("load"), 2), "rows": {}}
    eager.ask("load")
    for rows in args.rows:
        reference, output = eager.ask("output", rows), contender.ask("output", rows)
        theirs, ours = [], []
        for _ in range(args.rounds):
            theirs.append(eager.ask("time", rows))
            ours.append(contender.ask("time", rows))
        eager_s, own_s = lower_quartile(theirs), lower_quartile(ours)
        figures["rows"][str(rows)] = {
            "times": round(eager_s / own_s, 2),
            "ms": round(own_s * 1e3, 2),
            "eager_ms": round(eager_s * 1e3, 2),
            "psnr_db": round(psnr_db(output, reference), 1),
        }
    eager.close()
    contender.close()
    return figures


def lower_quartile(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=4)[0] if len(seconds) > 1 else seconds[0]


class Runner:
    """A contender in a process of its own, asked through a pipe; it sleeps between questions."""

    def __init__(self, args: argparse.Namespace, model: str, label: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, end = spawn.Pipe()
        self._process = spawn.Process(target=answer, args=(end, args, model, label), daemon=True)
        self._process.start()
        end.close()

    def ask(self, *question: Any) -> Any:
        """`load` (seconds), `output` of a number of rows (a tensor), or their `time` (seconds)."""
        self._pipe.send(question)
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


@torch.inference_mode()
def answer(pipe: Connection, args: argparse.Namespace, model: str, label: str) -> None:
    """What a runner's process does until its pipe is closed."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    unet, run, inputs = load_unet(model), None, {}
    side = CELLS[model]
    with suppress(EOFError):
        while True:
            match pipe.recv():
                case ("load",):
                    began = time.perf_counter()
                    run = UNetRows(unet) if label == EAGER else load_contender(label, model, args)
                    pipe.send(time.perf_counter() - began)
                case ("output", rows):
                    inputs = unet_example("base", unet, rows, side, side)
                    pipe.send(run(**inputs).float().numpy(force=True))
                case ("time", _):
                    pipe.send(timed(partial(run, **inputs), CLOCKS[args.clock]))


def load_contender(label: str, model: str, args: argparse.Namespace) -> Any:
    """A function of the UNet's inputs by name."""
    contender = CONTENDERS[label]
    if contender.backend == "eager":
        module = UNetRows(load_unet(model)).to(torch.bfloat16)

        def eager_bf16(**inputs: torch.Tensor) -> torch.Tensor:
            cast = {n: t if n == "timestep" else t.bfloat16() for n, t in inputs.items()}
            output: torch.Tensor = module(**cast)
            return output.float()

        return eager_bf16
    found = json.loads((args.folder / model / label / COMPILED).read_text())
    weights = args.folder / model / "unet"
    options = PartOptions(contender.info(), CPU, weights, threads=args.threads)
    part = runtime(contender.backend).load(args.folder / found["path"], options)  # type: ignore[arg-type]
    return lambda **inputs: part(inputs)


def timed(run: Any, clock: Callable[[], float]) -> float:
    time.sleep(PAUSE_S)
    began = clock()
    run()
    return clock() - began


def psnr_db(output: np.ndarray, reference: np.ndarray) -> float:
    peak = float(reference.max() - reference.min())
    error = float(np.square(output.astype(np.float64) - reference).mean())
    return psnr_of_error(max(error, 1e-30), peak)


def aims(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best contender of each model that is exact enough, at the rows of the aims."""
    found = []
    for model in dict.fromkeys(result["model"] for result in results):
        for rows, target in AIMS.items():
            fit = [
                r["rows"][str(rows)]["times"]
                for r in results
                if r["model"] == model and r["rows"].get(str(rows), {}).get("psnr_db", 0) >= AIM_DB
            ]
            found.append(
                aim(f"{model}, {rows} rows, best of {AIM_DB:g} dB", max(fit, default=None), target,
                    at_least=True)
            )  # fmt: skip
    return found


def report(console: Console, results: list[dict[str, Any]], rows: list[int]) -> None:
    for model in dict.fromkeys(result["model"] for result in results):
        chosen = [result for result in results if result["model"] == model]
        header = ("", *(f"{r} rows" for r in rows), "dB", "load s", "MiB", "compile s")
        eager = {r: statistics.median(c["rows"][str(r)]["eager_ms"] for c in chosen) for r in rows}
        lines = [("eager-fp32, ms", *(number(eager[r]) for r in rows), "", "", "", "")]
        lines += [
            (
                result["contender"],
                *(number(result["rows"][str(r)]["times"], "x") for r in rows),
                number(min(result["rows"][str(r)]["psnr_db"] for r in rows)),
                number(result["load_s"]),
                number(result["bytes"] / 2**20 if "bytes" in result else None),
                number(result.get("compile_s")),
            )
            for result in chosen
        ]
        show(console, f"{model}: times as fast as eager float32", header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of what was compiled")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--models", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # torch.onnx's and Inductor's own
    console = Console(stderr=True)
    results, skipped = [], {}
    for label in args.contenders:
        if reason := CONTENDERS[label].missing():
            skipped[label] = reason
            console.print(f"{label}: left out, {reason}")
    chosen = [label for label in args.contenders if label not in skipped]
    compiled = {
        (model, label): compile_one(model, CONTENDERS[label], args.folder, args.threads)
        for model in args.models
        for label in chosen
        if CONTENDERS[label].backend != "eager"
    }
    gc.collect()
    if args.compile_only:
        return
    for model in args.models:
        for label in chosen:
            figures = measure(args, model, label)
            known = compiled.get((model, label), {})
            results.append({"model": model, "contender": label} | known | figures)
            console.print(model, label, {r: f["times"] for r, f in figures["rows"].items()})
    report(console, results, args.rows)
    reached = aims(results)
    show_aims(console, reached)
    where = machine() | {"threads": args.threads, "clock": args.clock}
    document = {"benchmark": "backends", **where, "skipped": skipped, "aims": reached}
    print(json.dumps(document | {"results": results}))


if __name__ == "__main__":
    main()
