"""The training loop that every stage shares: AdamW, warm-up and cosine, EMA, exact resumption.

A stage gives a function that computes the loss of one step from a random generator. The generator
is seeded anew for every step from (seed, stage, step), so a run that was killed and started again
draws the same batches and the same noise as one that was not, and a checkpoint needs no random
state besides the step number.
"""

import hashlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

LossFunction = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]
"""Maps (step, generator) to the loss and the figures to be logged."""


@dataclass(frozen=True)
class Plan:
    """How one stage is trained."""

    stage: str
    steps: int
    rate: float
    warmup: int = 50
    final_rate: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 1e-3
    clip: float = 1.0
    average: float = 0.998
    log_every: int = 50
    checkpoint_every: int = 100
    seed: int = 0
    stop_after: int | None = None  # ends the run early, as a killed process would; for tests


def step_generator(seed: int, stage: str, step: int) -> torch.Generator:
    """A random generator that depends only on its arguments."""
    digest = hashlib.sha256(f"{seed}/{stage}/{step}".encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:7], "big"))
    return generator


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up times a half cosine from ``rate`` down to ``final_rate``."""
    ramp = min(1.0, (step + 1) / max(1, plan.warmup))
    wave = 0.5 + 0.5 * math.cos(math.pi * step / plan.steps)
    return plan.final_rate + plan.rate * ramp * wave


def batch_indices(size: int, batch: int, generator: torch.Generator) -> Tensor:
    """``batch`` random row numbers below ``size``."""
    return torch.randint(0, size, (batch,), generator=generator)


class Report:
    """A progress bar on a terminal, one line per interval elsewhere."""

    def __init__(self, stage: str, total: int, start: int) -> None:
        self._stage, self._total = stage, total
        self._bar: Progress | None = Progress() if sys.stdout.isatty() else None
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(stage, total=total, completed=start)
        self._start, self._since = start, time.monotonic()

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        """Report that ``step`` steps are done."""
        text = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"{self._stage} {text}")
            return
        pace = (time.monotonic() - self._since) / max(1, step - self._start)
        print(f"{self._stage} {step}/{self._total} {text} ({pace:.3f} s/step)", flush=True)

    def close(self) -> None:
        """Stop the progress bar."""
        if self._bar is not None:
            self._bar.stop()


def save_atomically(value: object, path: Path) -> None:
    """``torch.save`` that never leaves an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    torch.save(value, partial)
    partial.replace(path)


class Trainer:
    """Trains named parameters and keeps their running average; resumes from ``checkpoint``."""

    def __init__(self, plan: Plan, parameters: Mapping[str, torch.nn.Parameter], checkpoint: Path):
        self.plan, self.checkpoint, self.step = plan, checkpoint, 0
        self._names = list(parameters)
        self._live: Sequence[torch.nn.Parameter] = list(parameters.values())
        self._average = [p.detach().clone() for p in self._live]
        self._optimizer = torch.optim.AdamW(
            self._live, lr=plan.rate, betas=plan.betas, weight_decay=plan.decay
        )
        if checkpoint.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        if state["names"] != self._names:
            raise ValueError(f"{self.checkpoint} belongs to another network; remove it")
        self.step = state["step"]
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for live, stored in zip(self._live, state["live"], strict=True):
                live.copy_(stored)
        self._average = list(state["average"])

    def _save(self) -> None:
        state = {
            "names": self._names,
            "step": self.step,
            "optimizer": self._optimizer.state_dict(),
            "live": [p.detach() for p in self._live],
            "average": self._average,
        }
        save_atomically(state, self.checkpoint)

    def _update(self, loss: Tensor) -> None:
        plan = self.plan
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(plan, self.step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._live, plan.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.step += 1
        # The average starts over few steps, so that it forgets the initial random weights.
        keep = min(plan.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self._average, [p.detach() for p in self._live], 1 - keep)

    def run(self, loss_of: LossFunction) -> None:
        """Train to the end of the plan, then put the averaged weights into the parameters."""
        plan, sums, count = self.plan, dict[str, float](), 0
        report = Report(plan.stage, plan.steps, self.step)
        last = plan.steps if plan.stop_after is None else min(plan.steps, plan.stop_after)
        try:
            while self.step < last:
                generator = step_generator(plan.seed, plan.stage, self.step)
                loss, figures = loss_of(self.step, generator)
                self._update(loss)
                count += 1
                for name, value in {"loss": loss.item(), **figures}.items():
                    sums[name] = sums.get(name, 0.0) + value
                if self.step % plan.log_every == 0:
                    report.show(self.step, {name: s / count for name, s in sums.items()})
                    sums, count = {}, 0
                if self.step % plan.checkpoint_every == 0 or self.step == last:
                    self._save()
        finally:
            report.close()
        with torch.no_grad():
            for live, mean in zip(self._live, self._average, strict=True):
                live.copy_(mean)
