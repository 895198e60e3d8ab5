"""How fast is one GPU with full-size SDXL: diffusers, diffusers compiled, and ours?

Full-size SDXL base with random weights (`full_size.py`) in float16, its decoder in bfloat16, at
512² and 1024². Each contender is a fresh process; what the pictures show is not looked at, what
they cost does not depend on it.

The physics. A forward of the UNet at 1024² is 6.76 TFLOP a row, a decode 10.5 TFLOP: 30 steps with
guidance are 416 TFLOP, 0.52 s at 800 TFLOP/s, which is what a matrix product in 16 bits reaches on
an H100. 8-bit products have twice that limit, but convolutions stay in 16 bits. What is in between:
attention and convolutions below the limit of products, memory traffic between kernels, launches.

    eager            diffusers as it is
    compile          diffusers with torch.compile(max-autotune), QKV fused, channels last, as in its
                     documentation
    graphs           ours, not compiled: attention backend picked, a CUDA graph for each shape
    inductor         ours: one package for all sizes and rows, a CUDA graph for each shape
    inductor-static  ours, a package for each size and number of rows
    inductor-fp8     ours with the large linear layers in float8; -int8 likewise; -static too
    inductor-qkv     ours with the projections of attention fused

    python -m benchmarks.gpu [--contenders …] [--sizes 512 1024] [--json PATH]
    python -m benchmarks.gpu --device cpu --tiny --contenders eager graphs   shows that it runs

Times are without text encoding and without image files. With `--json` a file of earlier runs is
added to: a run of one contender and size replaces that of the same, so that the whole can be
measured in parts. Without a CUDA device it says so and ends well. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.report import aim, machine, number, show, show_aims

CONTENDERS = ("eager", "compile", "graphs", "inductor", "inductor-static", "inductor-fp8")
FURTHER = ("inductor-qkv", "inductor-fp8-static", "inductor-int8", "inductor-int8-static")
ROOT = Path(__file__).resolve().parent.parent
Run = dict[str, Any]
COLUMNS = {
    "step_ms": "step, ms",
    "step_tflops": "TFLOP/s",
    "decode_ms": "decode, ms",
    "image_30_steps_s": "30 steps, s",
    "share_of_limit": "of 800 TFLOP/s",
    "images_per_s_20_steps": "images/s, 20 steps",
    "peak_gib": "peak, GiB",
    "psnr_db": "PSNR, dB",
    "ready_s": "ready, s",
}


def main() -> None:
    options = _options()
    console = Console(highlight=False, width=140)
    document = _earlier(options.json) | {"benchmark": "gpu", **machine(), "tiny": options.tiny}
    if options.device == "cuda" and not torch.cuda.is_available():
        console.print("no CUDA device: nothing was measured")
        document["skipped"] = "no CUDA device"
    else:
        document["device"] = _device(options.device)
        for size in options.sizes:
            for name in options.contenders:
                run = measure(name, size, options)
                document["runs"] = _replaced(document["runs"], run)
                if options.json:  # what was measured is kept, should the next one be killed
                    options.json.write_text(json.dumps(document) + "\n")
        document["aims"] = aims(document["runs"])
        tell(console, document)
    line = json.dumps(document)
    if options.json and "skipped" not in document:
        options.json.write_text(line + "\n")
    print(line)


def measure(name: str, size: int, options: argparse.Namespace) -> Run:
    """One contender at one size, in a process of its own. Its failure is a result too."""
    command = [
        sys.executable, "-m", "benchmarks.contenders.on_gpu", name,
        "--device", options.device, "--size", str(size),
        "--batch", str(options.batch), "--runs", str(options.runs),
    ]  # fmt: skip
    command += ["--tiny"] * options.tiny + ["--no-autotune"] * (not options.autotune)
    run: Run = {"contender": name, "size": size, **machine()}
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as scratch:
        work = options.work or Path(scratch)
        try:
            done = subprocess.run(
                [*command, "--work", str(work)],
                cwd=ROOT, capture_output=True, text=True, check=True, timeout=options.limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return run | {"error": f"took longer than {options.limit} s"}
        except subprocess.CalledProcessError as error:
            return run | {"error": error.stderr.strip()[-2000:]}
    return run | json.loads(done.stdout.splitlines()[-1])


def aims(runs: list[Run]) -> list[Run]:
    """Those of full-size 1024²; None where it was not measured."""
    at = {run["contender"]: run for run in runs if run["size"] == 1024}
    plain = [
        at[name] for name in ("inductor", "inductor-static", "inductor-qkv", "graphs") if name in at
    ]
    low = [at[name] for name in ("inductor-fp8", "inductor-fp8-static") if name in at]

    def best(runs: list[Run], field: str, pick: Any) -> float | None:
        return pick((run[field] for run in runs if field in run), default=None)

    return [
        aim("1024², 30 steps, fp16", best(plain, "image_30_steps_s", min), 0.95, at_least=False),
        aim("1024², 30 steps, fp8", best(low, "image_30_steps_s", min), 0.65, at_least=False),
        aim("decode, ms", best(plain + low, "decode_ms", min), 40, at_least=False),
        aim("images/s, 20 steps", best(plain + low, "images_per_s_20_steps", max), 2.4,
            at_least=True),
    ]  # fmt: skip


def tell(console: Console, document: Run) -> None:
    console.print(f"{document['device']}, torch {torch.__version__}")
    for size in sorted({run["size"] for run in document["runs"]}):
        runs = [run for run in document["runs"] if run["size"] == size]
        rows = [(run["contender"], *(number(run.get(field)) for field in COLUMNS)) for run in runs]
        show(console, f"{size} × {size}", ("", *COLUMNS.values()), rows)
        for run in runs:
            if "error" in run:
                console.print(f"  {run['contender']}: {run['error'].splitlines()[-1]}")
    if not document["tiny"]:
        show_aims(console, document["aims"])


def _earlier(path: Path | None) -> Run:
    if path is None or not path.exists():
        return {"runs": []}
    document: Run = json.loads(path.read_text())
    return {"runs": document.get("runs", [])}


def _replaced(runs: list[Run], run: Run) -> list[Run]:
    key = (run["contender"], run["size"])
    return [old for old in runs if (old["contender"], old["size"]) != key] + [run]


def _device(kind: str) -> str:
    return torch.cuda.get_device_name() if kind == "cuda" else "cpu"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a miniature of the architecture")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS + FURTHER, default=list(CONTENDERS)
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="pixels of a side")
    parser.add_argument("--batch", type=int, default=4, help="pictures at once for images/s")
    parser.add_argument("--runs", type=int, default=20, help="timed forwards of a figure")
    parser.add_argument("--no-autotune", dest="autotune", action="store_false")
    parser.add_argument("--limit", type=int, default=3600, help="seconds for each contender")
    parser.add_argument("--work", type=Path, help="keep weights and packages there")
    parser.add_argument("--json", type=Path, help="also keep the document there, added to")
    options = parser.parse_args()
    options.sizes = options.sizes or ([64] if options.tiny else [512, 1024])
    return options


if __name__ == "__main__":
    main()
