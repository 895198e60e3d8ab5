"""The components of the OpenAPI document: schemas that are made from Python types.

The types of answers are those that the code which builds the answers is checked against, so that
an answer and its schema cannot differ.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import TypeAdapter, WithJsonSchema
from pydantic.json_schema import models_json_schema

from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.native_fields import SCHEDULER, aliases
from sdxl_bento.protocols.http.operations import BASE64, REF, Schema

Base64 = Annotated[str, WithJsonSchema(BASE64)]


def request_components() -> dict[str, Schema]:
    """The schema of the native fields of a request with their aliases, and of the types in it."""
    _, schema = models_json_schema([(GenerateParams, "validation")], ref_template=REF)
    components: dict[str, Schema] = schema["$defs"]
    properties = components[GenerateParams.__name__]["properties"]
    for alias, name in aliases().items():
        values = {} if alias == SCHEDULER else properties[name]
        properties[alias] = {**values, "description": f"The same as `{name}`; one of the two."}
        properties[alias].pop("default", None)
    return components


def answer_components(*types: type[Any]) -> dict[str, Schema]:
    """The schemas of types of answers, and of the types in them, by the types' names."""
    components: dict[str, Schema] = {}
    for each in types:
        schema = TypeAdapter(each).json_schema(mode="serialization", ref_template=REF)
        components |= schema.pop("$defs", {})
        components[each.__name__] = {**schema, "description": (each.__doc__ or "").strip()}
    return components
