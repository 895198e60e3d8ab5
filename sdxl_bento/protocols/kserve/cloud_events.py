"""CloudEvents are not supported, in neither of their forms (CloudEvents HTTP binding 1.0.2)."""

from __future__ import annotations

from collections.abc import Mapping

from sdxl_bento.protocols.http.errors import UnsupportedBody

_STRUCTURED = "application/cloudevents"
_BINARY = "ce-"  # the attributes of an event are headers, its data is the body
_ALLOWED = "no CloudEvent: send the body alone, as application/json"


def refuse_events(headers: Mapping[str, str]) -> None:
    """Raises UnsupportedBody if a request is a CloudEvent. `headers` have lower-case names."""
    kind = headers.get("content-type", "")
    if kind.lower().startswith(_STRUCTURED):
        raise UnsupportedBody("Content-Type", kind, _ALLOWED)
    for name in headers:
        if name.lower().startswith(_BINARY):
            raise UnsupportedBody(name, headers[name], _ALLOWED)
