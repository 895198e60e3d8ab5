"""The seam between control and data plane: what the engine asks of whatever runs the batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sdxl_bento.engine.request import Request, Unit
from sdxl_bento.errors import SDXLError


class DeviceOutOfMemory(RuntimeError):
    """The unit does not fit the device's memory. No request has been changed.

    A RuntimeError, as torch's own is, so that whoever handles a failing part handles this too.
    """


@dataclass(frozen=True, slots=True)
class Completion:
    """A unit has ended. `seconds`: the device's time for it. Keys are request ids."""

    unit: Unit
    seconds: float
    failures: Mapping[str, SDXLError] = field(default_factory=dict)
    results: Mapping[str, object] = field(default_factory=dict)
    previews: Mapping[str, object] = field(default_factory=dict)


class Executor(Protocol):
    """Runs units. One thread calls it. A launch that raises must have changed no request."""

    def ready(self, request: Request) -> bool:
        """Whether the request can run now. Begins, in the background, to load what it lacks.

        Raises:
            SDXLError: it never can (its adapter does not fit, say).
        """
        ...

    def launch(self, unit: Unit) -> None:
        """Start one unit; may return before the device is done.

        Raises:
            DeviceOutOfMemory: the unit is too large.
        """
        ...

    def collect(self, max_in_flight: int) -> Iterable[Completion]:
        """Units that have ended; waits until at most `max_in_flight` have not."""
        ...

    def release(self, request: Request) -> None:
        """Forget the request. Called exactly once for each that was ever launched."""
        ...
