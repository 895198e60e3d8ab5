"""What a protocol notes while it translates a body into native fields.

The native fields are checked: by their types at first, later by the model, the server's limits and
the engine. Whatever is found to be wrong is told to the caller in the caller's own words. So each
protocol notes under which name and with which value a native field was sent, and `API.run` changes
every error and every warning of the call accordingly.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from sdxl_bento.errors import (
    AdapterMismatch,
    DeadlineInfeasible,
    InvalidInput,
    ModelNotFound,
    NotFound,
    readable,
)
from sdxl_bento.fields import wires
from sdxl_bento.params import GenerateParams
from sdxl_bento.serving.results import CallWarning

if TYPE_CHECKING:
    from sdxl_bento.config import Settings

UNSAID = object()  # in place of a value that errors don't repeat, because it is a file
_MAX_WARNINGS = 8  # about the unknown fields of a call, which may be any number
_MAX_SHOWN = 100  # characters of an unknown field's name
_MAX_NUMBER = 32  # characters of a time that was sent as text, which may be of any length
_MAX_NAME = 64  # a longer name is no typing error, and comparing it takes long


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings of this server say about reading a call.

    Attributes:
        warn_of_unknown: a field that nobody knows is left out with a warning, and not refused.
        bounds: native field → the least and the most that this server allows, which errors name if
            the API allows more. 0 is no bound below.
    """

    warn_of_unknown: bool = False
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, sides: tuple[int, int] | None = None) -> Self:
        """The rules of a server with these settings.

        `sides`: the least and the most pixels of a side that its models draw; None: unknown.
        """
        bounds = {name: (0, getattr(settings, each)) for name, each in _limited().items()}
        if sides is not None:
            bounds |= {"width": sides, "height": sides}
        return cls(settings.unknown_fields == "warn", bounds)


@dataclass(frozen=True, slots=True)
class Sent:
    """What the caller has sent for a native field.

    Attributes:
        field: the caller's name for it.
        value: the caller's value.
        unit: of the value, if it is a time.
        header: the header that was sent in place of the field.
        whole: what is wrong inside of the native value, such as `loras.0.scale`, is told as being
            wrong with `field` as a whole. Otherwise the path inside is kept.
    """

    field: str
    value: object
    unit: str = " ms"
    header: str = ""
    whole: bool = False

    @property
    def remark(self) -> str:
        """What an error adds: that a header was sent, which a proxy may have set."""
        return f"; it was sent as the header {self.header}" if self.header else ""


@dataclass(slots=True)
class Translation:
    """The origins of one call's native fields, and the warnings about its other fields.

    Attributes:
        rules: of this server.
        place: where the call is in the body, such as `instances.1`. Native fields that are not in
            `sent` have the same name at that place.
        suffix: added to the names of all fields, such as ` (row 1)`.
        sent: native field, or a path inside of one, such as `loras.0` → what the caller sent.
        warnings: about fields that were left out.
    """

    rules: Rules = field(default_factory=Rules)
    place: str = ""
    suffix: str = ""
    sent: dict[str, Sent] = field(default_factory=dict)
    warnings: list[CallWarning] = field(default_factory=list)

    def part(self, place: str = "", suffix: str = "") -> Translation:
        """The translation of one of several calls in a body, to which this one applies as well."""
        return Translation(self.rules, place, suffix, dict(self.sent), list(self.warnings))

    def known(
        self,
        body: Mapping[str, Any],
        known: Iterable[str],
        place: str = "",
        allowed: str = "",
    ) -> dict[str, Any]:
        """The fields of an object that somebody reads, which are those with `known` names.

        Args:
            body: the object.
            known: the names of fields that it may have.
            place: where the object is in the caller's body; empty if it is the body itself.
            allowed: says in words what the object may have; by default, it lists the names.

        Raises InvalidInput for the first unknown field, unless the rules are to warn of it.
        """
        names = dict.fromkeys(known)
        allowed = allowed or f"one of the fields {', '.join(names)}"
        for name, value in body.items():
            if len(self.warnings) == _MAX_WARNINGS:
                break
            if name not in names:
                at = f"{place}.{name}" if place else name
                self.unknown(at, value, nearest(name, names), allowed)
        return {name: value for name, value in body.items() if name in names}

    def unknown(self, name: str, value: object, hint: str, allowed: str) -> None:
        """Raise InvalidInput for a field that nobody knows, or warn of it, as the rules say.

        `hint` is the nearest known name, as `nearest` tells it.
        """
        shown = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}…"
        field = f"{shown}{self.suffix}"
        if not self.rules.warn_of_unknown:
            raise InvalidInput(field, value, hint + allowed)
        if len(self.warnings) < _MAX_WARNINGS:
            text = "there is no such field, so it was ignored"
            near = f"; the nearest is {hint.partition(' ')[0]}" if hint else ""
            self.warnings.append(CallWarning("unknown_field", field, text + near))

    def note(self, native: str, name: str, value: object, **more: Any) -> None:
        """Note that a native field was sent as the field `name` with this value.

        The very value that was noted before keeps what was noted, as it was sent as a header.
        """
        if native not in self.sent or self.sent[native].value is not value:
            self.sent[native] = Sent(name, value, **more)

    def told(self, error: Exception) -> Exception:
        """The error in the caller's words. An error that is about no field stays as it is."""
        if not isinstance(error, (InvalidInput, NotFound, DeadlineInfeasible)):
            return error
        if error.field is None:
            return error
        name, sent = self._find(error.field)
        if isinstance(error, DeadlineInfeasible):
            if sent is None:
                return error
            told = readable(str(sent.value).strip(), _MAX_NUMBER)  # the log repeats it
            return error.at(name, f"{told}{sent.unit}", sent.remark)
        if isinstance(error, NotFound):
            if isinstance(error, ModelNotFound) and sent is None:
                return error  # the address names it, or nobody
            is_model = isinstance(error, ModelNotFound) and sent is not None
            found = str(sent.value) if is_model and sent is not None else error.name
            return error if (name, found) == (error.field, error.name) else error.at(name, found)
        value = error.value
        if sent is not None and not isinstance(error, AdapterMismatch):
            is_all = sent.whole or error.field in self.sent
            value = sent.value if is_all and sent.value is not UNSAID else value
        remark = "" if sent is None else sent.remark
        unchanged = name == error.field and value is error.value and not remark
        return error if unchanged else error.at(name, value, remark)

    def warned(self, warnings: Iterable[CallWarning]) -> tuple[CallWarning, ...]:
        """All warnings of the call: those about fields, and these in the caller's words."""
        translated = (replace(each, field=self.name(each.field)) for each in warnings)
        return (*self.warnings, *translated)

    def name(self, native: str) -> str:
        """The caller's name for a native field."""
        return self._find(native)[0]

    def _find(self, native: str) -> tuple[str, Sent | None]:
        """The caller's name for a native field or a path inside of one, and what was sent for it.

        The longest part of the path that was noted decides.
        """
        head, rest = native, ""
        while head:
            if (sent := self.sent.get(head)) is not None:
                inside = "" if sent.whole else rest
                return f"{sent.field}{inside}{self.suffix}", sent
            head, dot, last = head.rpartition(".")
            rest = f"{dot}{last}{rest}"
        if native == "body":
            return f"{self.place or native}{self.suffix}", None
        return f"{self.place}.{native}{self.suffix}" if self.place else native + self.suffix, None


@cache
def _limited() -> Mapping[str, str]:
    """The fields that a setting limits further → the setting."""
    return {name: wire.setting for name, wire in wires(GenerateParams).items() if wire.setting}


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that an unknown one was probably meant to be, as the beginning of a hint."""
    if len(name) > _MAX_NAME:
        return ""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"{close[0]} (the nearest), or " if close else ""
