"""The errors of an export. Every message says what was found and what is needed instead.

SDXLError
└── ExportError
    ├── SourceError             the source cannot be read, or a part of it is missing or broken
    │   ├── UnsafeSourceError   it would run code, or reaches outside of its folder
    │   └── NotSDXLError        it is another kind of model
    └── VerificationError       the written model does not behave as its source
"""

from __future__ import annotations

from sdxl_bento.errors import SDXLError


class ExportError(SDXLError):
    """Base class of the errors that an export raises on purpose."""


class SourceError(ExportError):
    """The source cannot be read, or a part of it is missing or broken."""

    def __init__(self, where: object, found: str, needed: str) -> None:
        self.found = found
        self.needed = needed
        super().__init__(f"{where}\n  found:  {found}\n  needed: {needed}")


class UnsafeSourceError(SourceError):
    """The source would run code when loaded, or reaches outside its own folder."""


class NotSDXLError(SourceError):
    """The source is a model of another kind."""


class VerificationError(ExportError):
    """A written component or a compiled part does not behave as its source does."""
