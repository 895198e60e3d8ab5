"""Does the engine keep a GPU busy, and how long does a newcomer wait for it?

Full-size SDXL base with random weights (`full_size.py`), float16, at 512² and 1024², driven by our
own `Engine` and `Runner`; no server, no network, no files.

The physics. The host only describes the work; the device does it later. As long as the host is a
step ahead, its own time (choosing the batch, some thousand kernel launches of a UNet) costs
nothing. One wait of the host for the device in a step (a copy from pageable memory, an `.item()`)
empties the queue, and the device idles while the host describes the next step. The engine keeps two
units in flight and waits only for the end of the oldest: then a newcomer waits for two steps at
most, and the device never. Where a step of the device takes less time than the host needs to launch
it (small batches at 512², eager), launching is the bound, and only compilation or graphs lift it.

    steps/s    of 1, 2, 4 and 8 requests with guidance (two rows each), alone and batched
    busy       units' times by CUDA events, over wall clock, while requests only step; and the share
               of that time in which a kernel ran, by the profiler
    newcomer   a request comes while eight denoise: steps of theirs, and ms, until its first step
    syncs      calls that make the host wait for the device, for each step, by the profiler. Waiting
               for the end of the oldest unit (`cudaEventSynchronize`) is counted apart: it is meant

    python -m benchmarks.gpu_engine [--sizes 512 1024] [--steps 20] [--json PATH]
    python -m benchmarks.gpu_engine --device cpu --tiny      shows that the code runs

Without a CUDA device it says so and ends well. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.report import aim, machine, number, show, show_aims
from benchmarks.stepping import (
    COUNTS,
    CROWD,
    Bench,
    Results,
    newcomer,
    profile,
    steps_per_second,
    warm_up,
    whole_life,
)


def main() -> None:
    options = _options()
    console = Console(highlight=False, width=100)
    document: Results = {"benchmark": "gpu_engine", **machine(), "tiny": options.tiny}
    if options.device == "cuda" and not torch.cuda.is_available():
        console.print("no CUDA device: nothing was measured")
        document["skipped"] = "no CUDA device"
    else:
        document |= measure(options)
        document["aims"] = aims(document)
        tell(console, document)
    line = json.dumps(document)
    if options.json:
        options.json.write_text(line + "\n")
    print(line)


def measure(options: argparse.Namespace) -> Results:
    # Imported here: diffusers takes seconds, and there may be no device to use it on.
    from benchmarks.full_size import SDXL, TINY, serve
    from sdxl_bento.diffusion.model import Placement

    placement = Placement.choose(options.device, "auto")
    begin = time.perf_counter()
    served, facts = serve(placement, TINY if options.tiny else SDXL)
    unet = served.model.base.unet
    found: Results = {
        "device": _name(placement.device),
        "dtype": str(placement.dtype).removeprefix("torch."),
        "unet_parameters": sum(weight.numel() for weight in unet.parameters()),
        "build_s": round(time.perf_counter() - begin, 2),
        "sizes": {},
    }
    for size in options.sizes:
        bench = Bench(served, facts, size, options.steps, placement.device)
        warm_up(bench)
        found["sizes"][str(size)] = {
            "steps": {str(count): steps_per_second(bench, count) for count in COUNTS},
            "newcomer": newcomer(bench),
            "profile": profile(bench),
            "waits_in_a_whole_life": whole_life(bench),
        }
    return found


def aims(document: Results) -> list[Results]:
    found = []
    for size, of in document["sizes"].items():
        calls = of["profile"]["waits_per_step"].values()
        waits = sum(calls) + of["profile"]["pageable_copies_per_step"]
        busy = of["steps"][str(CROWD)]["busy"]
        steps = of["newcomer"]["steps_of_others_before_its_first"]
        cuda = document["device"] != "cpu"
        found += [
            aim(f"{size}²: device busy, 8 requests", busy, 0.97, at_least=True),
            aim(f"{size}²: host waits in a step", waits if cuda else None, 0, at_least=False),
            aim(f"{size}²: steps until a newcomer's first", steps, 3, at_least=False),
        ]
    return found


def tell(console: Console, document: Results) -> None:
    console.print(f"{document['device']}, {document['dtype']}, torch {torch.__version__}")
    for size, of in document["sizes"].items():
        rows = [
            (
                count,
                f"{s['steps_per_s']:.1f}",
                f"{s['ms_per_unit']:.2f}",
                f"{s['busy']:.1%}",
                f"{s['idle_ms_per_unit']:.3f}",
            )
            for count, s in of["steps"].items()
        ]
        header = ("requests", "steps/s", "ms a unit", "device busy", "idle ms a unit")
        show(console, f"{size} × {size}", header, rows)
        for name in ("newcomer", "profile", "waits_in_a_whole_life"):
            console.print(f"  {name}: {_plain(of[name])}")
    show_aims(console, document["aims"])


def _plain(of: Results) -> str:
    return ", ".join(
        f"{name} {number(value) if isinstance(value, float) else value}"
        for name, value in of.items()
    )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a miniature of the architecture")
    parser.add_argument("--sizes", type=int, nargs="+", help="pixels of a side")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each figure")
    parser.add_argument("--json", type=Path, help="also write the JSON document there")
    options = parser.parse_args()
    options.sizes = options.sizes or ([64, 128] if options.tiny else [512, 1024])
    return options


if __name__ == "__main__":
    main()
