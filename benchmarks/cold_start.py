"""How long does the service take from its start to ready, eagerly and with a compiled backend?

One server at a time, a fresh process each, by turns: eager, then each backend of the model. Counted
from the start of `bentoml serve` to the first 200 of `/readyz`, which includes Python's imports,
loading and the warm-up. The first round fills the runtimes' caches and is shown apart. The aim is
at most 1.3 times eager's.

    python -m benchmarks cold_start --model sdxl-embedded:latest [--rounds 3]

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks.contenders.servers import Contender, free_ports, serve
from benchmarks.report import aim, machine, show, show_aims
from sdxl_bento.manifest import Manifest
from sdxl_bento.serving.loading import folder_of

MOST = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="sdxl-embedded:latest", help="its tag in the store")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch and of the runtimes")
    options = parser.parse_args()
    backends = [info.label for info in Manifest.load(folder_of(options.model)).backends[1:]]
    if not backends:
        raise SystemExit(f"{options.model} has no compiled backend; export it with --target")
    seconds: dict[str, list[float]] = {name: [] for name in ("eager", *backends)}
    with tempfile.TemporaryDirectory(prefix="sdxl-bento-bench-") as logs:
        for _ in range(options.rounds + 1):
            for name, found in seconds.items():
                found.append(_start(options.model, name, options.threads, Path(logs)))
    later = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    ratios = {name: later[name] / later["eager"] for name in backends}
    aims = [aim(f"{name} against eager", r, MOST, at_least=False) for name, r in ratios.items()]
    console = Console(highlight=False, width=100)
    rows = [(name, f"{found[0]:.1f} s", f"{later[name]:.1f} s") for name, found in seconds.items()]
    show(console, "From the start to ready", ("", "first", "median of the later"), rows)
    show_aims(console, aims)
    print(json.dumps({"benchmark": "cold_start", **machine(), "seconds": seconds, "aims": aims}))


def _start(tag: str, backend: str, threads: int, logs: Path) -> float:
    (port,) = free_ports(1)
    command = (sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port))
    contender = Contender(backend, backend, (*command, "."))
    env = os.environ | {
        "SDXL_MODEL": tag,
        "SDXL_BACKEND": backend,
        "SDXL_ALLOW_FALLBACK": "false",
        "SDXL_DEVICE": "cpu",
        "OMP_NUM_THREADS": str(threads),
        "SDXL_THREADS": str(threads),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    began = time.perf_counter()
    with serve(contender, port, env, logs):
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
