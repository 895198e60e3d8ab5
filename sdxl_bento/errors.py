"""The exceptions of this package. They know nothing of HTTP; `protocols.http` maps them to it.

SDXLError
├── InvalidInput            a field's value is not allowed
│   └── AdapterMismatch     a LoRA's tensors don't fit the model
├── NotFound                a named thing does not exist
│   ├── ModelNotFound
│   ├── AdapterNotFound
│   ├── ImageNotFound
│   └── RequestNotFound
├── Refused                 turned away before any work was done
│   ├── NotReady
│   ├── Overloaded
│   ├── DeadlineInfeasible
│   └── StoreUnavailable    the image store does not answer
├── RequestCancelled        ended because its caller asked for that, or disconnected
├── RequestFailed           ended by an error that is not the caller's
│   ├── NumericalError      the latents are no longer finite
│   ├── OutOfMemory         one request alone does not fit the device
│   └── EngineDead          the engine thread has ended
└── ConfigurationError      a setting, a manifest or a model folder is wrong
    └── ArtifactMismatch    a compiled part was built for something else
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from itertools import islice
from typing import Any, Self, TypeVar

E = TypeVar("E", bound="SDXLError")
_MOST_NAMES = 50


class SDXLError(Exception):
    """Root of every error that this package raises on purpose."""


class InvalidInput(SDXLError):
    """`field` has the wrong value `value`; `allowed` says in words which values are allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(self._message())

    def at(self, field: str, value: object, more: str = "") -> Self:
        """The same error, about the field and the value that the caller has sent.

        `more` is added to what is allowed.
        """
        told = _copy(self)
        told.field, told.value, told.allowed = field, value, self.allowed + more
        told.args = (told._message(),)
        return told

    def _message(self) -> str:
        return f"{self.field}: got {shown(self.value)}, allowed: {self.allowed}"


class AdapterMismatch(InvalidInput):
    """A LoRA file cannot be used with the model; `keys` names the tensors that are the `reason`."""

    def __init__(self, name: str, keys: Sequence[str], reason: str) -> None:
        self.name = name
        self.keys = tuple(keys)
        self.reason = readable(reason, 400)
        shown = readable(", ".join(readable(key) for key in self.keys[:8]), 800)
        shown += ", …" if len(self.keys) > 8 else ""
        super().__init__("loras", name, f"an adapter that fits the model ({self.reason}: {shown})")


class NotFound(SDXLError):
    """There is no `kind` with the name `name`; `available` lists names that exist, not too many.

    `field` is the field that named it.
    """

    kind = "thing"
    field: str | None = None

    def __init__(self, name: str, available: Sequence[str] = (), hint: str = "") -> None:
        self.name = name
        self.available = tuple(available[:_MOST_NAMES])
        if len(available) > _MOST_NAMES:
            self.available += (f"and {len(available) - _MOST_NAMES} more",)
        self.hint = hint
        super().__init__(self._message())

    def at(self, field: str, name: str) -> Self:
        """The same error, about the field and the name that the caller has sent."""
        told = _copy(self)
        told.field, told.name = field, name
        place = f" (in {field})" if "." in field else ""  # a name alone says nothing more
        told.args = (told._message() + place,)
        return told

    def _message(self) -> str:
        known = f"; available: {', '.join(self.available)}" if self.available else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"no {self.kind} named {shown(self.name)}{known}{hint}"


class ModelNotFound(NotFound):
    kind = "model"
    field = "model"


class AdapterNotFound(NotFound):
    kind = "LoRA"
    field = "loras"


class ImageNotFound(NotFound):
    kind = "image"
    field = "image_id"


class RequestNotFound(NotFound):
    kind = "request"
    field = "request_id"


class Refused(SDXLError):
    """Turned away before any work was done. `retry_after_s`: seconds until a retry makes sense."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class NotReady(Refused):
    """The engine is loading, draining or stopped, or its model damaged; `state` says which."""

    def __init__(self, state: str, retry_after_s: float = 2.0) -> None:
        self.state = state
        super().__init__(f"the engine is {state}, not ready", retry_after_s)


class Overloaded(Refused):
    """The queue is full."""


class DeadlineInfeasible(Refused):
    """The request would end after its deadline. `estimate_s` is the time that it would take."""

    field = "slo_ms"

    def __init__(self, slo_s: float, estimate_s: float, retry_after_s: float) -> None:
        self.slo_s = slo_s
        self.estimate_s = estimate_s
        super().__init__(self._message(f"{_plain(max(slo_s, 0) * 1e3)} ms"), retry_after_s)

    def at(self, field: str, shown: str, more: str = "") -> Self:
        """The same error, about the field and the time, with its unit, that the caller has sent.

        `more` is added to the message.
        """
        told = _copy(self)
        told.field = field
        told.args = (told._message(shown) + more,)
        return told

    def _message(self, shown: str) -> str:
        took = f"{self.estimate_s * 1e3:.0f} ms"
        return f"{self.field}: {shown} cannot be met, it would take {took}"


class StoreUnavailable(Refused):
    """The image store does not answer, so its pictures cannot be fetched at the moment."""

    def __init__(self, retry_after_s: float = 5.0) -> None:
        super().__init__("the image store does not answer", retry_after_s)


class RequestCancelled(SDXLError):
    """The request was cancelled."""


class RequestFailed(SDXLError):
    """The request ended by an error that its caller did not cause."""


class NumericalError(RequestFailed):
    """The latents or the picture hold NaN or infinity."""


class OutOfMemory(RequestFailed):
    """The device cannot hold this one request, even alone in its batch."""


class EngineDead(RequestFailed):
    """The engine thread has ended, so nothing will run until the process is restarted."""


class ConfigurationError(SDXLError):
    """A setting, a manifest or a model folder is wrong; the message says how to fix it."""


class ArtifactMismatch(ConfigurationError):
    """A compiled part was built for another version, device, dtype or shape."""


def readable(text: str, limit: int = 200) -> str:
    """`text` in one line of at most `limit` characters, with escapes for what cannot be shown."""
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:limit])
    return line if len(line) <= limit and len(text) <= limit else line[: limit - 1] + "…"


def _copy(error: E) -> E:
    """A copy without a trace, whose attributes can be changed."""
    copied = type(error).__new__(type(error))
    copied.__dict__.update(error.__dict__)
    copied.args = error.args
    return copied


def _plain(number: float) -> str:
    """A number to three decimal places, without zeros at its end."""
    return f"{number:.3f}".rstrip("0").rstrip(".")


def shown(value: object, limit: int = 80) -> str:
    """The `repr` of a value in at most `limit` characters, however large the value is."""
    text = _ShortRepr(limit).repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _ShortRepr(reprlib.Repr):
    """A `repr` that looks only at what will be shown."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = limit
        self.maxlevel = limit
        self._limit = limit

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[: self._limit])

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[: self._limit])

    def repr_int(self, x: int, level: int) -> str:
        return (
            repr(x) if x.bit_length() <= 4 * self._limit else f"an integer of {x.bit_length()} bits"
        )

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        items = islice(x.items(), self._limit)  # in their order, unlike reprlib's
        return "{" + ", ".join(f"{self.repr(key)}: {self.repr(each)}" for key, each in items) + "}"
