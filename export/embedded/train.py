"""Trains the embedded model: ``python -m export.embedded.train``.

Counts steps, not minutes, and goes on where it was interrupted. On two cores, two processes with
different ``--stages`` and the same ``--work`` halve the time: after ``vae``, the stages ``unet`` on
one side and ``decoder refiner`` on the other do not depend on each other.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from export.embedded import WEIGHTS
from export.embedded.stages import STAGES, Context, run_stage

_WORK = Path(__file__).resolve().parents[2] / ".cache" / "embedded"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.embedded.train", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=list(STAGES),
        default=list(STAGES),
        metavar="STAGE",
        help="which stages to run, with what they need; all by default: " + ", ".join(STAGES),
    )
    parser.add_argument(
        "--work", type=Path, default=_WORK, help="directory for checkpoints and products"
    )
    parser.add_argument(
        "--target", type=Path, default=WEIGHTS, help="directory for the assembled weights"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of this process")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    context = Context(options.work, options.seed, options.target)
    for name in options.stages:
        run_stage(name, context)


if __name__ == "__main__":
    main()
