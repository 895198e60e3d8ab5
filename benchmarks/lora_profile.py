"""Where does the time of eight different LoRAs in one batch go?

The engine in this process draws eight pictures on the embedded model, without adapters and with
eight different ones, as the server's benchmark asks for them: one request comes first, the others
while it makes its first step. Rounds take turns. The first round, which loads the adapters and
makes their mixes, is not counted; in the others the rows come in another order each time.

Stopwatches on the engine's thread stand around a few functions; each counts what its own part
takes, without the parts inside it. `ratio` is the whole against none, without the stopwatches.

    python -m benchmarks.lora_profile [--rounds 5] [--steps 25] [--threads 1] [--json PATH]

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from torch import nn

from benchmarks.adapters import write_variants
from benchmarks.load import prompt
from benchmarks.report import machine, number, show
from sdxl_bento.backends.eager import EagerBackend
from sdxl_bento.config import DEFAULT_MODEL, Settings
from sdxl_bento.diffusion.conditioning import Conditioner
from sdxl_bento.diffusion.lora.batches import Batches
from sdxl_bento.diffusion.lora.layers import ConvRows, LayerRows, LinearRows
from sdxl_bento.diffusion.plan import plan, resolve
from sdxl_bento.engine.core import Engine
from sdxl_bento.order import Order
from sdxl_bento.params import GenerateParams
from sdxl_bento.serving.loading import load
from sdxl_bento.serving.requests import to_request

REQUESTS = 8
UNET, AROUND = "UNet, its own layers", "adapters, around the products"
PARTS: dict[str, list[tuple[Any, str]]] = {
    "prompts": [(Conditioner, "condition")],
    UNET: [(EagerBackend, "denoise"), (nn.Linear, "forward"), (nn.Conv2d, "forward")],
    "adapters, convolutions": [(ConvRows, "add")],
    "adapters, linear layers": [(LinearRows, "add")],
    "adapters, gathering": [(LayerRows, "gather"), (Batches, "composition")],
    AROUND: [(LayerRows, "__call__")],
    "decoding": [(EagerBackend, "decode")],
    "engine and samplers": [(Engine, "step")],
}


class Stopwatches:
    """Seconds by part, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside: list[str] = []
        self._since = 0.0

    def around(self, part: str, function: Any) -> Any:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            # Decoding and encoding have layers of their own, which are not the UNet's.
            outer = self._inside[-1] if self._inside else ""
            self._turn(outer if part == UNET and outer in ("decoding", "prompts") else part)
            try:
                return function(*args, **kwargs)
            finally:
                self._back()

        return timed

    def _turn(self, part: str) -> None:
        self._count()
        self._inside.append(part)

    def _back(self) -> None:
        self._count()
        self._inside.pop()

    def _count(self) -> None:
        now = time.thread_time()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            for part, functions in PARTS.items():
                for owner, name in functions:
                    timed = self.around(part, getattr(owner, name))
                    stack.enter_context(patch.object(owner, name, timed))
            yield


class Bench:
    """One engine on the embedded model, stepped by hand."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.names = write_variants(options.model, folder, REQUESTS)
        settings = Settings(
            model=options.model,
            device="cpu",
            dtype="fp32",
            threads=options.threads,
            lora_dir=folder,
        )
        self.engine, models, _ = load(settings, 0, lambda: None)
        self.loaded = next(iter(models.values()))
        self.steps, self.count = options.steps, 0

    def draw(self, loras: Sequence[str | None]) -> float:
        """The thread's seconds for a picture each."""
        requests = [self._request(lora) for lora in loras]
        begin = time.thread_time()
        self.engine.submit(requests[0])
        self.engine.step()
        for request in requests[1:]:
            self.engine.submit(request)
        while not all(request.has_ended for request in requests):
            if not self.engine.step():
                time.sleep(0.001)  # an adapter is being loaded
        for request in requests:
            if request.error is not None:
                raise request.error
        return time.thread_time() - begin

    def _request(self, lora: str | None) -> Any:
        self.count += 1
        asked = {"prompt": prompt(self.count), "num_inference_steps": self.steps}
        asked |= {"seed": self.count, "loras": [{"name": lora}] if lora else []}
        order = Order("generate", GenerateParams.model_validate(asked))
        resolved = resolve(order, self.loaded.facts, seed=0)
        return to_request(f"r{self.count}", plan(resolved, self.loaded.facts), 0.0, None)


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    batches: dict[str, list[str | None]] = {"none": [None] * REQUESTS, "eight": [*bench.names]}
    rng = random.Random(0)
    plain: dict[str, list[float]] = {name: [] for name in batches}
    watches = {name: Stopwatches() for name in batches}
    for turn in range(rounds + 1):
        for name, loras in batches.items():
            rng.shuffle(loras)
            seconds = bench.draw(loras)
            if turn:
                plain[name].append(seconds)
                rng.shuffle(loras)
                with watches[name].running():
                    bench.draw(loras)
    ratios = [b / a for a, b in zip(plain["none"], plain["eight"], strict=True)]
    whole = sum(watches["none"].seconds.values())
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "parts": {
            name: {part: of.seconds[part] / whole for part in PARTS} for name, of in watches.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the JSON document there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Bench(options, Path(folder)), options.rounds)
    none, eight = found["parts"]["none"], found["parts"]["eight"]
    rows = [(part, number(none[part]), number(eight[part])) for part in PARTS]
    rows.append(("together", number(sum(none.values())), number(sum(eight.values()))))
    console = Console(highlight=False, width=100)
    show(console, "Thread time, none = 1", ("", "none", "eight"), rows)
    console.print(f"Without the stopwatches, eight cost {found['ratio']:.3f} of none.")
    document = {"benchmark": "lora_profile", "steps": options.steps, **machine(), **found}
    line = json.dumps(document)
    if options.json:
        options.json.write_text(line + "\n", "utf-8")
    print(line)


if __name__ == "__main__":
    main()
