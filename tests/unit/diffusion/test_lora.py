"""The pool: what is known, loaded, in use and evicted, and by whose thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sdxl_bento.diffusion.lora import batches as lora_batches
from sdxl_bento.diffusion.lora import pool as lora
from sdxl_bento.diffusion.lora.pool import LoraPool
from sdxl_bento.errors import (
    AdapterMismatch,
    AdapterNotFound,
    ConfigurationError,
    RequestFailed,
)
from tests.support import loras
from tests.support.loras import CLIP, mix, wait_ready

Targets = dict[str, nn.Module]


@pytest.fixture(scope="module")
def targets() -> Targets:
    return loras.tiny_targets()


@pytest.fixture(scope="module")
def folder(targets: Targets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters of one size, of the UNet alone."""
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate("abc"):
        loras.write_peft(folder / f"{name}.safetensors", loras.factors(targets, seed=seed))
    return folder


@pytest.fixture
def pools() -> Iterator[list[LoraPool]]:
    made: list[LoraPool] = []
    yield made
    for pool in made:
        pool.close()


@pytest.fixture
def pool(targets: Targets, folder: Path, pools: list[LoraPool]) -> LoraPool:
    pool = LoraPool(targets, budget_bytes=1 << 30, on_loaded=lambda: None)
    pools.append(pool)
    pool.scan(folder)
    return pool


def room_for(pool: LoraPool, count: float) -> None:
    """Give the pool a budget of so many of the three adapters."""
    wait_ready(pool, "a")
    pool._budget = int(count * pool._loaded["a"].nbytes)


def loaded(pool: LoraPool) -> set[str]:
    return {name for name in pool.names() if pool.is_loaded(name)}


def replaced_forwards(module: nn.Module) -> list[str]:
    """Layers that run with adapters: their `forward` is set on the instance."""
    return [name for name, layer in module.named_modules() if "forward" in vars(layer)]


# What there is


def test_scan_takes_only_safetensors(pool: LoraPool, targets: Targets, tmp_path: Path) -> None:
    for name in ("x.bin", "y.ckpt", "z.pt", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "d.safetensors").mkdir()
    loras.write_peft(tmp_path / "w.safetensors", loras.factors(targets))
    assert pool.scan(tmp_path) == ["w"]
    assert pool.names() == ["a", "b", "c", "w"]
    with pytest.raises(ConfigurationError, match=r"not a \.safetensors file"):
        pool.register("x", tmp_path / "x.bin")
    with pytest.raises(ConfigurationError):
        pool.register("gone", tmp_path / "gone.safetensors")


def test_names_that_there_are_not(pool: LoraPool) -> None:
    for call in (pool.is_pinned, pool.size_bytes, lambda name: pool.ready([name])):
        with pytest.raises(AdapterNotFound, match="available: a, b, c"):
            call("nobody")
    assert not pool.is_loaded("nobody")


def test_size_and_fingerprint(pool: LoraPool, folder: Path) -> None:
    cold = pool.fingerprint(["a", "b"])
    assert pool.size_bytes("a") == (folder / "a.safetensors").stat().st_size
    wait_ready(pool, "ab")
    assert pool.size_bytes("a") == (folder / "a.safetensors").stat().st_size
    assert pool.fingerprint(["b", "a"]) == cold
    assert pool.fingerprint(["a"]) != cold != pool.fingerprint(["b"])


# Loading


def test_loads_in_the_background(targets: Targets, folder: Path, pools: list[LoraPool]) -> None:
    threads = []
    pool = LoraPool(
        targets,
        budget_bytes=1 << 30,
        on_loaded=lambda: threads.append(threading.current_thread().name),
    )
    pools.append(pool)
    pool.scan(folder)
    assert not pool.ready(["a"])
    wait_ready(pool, ["a"])
    assert pool.ready([])
    pool.close()
    assert len(threads) == 1
    assert threads[0].startswith("lora-loader")


def test_two_requests_load_a_file_once(pool: LoraPool, monkeypatch: pytest.MonkeyPatch) -> None:
    go, calls = threading.Event(), []
    real = lora.read_adapter

    def slow(name: str, *args: Any) -> Any:
        calls.append(name)
        assert go.wait(10)
        return real(name, *args)

    monkeypatch.setattr(lora, "read_adapter", slow)
    assert not pool.ready(["a"])
    assert not pool.ready(["a", "b"])
    assert not pool.is_loaded("a")
    go.set()
    wait_ready(pool, "ab")
    assert sorted(calls) == ["a", "b"]


def ended(pool: LoraPool, *names: str) -> None:
    """Start loading and wait until it has ended, however."""
    pool.ready(names)
    pool._loader.submit(lambda: None).result(10)


def test_a_misfit_is_told_until_the_file_changes(
    pool: LoraPool, targets: Targets, tmp_path: Path
) -> None:
    tensors = loras.factors(targets)
    bad = loras.write_peft(
        tmp_path / "d.safetensors", tensors | {"unet.x.dora_scale": tensors.popitem()[1]}
    )
    pool.register("d", bad)
    ended(pool, "d")
    for _ in range(2):
        with pytest.raises(AdapterMismatch, match="DoRA") as caught:
            pool.ready(["a", "d"])
        assert caught.value.keys == ("unet.x.dora_scale",)
    assert not pool.is_loaded("d")
    loras.write_peft(bad, loras.factors(targets))
    wait_ready(pool, "d")


def test_other_failures_are_told_once_and_tried_again(
    pool: LoraPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(lora, "read_adapter", broken)
        ended(pool, "a")
        with pytest.raises(RequestFailed, match="a could not be loaded"):
            pool.ready(["a"])
    assert "ZeroDivisionError" in caplog.text
    wait_ready(pool, "a")


def test_a_file_that_vanished(pool: LoraPool, targets: Targets, tmp_path: Path) -> None:
    path = loras.write_peft(tmp_path / "d.safetensors", loras.factors(targets))
    pool.register("d", path)
    path.unlink()
    ended(pool, "d")
    with pytest.raises(AdapterNotFound, match="is gone"):
        pool.ready(["d"])


def test_a_changed_file_is_taken_up_by_the_next_scan(
    pool: LoraPool, targets: Targets, tmp_path: Path
) -> None:
    path = loras.write_peft(tmp_path / "d.safetensors", loras.factors(targets, seed=1))
    pool.scan(tmp_path)
    wait_ready(pool, "d")
    before = pool.fingerprint("d")
    loras.write_peft(path, loras.factors(targets, seed=2))
    pool.use("d")
    pool.scan(tmp_path)
    assert pool.is_loaded("d"), "in use: the running request keeps what it started with"
    pool.release("d")
    pool.scan(tmp_path)
    assert not pool.is_loaded("d")
    wait_ready(pool, "d")
    assert pool.fingerprint("d") != before


def test_fingerprints_are_of_what_is_drawn_with(
    pool: LoraPool, targets: Targets, tmp_path: Path
) -> None:
    """The file that was loaded, also after it was replaced; else the file as it is now."""
    path = loras.write_peft(tmp_path / "d.safetensors", loras.factors(targets, seed=1))
    pool.scan(tmp_path)

    def on_disk() -> dict[str, str]:
        return {"d": sha256(path.read_bytes()).hexdigest()}

    first = on_disk()
    assert pool.fingerprints(["d"]) == first
    loras.write_peft(path, loras.factors(targets, seed=2))
    second = on_disk()
    assert pool.fingerprints(["d"]) == second != first
    wait_ready(pool, "d")
    loras.write_peft(path, loras.factors(targets, seed=3))
    assert pool.fingerprints(["d"]) == second
    pool.scan(tmp_path)
    assert pool.fingerprints(["d"]) == on_disk()
    path.unlink()
    with pytest.raises(AdapterNotFound, match="is gone"):
        pool.fingerprints(["d"])


# Evicting


def test_the_least_recently_asked_for_goes(pool: LoraPool) -> None:
    room_for(pool, 2.5)
    wait_ready(pool, "b")
    assert pool.ready("a")  # b is now the older one
    wait_ready(pool, "c")
    assert loaded(pool) == {"a", "c"}


def test_in_use_and_pinned_stay(pool: LoraPool, folder: Path) -> None:
    room_for(pool, 1.5)
    pool.use("a")
    pool._pinned = {"b"}
    assert pool.is_pinned("b")
    wait_ready(pool, "b")
    wait_ready(pool, "c")
    assert loaded(pool) == {"a", "b", "c"}
    pool.release("a")
    assert loaded(pool) == {"b"}


def test_use_is_counted(pool: LoraPool) -> None:
    room_for(pool, 0.5)
    pool.use("a")
    pool.use("a")
    pool.release("a")
    assert loaded(pool) == {"a"}
    pool.release("a")
    assert loaded(pool) == set()


def test_one_request_may_want_more_than_the_budget(pool: LoraPool) -> None:
    room_for(pool, 1.5)
    wait_ready(pool, "abc")
    pool.use("abc")
    assert loaded(pool) == {"a", "b", "c"}
    pool.release("abc")
    assert loaded(pool) == {"c"}


# Applying


def test_no_adapters_no_work(pool: LoraPool, targets: Targets) -> None:
    wait_ready(pool, "a")
    unet, inputs = targets["unet"], loras.unet_inputs(2)
    before = loras.unet_output(unet, inputs)
    with pool.applied("unet", [(), ()]):
        assert not replaced_forwards(unet)
        assert torch.equal(loras.unet_output(unet, inputs), before)
    loras.unet_output(unet, inputs, pool, [mix(a=1.0), ()])
    assert torch.equal(loras.unet_output(unet, inputs), before)


def test_a_target_that_the_adapters_leave_alone(pool: LoraPool, targets: Targets) -> None:
    wait_ready(pool, "a")
    with pool.applied("text_encoder", [mix(a=1.0)]):
        assert not replaced_forwards(targets["text_encoder"])
    with pool.applied("unet", [mix(a=1.0)]):
        assert replaced_forwards(targets["unet"]), "what is looked for would be seen"


def test_which_targets_an_adapter_changes(pool: LoraPool, targets: Targets, tmp_path: Path) -> None:
    path = loras.write_peft(tmp_path / "d.safetensors", loras.factors(targets, "", CLIP))
    pool.register("d", path)
    wait_ready(pool, "ad")
    assert pool.changes("a", "unet")
    assert not pool.changes("a", "text_encoder")
    assert not pool.changes("d", "unet")
    assert pool.changes("d", "text_encoder_2")


def test_what_is_not_loaded_cannot_be_applied(pool: LoraPool) -> None:
    with pytest.raises(RequestFailed, match="not loaded: a, b"):
        pool.applied("unet", [mix(a=1.0, b=1.0)])


def test_rows_of_one_mix_do_not_depend_on_the_others(pool: LoraPool, targets: Targets) -> None:
    wait_ready(pool, "abc")
    inputs, unet = loras.unet_inputs(6), targets["unet"]
    rows = [mix(a=1.0), mix(a=1.0), mix(b=0.5, c=-0.5), (), mix(c=2.0), mix(a=1.0)]
    together = loras.unet_output(unet, inputs, pool, rows)
    for mixed in set(rows):
        alone = loras.unet_output(unet, inputs, pool, [mixed] * 6)
        mine = [i for i, row in enumerate(rows) if row == mixed]
        assert (together[mine] - alone[mine]).abs().max() < 1e-5


def test_the_same_rows_gather_nothing_again(pool: LoraPool, targets: Targets) -> None:
    wait_ready(pool, "ab")
    rows, inputs = [mix(a=1.0), mix(b=1.0)], loras.unet_inputs(2)
    first = loras.unet_output(targets["unet"], inputs, pool, rows)
    (composition,) = pool._batches._compositions.values()
    gathered = [layer.factors for layer in composition._layers]
    assert torch.equal(loras.unet_output(targets["unet"], inputs, pool, rows), first)
    assert list(pool._batches._compositions.values()) == [composition]
    assert all(
        layer.factors is before for layer, before in zip(composition._layers, gathered, strict=True)
    )


def test_what_was_gathered_is_bounded_too(pool: LoraPool, targets: Targets) -> None:
    wait_ready(pool, "ab")
    for scale in range(1, 70):
        loras.unet_output(targets["unet"], loras.unet_inputs(1), pool, [mix(a=float(scale))])
    assert len(pool._batches._compositions) <= lora_batches.KEPT_COMPOSITIONS
    assert len(pool._batches._mixes) <= lora_batches.KEPT_MIXES
    pool._budget = pool._batches._budget = 1
    for scale in range(1, 4):
        loras.unet_output(targets["unet"], loras.unet_inputs(1), pool, [mix(a=float(scale))])
    assert len(pool._batches._compositions) == len(pool._batches._mixes) == 1
    pool.release(())
    assert not pool._batches._compositions, "gathered from an adapter that is evicted"
    assert not pool._batches._mixes


def test_offloaded_layers(pool: LoraPool, targets: Targets, folder: Path) -> None:
    """accelerate's hooks wrap forward; the weights are on no device between calls."""
    from accelerate import cpu_offload

    inputs, rows = loras.unet_inputs(2), [mix(a=1.0), mix(b=1.0)]
    wait_ready(pool, "ab")
    expected = loras.unet_output(targets["unet"], inputs, pool, rows)
    unet = loras.tiny_targets()["unet"]
    cpu_offload(unet, execution_device=torch.device("cpu"))
    offloaded = loras.pool_of(
        {"unet": unet}, a=folder / "a.safetensors", b=folder / "b.safetensors"
    )
    assert torch.equal(loras.unet_output(unet, inputs, offloaded, rows), expected)
    offloaded.close()
