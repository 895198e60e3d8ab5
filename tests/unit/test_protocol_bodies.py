"""Whatever JSON KServe's protocols are sent, it is understood or refused: never an accident."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from sdxl_bento.errors import InvalidInput
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.kserve.v1.fields import instances_of
from sdxl_bento.protocols.kserve.v2.fields import inputs, read_inference

SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "a", "BYTES", "[]", "[{}]", "{", '[{"name": "b"}]', "\U0001f600"])
)
JSON = st.recursive(
    SCALAR,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["prompt", "name", "data", "model", "x"]), inner)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from([*inputs(), "x"])
DATATYPES = st.sampled_from(["BYTES", "BOOL", "INT8", "INT64", "UINT64", "FP16", "FP32", "X"])


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects that are mostly right: any field may be missing or be anything."""
    return st.fixed_dictionaries({}, optional={k: v | JSON for k, v in fields.items()})


TENSORS = objects(
    name=NAMES,
    datatype=DATATYPES,
    shape=st.lists(st.integers(-1, 3), max_size=2),
    data=st.lists(SCALAR, max_size=3),
    parameters=objects(binary_data_size=st.integers(-1, 9)),
)
PROMPT = {"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
SIZES = st.fixed_dictionaries(
    {}, optional={name: st.integers(60, 90) for name in ("width", "seed")}
)
PARAMETERS = SIZES | st.dictionaries(
    NAMES | st.sampled_from(["timeout", "binary_data_output"]), SCALAR, max_size=2
)
REQUESTS = objects(
    id=SCALAR,
    inputs=st.lists(TENSORS, max_size=2).map(lambda more: [PROMPT, *more]),
    parameters=PARAMETERS,
    outputs=st.lists(objects(name=st.sampled_from(["image", "pixels"]), parameters=PARAMETERS)),
)


@given(REQUESTS | JSON, st.binary(max_size=9), st.booleans())
@example({"inputs": [PROMPT], "parameters": {"timeout": True}}, b"", True)
def test_v2(document: Any, raw: bytes, binary: bool) -> None:
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    with contextlib.suppress(InvalidInput):
        inference = read_inference(head + raw if binary else head, headers, "m", 4)
        assert 1 <= len(inference.rows) <= 4
        assert inference.outputs
        for row in inference.rows:
            assert isinstance(row, GenerateParams)
            assert row.model == "m"


INSTANCES = objects(
    instances=st.lists(JSON | objects(prompt=st.text(), parameters=PARAMETERS), max_size=5),
    inputs=st.lists(JSON, max_size=2),
    parameters=PARAMETERS,
    slo_ms=SCALAR,
)


@given(INSTANCES | JSON)
def test_v1(body: Any) -> None:
    with contextlib.suppress(InvalidInput):
        for instance in instances_of(body, "m", 4):
            assert instance.params.model == "m"
