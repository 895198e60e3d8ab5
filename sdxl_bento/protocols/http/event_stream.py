"""Server-sent events, and the response that sends them.

`sse-starlette` is not used because it ends all streams as soon as the server is told to stop. This
server lets running calls finish first.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.responses import StreamingResponse

KEEP_ALIVE = b": still here\n\n"  # proxies close silent connections


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def event_stream(events: AsyncIterator[bytes], request_id: str) -> StreamingResponse:
    """The response that sends the events. It asks proxies not to buffer them."""
    headers = {
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
        "X-Request-Id": request_id,
    }
    return StreamingResponse(events, headers=headers, media_type="text/event-stream")
