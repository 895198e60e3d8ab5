"""What the answers of several protocols have in common: headers, and the picture itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from pydantic import Field, WithJsonSchema
from starlette.responses import Response
from typing_extensions import TypedDict

from sdxl_bento.drawing import Answer
from sdxl_bento.pictures.encode import MEDIA_TYPES
from sdxl_bento.protocols.http.operations import NUMBER, open_object
from sdxl_bento.serving.results import Timings

_MAX_WARNING = 1000  # characters of the header; proxies bound the size of all headers
_STAGES = [f"{name.removesuffix('_s')}_ms" for name in Timings.__dataclass_fields__]
Milliseconds = Annotated[
    dict[str, float], WithJsonSchema(open_object(dict.fromkeys(_STAGES, NUMBER)))
]


class WarningDetail(TypedDict):
    """What an answer lacks of what was asked for, by the field of the call that it is about."""

    type: Annotated[str, Field(examples=["prompt_truncated"])]
    field: str
    message: str


def answer_headers(answer: Answer) -> dict[str, str]:
    """What a client can learn of the pictures without parsing their files."""
    stages = (
        f"{name.removesuffix('_ms')};dur={value:g}"
        for name, value in milliseconds(answer.generation.timings).items()
    )
    headers = {
        "X-Request-Id": answer.generation.request_id,
        "X-Seed": ", ".join(str(picture.seed) for picture in answer.pictures),
        "X-Model": answer.order.params.model,
        "Server-Timing": ", ".join(stages),
        "Cache-Control": "no-store",
    }
    if (cut := answer.order.cut_from) is not None:
        headers["X-Cut-From"] = "{}x{}".format(*cut)
    ids = [picture.image_id for picture in answer.pictures if picture.image_id is not None]
    if len(ids) == len(answer.pictures):  # if one is missing, only JSON can say which
        headers["X-Image-Id"] = ", ".join(ids)
    return headers | cache_header([answer]) | warning_header([answer])


def cache_header(answers: Sequence[Answer]) -> dict[str, str]:
    """`X-Cache`: `hit` if nothing had to be drawn. There is no header if nothing is cached."""
    cached = [answer.cached for answer in answers]
    return {} if None in cached else {"X-Cache": "hit" if all(cached) else "miss"}


def warnings_json(answer: Answer) -> list[WarningDetail]:
    """The warnings of an answer."""
    return [
        {"type": each.type, "field": each.field, "message": each.message}
        for each in answer.warnings
    ]


def warning_header(answers: Sequence[Answer]) -> dict[str, str]:
    """`X-Warning` with the messages of all warnings, shortened. No header if there are none.

    A header is one line of ASCII, so everything else in a message is escaped as in Python.
    """
    messages = "; ".join(each.message for answer in answers for each in answer.warnings)
    text = messages[:_MAX_WARNING].encode("unicode_escape").decode("ascii")
    return {"X-Warning": text[:_MAX_WARNING]} if text else {}


def picture_response(answer: Answer, headers: dict[str, str] | None = None) -> Response:
    """The file of an answer's first picture, with `answer_headers` and `headers`."""
    picture = answer.pictures[0]
    media_type = MEDIA_TYPES[picture.output_format]
    return Response(
        picture.data, headers=answer_headers(answer) | (headers or {}), media_type=media_type
    )


def milliseconds(timings: Timings) -> Milliseconds:
    """Timings in milliseconds, to a tenth of one."""
    seconds = asdict(timings).items()
    return {f"{name.removesuffix('_s')}_ms": round(value * 1e3, 1) for name, value in seconds}
