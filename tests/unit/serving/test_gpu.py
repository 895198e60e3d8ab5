"""What the driver says of GPUs, with the driver faked."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from sdxl_bento.serving.gpu import GPU, Usage, gpus_of


class NVMLError(Exception):
    """The driver's only class of errors."""


class Driver:
    """The surface of `pynvml` for two GPUs and a MIG slice, by their UUIDs."""

    NVMLError = NVMLError

    def __init__(self, *, tells_busy: bool = True) -> None:
        self.handles = {b"GPU-a": 4, b"GPU-b": 6, b"MIG-c": 7}
        self.started = 0
        self.tells_busy = tells_busy

    def nvmlInit(self) -> None:
        self.started += 1

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> int:
        if uuid not in self.handles:
            raise NVMLError("not found")
        return self.handles[uuid]

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=handle * 1000, total=10**9)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if not self.tells_busy:
            raise NVMLError("not supported")
        return SimpleNamespace(gpu=handle * 10, memory=1)


UUIDS = {"cuda:0": "b", "cuda:1": "a", "cuda:2": "c"}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)  # type: ignore[arg-type]
    properties = {device: SimpleNamespace(uuid=uuid) for device, uuid in UUIDS.items()}
    monkeypatch.setattr("torch.cuda.get_device_properties", properties.__getitem__)
    return driver


def test_usage() -> None:
    assert GPU(Driver(), 4).usage() == Usage("4", 4000, 40.0)


def test_a_slice_may_not_tell_how_busy_it_is() -> None:
    assert GPU(Driver(tells_busy=False), 7).usage() == Usage("7", 7000, None)


def test_torchs_devices_are_found_by_their_uuid(driver: Driver) -> None:
    usages = [gpu.usage() for gpu in gpus_of({"cuda:2", "cuda:0", "cpu", "cuda:1"})]
    assert [usage.device for usage in usages] == ["6", "4", "7"]
    assert driver.started == 1


def test_without_a_gpu_the_driver_is_not_asked(driver: Driver) -> None:
    assert gpus_of({"cpu"}) == []
    assert driver.started == 0


def test_no_driver_is_no_reason_to_fail(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    driver.handles = {}
    assert gpus_of({"cuda:0"}) == []
    assert "there are no metrics of the GPU: not found" in caplog.text
