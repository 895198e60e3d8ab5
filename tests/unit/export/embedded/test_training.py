"""The shared training loop: exact resumption, schedule, stages."""

from pathlib import Path

import pytest
import torch

from export.embedded.stages import STAGES
from export.embedded.training import Plan, Trainer, learning_rate, step_generator


def run(
    checkpoint: Path, steps: int = 6, stop_after: int | None = None
) -> tuple[dict[str, torch.Tensor], int]:
    """Fit a small network to random targets; returns its weights and the last step."""
    torch.manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
    plan = Plan(
        "toy", steps, 1e-2, warmup=2, checkpoint_every=2, log_every=3, stop_after=stop_after
    )

    def loss_of(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        inputs = torch.randn(16, 4, generator=generator)
        target = inputs.sum(1, keepdim=True) + torch.randn(16, 1, generator=generator)
        return (network(inputs) - target).square().mean(), {"step": float(step)}

    trainer = Trainer(plan, dict(network.named_parameters()), checkpoint)
    trainer.run(loss_of)
    return {k: v.clone() for k, v in network.state_dict().items()}, trainer.step


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole.ckpt")
    _, half_way = run(tmp_path / "parts.ckpt", stop_after=3)
    assert half_way == 3
    parts, end = run(tmp_path / "parts.ckpt")
    assert end == 6
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path / "toy.ckpt")
    again, end = run(tmp_path / "toy.ckpt")
    assert end == 6
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "toy.ckpt")
    other = torch.nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="another network"):
        Trainer(Plan("toy", 6, 1e-2), {"kernel": other.weight}, tmp_path / "toy.ckpt")


def test_the_rate_rises_and_falls() -> None:
    plan = Plan("toy", 100, 1.0, warmup=10, final_rate=0.0)
    rates = [learning_rate(plan, step) for step in range(100)]
    assert rates[0] < rates[9] < 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_random_numbers_depend_on_seed_stage_and_step() -> None:
    draws = [
        torch.rand(1, generator=step_generator(*key)).item()
        for key in ((0, "a", 0), (0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    ]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 4


def test_every_stage_needs_known_stages_that_come_before_it() -> None:
    done: set[str] = set()
    for name, stage in STAGES.items():
        assert set(stage.needs) <= done
        done.add(name)
