"""KServe's V2, the Open Inference Protocol: tensors, fields, answers, and the routes."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from sdxl_bento import __version__
from sdxl_bento.drawing import Answer
from sdxl_bento.errors import InvalidInput
from sdxl_bento.order import Resolved
from sdxl_bento.params import GenerateParams, ResolvedParams
from sdxl_bento.pictures.cache import CacheControl
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.http.errors import MalformedBody
from sdxl_bento.protocols.http.translation import Translation
from sdxl_bento.protocols.kserve.v2 import schema
from sdxl_bento.protocols.kserve.v2.answers import output_tensor
from sdxl_bento.protocols.kserve.v2.fields import (
    DEFAULT_OUTPUTS,
    OUTPUTS,
    Inference,
    RequestedOutput,
    inputs,
    read_inference,
)
from sdxl_bento.protocols.kserve.v2.routes import _calls
from sdxl_bento.protocols.kserve.v2.tensors import (
    DATATYPES,
    HEADER_LENGTH,
    Output,
    Tensor,
    read_tensors,
    split_body,
)
from sdxl_bento.serving.results import GeneratedImage, Generation, Timings
from tests.unit.protocols.conftest import Bed

INFER = "/v2/models/fake/infer"


OBJECT = "an object with name, shape, datatype and data"
KINDS = f"one of {', '.join(DATATYPES)}"
ELEMENTS = "elements of BYTES, each its length in four bytes, then itself"
AS_MANY = "as many bytes as the binary_data_size of the inputs say"
ONE_INPUT = f"one of {', '.join(inputs())}"
ONE_OUTPUT = f"one of {', '.join(OUTPUTS)}"


# Tensors


def test_outputs_in_json() -> None:
    header = {"name": "x", "datatype": "INT64", "shape": [2, 1]}
    numbers = Output("x", "INT64", (2, 1), np.array([[1], [2]], "<i8"))
    assert numbers.as_json() == header | {"data": [1, 2]}
    texts = Output("x", "BYTES", (2, 1), ["ä".encode(), b""], is_text=True)
    assert texts.as_json() == header | {"datatype": "BYTES", "data": ["ä", ""]}
    files = Output("x", "BYTES", (2, 1), [b"\xff", b"\x00"])
    assert files.as_json() == header | {
        "datatype": "BYTES",
        "data": ["/w==", "AA=="],
        "parameters": {"content_type": "base64"},
    }


def test_outputs_as_raw_bytes() -> None:
    header = {"name": "x", "shape": [2]}
    numbers = Output("x", "INT64", (2,), np.array([1, 258], "<i8")).as_binary()
    raw = b"\x01" + bytes(7) + b"\x02\x01" + bytes(6)
    assert numbers == (header | {"datatype": "INT64", "parameters": {"binary_data_size": 16}}, raw)
    files = Output("x", "BYTES", (2,), [b"abc", b""]).as_binary()
    raw = b"\x03\0\0\0abc\0\0\0\0"
    assert files == (header | {"datatype": "BYTES", "parameters": {"binary_data_size": 11}}, raw)


def test_splitting_a_body() -> None:
    assert split_body(b"{}ab", None) == (b"{}ab", b"")
    assert split_body(b"{}ab", "2") == (b"{}", b"ab")
    assert split_body(b"{}", "2") == (b"{}", b"")
    assert split_body(b"{}", "0") == (b"", b"{}")
    for wrong in ("3", "-1", "two", ""):
        with pytest.raises(MalformedBody) as caught:
            split_body(b"{}", wrong)
        assert (caught.value.field, caught.value.value) == (HEADER_LENGTH, wrong)
        assert caught.value.allowed == "the bytes of the JSON, which are at most the 2 of the body"


def tensor(datatype: str = "INT64", shape: Any = (1,), **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": list(shape), **more}


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BYTES", ["a", "ä"]),
        ("BOOL", [True, False]),
        *[(f"{sign}INT{bits}", [1, 2]) for sign in ("", "U") for bits in (8, 16, 32, 64)],
        *[(f"FP{bits}", [1, 0.5]) for bits in (16, 32, 64)],
    ],
)
def test_inputs_of_every_datatype(datatype: str, data: list[Any]) -> None:
    assert datatype in DATATYPES
    [read] = read_tensors([tensor(datatype, (2, 1), data=[[data[0]], [data[1]]])], b"")
    assert read == Tensor("x", (2, 1), data)
    if datatype == "BYTES":
        raw = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in data)
    else:
        kind = {"B": "?", "I": "<i", "U": "<u", "F": "<f"}[datatype[0]]
        bits = int(datatype.strip("BOLUINTFP") or 8)
        raw = np.array(data, kind if kind == "?" else f"{kind}{bits // 8}").tobytes()
    binary = tensor(datatype, (2,), parameters={"binary_data_size": len(raw)})
    assert read_tensors([binary], raw) == [Tensor("x", (2,), data)]
    last = tensor("INT8", (1,), data=[7])
    assert read_tensors([binary, last, binary], raw + raw)[2] == Tensor("x", (2,), data)


def test_inputs_without_elements() -> None:
    assert read_tensors([tensor(shape=(0,), data=[])], b"") == [Tensor("x", (0,), [])]
    assert read_tensors([tensor(shape=(2, 0))], b"") == [Tensor("x", (2, 0), [])]
    assert read_tensors([tensor(shape=(), data=5, parameters=None)], b"") == [Tensor("x", (), [5])]
    assert read_tensors([], b"") == []


@pytest.mark.parametrize(
    ("given", "field", "value", "allowed"),
    [
        (5, "inputs.0", 5, OBJECT),
        ({"shape": [1]}, "inputs.0", {"shape": [1]}, OBJECT),
        ({"name": 5}, "inputs.0", {"name": 5}, OBJECT),
        (tensor("X"), "x.datatype", "X", KINDS),
        ({"name": "x"}, "x.datatype", None, KINDS),
        (tensor(shape=[-1]), "x.shape", [-1], "a list of integers from 0"),
        (tensor(shape=[1.0]), "x.shape", [1.0], "a list of integers from 0"),
        (tensor(shape=[True]), "x.shape", [True], "a list of integers from 0"),
        ({"name": "x", "datatype": "INT8", "shape": 1}, "x.shape", 1, "a list of integers from 0"),
        (tensor(parameters=[1]), "x.parameters", [1], "an object"),
        (tensor(data=[1, 2]), "x.data", "2 elements", "1, as the shape [1] says"),
        (tensor(shape=[2, 2], data=[1]), "x.data", "1 elements", "4, as the shape [2, 2] says"),
        (tensor(), "x.data", "0 elements", "1, as the shape [1] says"),
        (tensor(data=None), "x.data", None, "elements of INT64"),
        (tensor(data=["1"]), "x.data", "1", "elements of INT64"),
        (tensor(data=[1.0]), "x.data", 1.0, "elements of INT64"),
        (tensor(data=[True]), "x.data", True, "elements of INT64"),
        (tensor("FP32", data=[True]), "x.data", True, "elements of FP32"),
        (tensor("BOOL", data=[1]), "x.data", 1, "elements of BOOL"),
        (tensor("BYTES", data=[1]), "x.data", 1, "elements of BYTES"),
        (tensor("BYTES", data=[True]), "x.data", True, "elements of BYTES"),
    ],
)
def test_inputs_that_are_wrong(given: Any, field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_tensors([given], b"")
    error = caught.value
    assert type(error) is InvalidInput
    assert (error.field, error.value, error.allowed) == (field, value, allowed)


def test_inputs_that_are_no_list() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_tensors({"name": "x"}, b"")
    assert (caught.value.field, caught.value.allowed) == ("inputs", "a list of tensors")


def size(count: Any, datatype: str = "INT16", shape: Any = (1,)) -> dict[str, Any]:
    return tensor(datatype, shape, parameters={"binary_data_size": count})


@pytest.mark.parametrize(
    ("given", "raw", "field", "value", "allowed"),
    [
        (
            size(3),
            b"ab",
            "x.binary_data_size",
            3,
            "an integer from 0 to 2, the bytes that are left",
        ),
        (
            size(-1),
            b"ab",
            "x.binary_data_size",
            -1,
            "an integer from 0 to 2, the bytes that are left",
        ),
        (
            size(True),
            b"a",
            "x.binary_data_size",
            True,
            "an integer from 0 to 1, the bytes that are left",
        ),
        (
            size("2"),
            b"ab",
            "x.binary_data_size",
            "2",
            "an integer from 0 to 2, the bytes that are left",
        ),
        (size(1), b"a", "x.binary_data_size", 1, "a multiple of 2 bytes"),
        (size(2), b"abc", "body", "1 bytes too many", AS_MANY),
        (size(4, "BYTES"), b"\2\0\0\0", "x.data", "0 of 2 bytes", ELEMENTS),
        (size(6, "BYTES"), b"\3\0\0\0ab", "x.data", "2 of 3 bytes", ELEMENTS),
    ],
)
def test_raw_bytes_that_are_wrong(
    given: Any, raw: bytes, field: str, value: Any, allowed: str
) -> None:
    with pytest.raises(MalformedBody) as caught:
        read_tensors([given], raw)
    error = caught.value
    assert (error.field, error.value, error.allowed) == (field, value, allowed)


def test_all_four_bytes_of_a_length_count() -> None:
    with pytest.raises(MalformedBody) as caught:
        read_tensors([size(4, "BYTES")], b"\0\0\0\1")
    assert caught.value.value == "0 of 16777216 bytes"


def test_raw_text_that_is_not_utf8() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_tensors([size(5, "BYTES")], b"\1\0\0\0\xff")
    assert (caught.value.field, caught.value.value) == ("x.data", b"\xff")
    assert caught.value.allowed == "text in UTF-8"


# Fields


def test_every_field_is_an_input() -> None:
    assert set(inputs()) == set(GenerateParams.model_fields) - {"model"}
    expected = {
        "prompt": ("BYTES", 1),
        "seed": ("INT64", 1),
        "guidance_scale": ("FP32", 1),
        "refiner": ("BOOL", 1),
        "slo_ms": ("FP32", 1),
        "sampler": ("BYTES", 1),
        "loras": ("BYTES", 1),
        "original_size": ("INT64", 2),
        "crops_coords_top_left": ("INT64", 2),
    }
    assert expected.items() <= inputs().items()


def prompts(*values: str) -> dict[str, Any]:
    return {"name": "prompt", "datatype": "BYTES", "shape": [len(values)], "data": list(values)}


def row(name: str, data: list[Any], datatype: str = "INT64", shape: Any = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def read(
    *tensors: Any, headers: Any = None, limit: int = 4, inputs: Any = None, **more: Any
) -> Inference:
    body = {"inputs": [*tensors] if inputs is None else inputs, **more}
    return read_inference(json.dumps(body).encode(), headers or {}, "m", limit)


def rows(*tensors: Any, **more: Any) -> list[dict[str, Any]]:
    inference = read(*tensors, **more)
    assert {params.model for params in inference.rows} == {"m"}
    return [each.model_dump(exclude_unset=True, exclude={"model"}) for each in inference.rows]


def refused(*tensors: Any, **more: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read(*tensors, **more)
    return caught.value


def test_rows() -> None:
    a_and_b = prompts("a", "b")
    assert rows(a_and_b) == [{"prompt": "a"}, {"prompt": "b"}]
    own, one = row("seed", [1, 2]), row("width", [64])
    assert rows(a_and_b, own, one) == [
        {"prompt": "a", "seed": 1, "width": 64},
        {"prompt": "b", "seed": 2, "width": 64},
    ]
    sizes = row("target_size", [1, 2, 3, 4], shape=[2, 2])
    assert [each["target_size"] for each in rows(a_and_b, sizes)] == [(1, 2), (3, 4)]
    one_size = row("target_size", [1, 2])
    assert [each["target_size"] for each in rows(a_and_b, one_size)] == [(1, 2), (1, 2)]
    loras = row("loras", ['[{"name": "x"}]', ""], "BYTES")
    assert [len(each["loras"]) for each in rows(a_and_b, loras)] == [1, 0]
    assert rows(row("seed", [3]), parameters={"prompt": "a"}) == [{"prompt": "a", "seed": 3}]
    assert rows(prompts("a"), row("seed", [3]), parameters={"seed": 4}) == [
        {"prompt": "a", "seed": 3}
    ]


def test_parameters() -> None:
    shared = {"width": 64, "target_size": "[1, 2]", "loras": "", "binary_data_output": True}
    assert rows(prompts("a"), parameters=shared) == [
        {"prompt": "a", "width": 64, "target_size": (1, 2), "loras": ()}
    ]
    assert rows(prompts("a"), parameters=None) == [{"prompt": "a"}]
    assert rows(prompts("a"), headers={"x-slo-ms": "5"}) == [{"prompt": "a", "slo_ms": 5}]
    assert rows(prompts("a"), parameters={"prompt_2": "[1]"})[0]["prompt_2"] == "[1]"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"timeout": 0}, {}),
        ({"timeout": 1500}, {"slo_ms": 1.5}),
        ({"timeout": 1500, "slo_ms": 7}, {"slo_ms": 7}),
        ({"timeout": None, "priority": None}, {}),
        ({"priority": 0}, {"priority": 0}),
        ({"priority": 1}, {"priority": 10}),
        ({"priority": 11}, {"priority": 0}),
        ({"priority": 21}, {"priority": -10}),
    ],
)
def test_tritons_parameters(parameters: Any, expected: Any) -> None:
    assert rows(prompts("a"), parameters=parameters) == [{"prompt": "a"} | expected]


PRIORITY = "an integer from 1, the highest, to 21; 0 is the default, as 11"
TIMEOUT = "microseconds, an integer from 0: no limit"
LIST = 'a list in JSON, such as [{"name": "striped"}]'


@pytest.mark.parametrize(
    ("tensors", "more", "field", "value", "allowed"),
    [
        ([], {}, "inputs", [], "prompt among them"),
        ([row("seed", [1])], {}, "inputs", ["seed"], "prompt among them"),
        ([prompts()], {}, "prompt", "0 prompts", "1 to 4 in one request"),
        ([prompts(*"abcde")], {}, "prompt", "5 prompts", "1 to 4 in one request"),
        ([prompts("a")], {"parameters": [1]}, "parameters", [1], "an object"),
        (
            [prompts("a")],
            {"parameters": {"model": "x"}},
            "model",
            "x",
            "the one in the address alone",
        ),
        ([prompts("a")], {"parameters": {"timeout": -1}}, "timeout", -1, TIMEOUT),
        ([prompts("a")], {"parameters": {"timeout": True}}, "timeout", True, TIMEOUT),
        ([prompts("a")], {"parameters": {"priority": 22}}, "priority", 22, PRIORITY),
        ([prompts("a")], {"parameters": {"priority": -1}}, "priority", -1, PRIORITY),
        ([prompts("a")], {"parameters": {"priority": 1.0}}, "priority", 1.0, PRIORITY),
        ([prompts("a")], {"parameters": {"loras": "x"}}, "loras", "x", LIST),
        ([prompts("a")], {"parameters": {"target_size": "x"}}, "target_size", "x", LIST),
        ([prompts("a"), row("x", [1])], {}, "inputs", "x", ONE_INPUT),
        ([prompts("a"), row("model", ["m"], "BYTES")], {}, "inputs", "model", ONE_INPUT),
        ([prompts(*"ab"), row("seed", [1, 2, 3])], {}, "seed.shape", [3], "[2] or [2, 1], or [1]"),
        (
            [prompts("a"), row("target_size", [1])],
            {},
            "target_size.shape",
            [1],
            "[1, 2], or [1, 2]",
        ),
        ([prompts("a")], {"outputs": "x"}, "outputs", "x", "a list of objects with a name"),
        ([prompts("a")], {"outputs": ["seed"]}, "outputs.0.name", "seed", ONE_OUTPUT),
        ([prompts("a")], {"outputs": [{"name": "seed"}, {}]}, "outputs.1.name", None, ONE_OUTPUT),
        ([prompts("a")], {"outputs": [{"name": ["seed"]}]}, "outputs.0.name", ["seed"], ONE_OUTPUT),
        (
            [prompts("a")],
            {"outputs": [{"name": "seed", "parameters": 5}]},
            "outputs.0.parameters",
            5,
            "an object",
        ),
        (
            [prompts("a")],
            {"outputs": [{"name": "seed", "parameters": {"classification": 1}}]},
            "outputs.0.parameters.classification",
            1,
            "one of the fields binary_data",
        ),
        (
            [prompts("a")],
            {"outputs": [{"name": "pixels"}]},
            "pixels",
            "JSON",
            "binary_data: they are too many for JSON",
        ),
        (
            [prompts(*"ab"), row("num_images", [2, 1])],
            {},
            "num_images",
            [1, 2],
            "the same for every row",
        ),
        ([prompts("a"), row("width", [3])], {}, "width", 3, "an integer from 64 to 4096, or null"),
        (
            [prompts(*"ab"), row("width", [64, 3])],
            {},
            "width (row 1)",
            3,
            "an integer from 64 to 4096, or null",
        ),
    ],
)
def test_refused(tensors: Any, more: Any, field: str, value: Any, allowed: str) -> None:
    error = refused(*tensors, **more)
    assert (error.field, error.value, error.allowed) == (field, value, allowed)


def test_bodies_that_are_no_objects() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_inference(b"[1]", {}, "m", 4)
    assert (caught.value.field, caught.value.value) == ("body", [1])
    assert refused(inputs=5).field == "inputs"
    assert refused(prompts("a"), headers={"x-priority": "99"}).field == "priority"


def test_the_limit_of_rows() -> None:
    assert len(rows(prompts(*"abcd"))) == 4
    assert refused(prompts("a"), limit=0).allowed == "1 to 0 in one request"


def outputs(*asked: Any, **more: Any) -> list[tuple[str, bool]]:
    body = {"outputs": list(asked)} if asked else {}
    return [(each.name, each.binary) for each in read(prompts("a"), **body, **more).outputs]


def test_outputs() -> None:
    binary = {"parameters": {"binary_data_output": True}}
    assert outputs() == [(name, False) for name in DEFAULT_OUTPUTS]
    assert outputs(**binary) == [(name, True) for name in DEFAULT_OUTPUTS]
    assert [each.name for each in read(prompts("a"), outputs=[]).outputs] == [*DEFAULT_OUTPUTS]
    seed = {"name": "seed", "parameters": {"binary_data": False}}
    pixels = {"name": "pixels", "parameters": {"binary_data": True}}
    assert outputs(pixels, seed) == [("pixels", True), ("seed", False)]
    assert outputs({"name": "image"}, seed, **binary) == [("image", True), ("seed", False)]
    assert outputs({"name": "seed", "parameters": None}) == [("seed", False)]


def test_pixels_of_one_size() -> None:
    pixels = [{"name": "pixels", "parameters": {"binary_data": True}}]
    assert read(prompts(*"ab"), row("width", [64, 64]), outputs=pixels)
    for name in ("width", "height"):
        error = refused(prompts(*"ab"), row(name, [64, 72]), outputs=pixels)
        assert (error.field, error.value) == ("pixels", "several sizes")
        assert read(prompts(*"ab"), row(name, [64, 72]))  # other outputs may differ


def test_ids() -> None:
    assert read(prompts("a")).id is None
    assert read(prompts("a"), id="x").id == "x"
    assert read(prompts("a"), id=5).id == "5"


# Calls and answers


def calls(params: dict[str, Any], output: str, control: CacheControl, count: int = 1) -> Any:
    each = GenerateParams(**({"prompt": "a"} | params))
    inference = Inference(
        None, [each] * count, [RequestedOutput(output, True)], [Translation()] * count
    )
    caller: Any = object()
    return _calls(inference, "r", caller, control)


def test_calls() -> None:
    [call] = calls({}, "image", CacheControl())
    assert (call.request_id, call.protocol, call.wants_json) == ("r", "open_inference", True)
    assert call.validated == GenerateParams(prompt="a")
    two = calls({}, "image", CacheControl(), 2)
    assert [each.request_id for each in two] == ["r.0", "r.1"]


@pytest.mark.parametrize(
    ("output_format", "output", "read"),
    [
        ("png", "pixels", True),
        ("jpeg", "pixels", False),
        ("webp", "pixels", False),
        ("jpeg", "image", True),
    ],
)
def test_pixels_are_not_read_from_lossy_files(output_format: str, output: str, read: bool) -> None:
    params = {"output_format": output_format}
    [call] = calls(params, output, CacheControl())
    assert call.cache == CacheControl(read=read, write=True)
    [call] = calls(params, output, CacheControl(read=False, write=False))
    assert call.cache == CacheControl(read=False, write=False)


def answer(count: int, seed: int = 3) -> Answer:
    fields = {"model": "m", "width": 8, "height": 16, "sampler": "ddim", "num_images": count}
    params = ResolvedParams.model_construct(prompt="a", seed=seed, **fields)
    images = tuple(
        GeneratedImage(Image.new("RGBA", (8, 16), (seed + index, 1, 2)), seed + index, index)
        for index in range(count)
    )
    pictures = tuple(
        Picture(
            b"f%d" % each.seed,
            "png",
            f"i{each.seed}" if each.index else None,
            each.seed,
            8,
            16,
            each.index,
        )
        for each in images
    )
    order = Resolved("generate", params)
    return Answer(Generation("r", order, images, Timings(0, 0, 0, 0, 0, 0)), pictures)


def test_output_tensors() -> None:
    one, two = [answer(1, 3), answer(1, 7)], [answer(2, 3), answer(2, 7)]
    files = output_tensor("image", one)
    assert (files.datatype, files.shape, files.data) == ("BYTES", (2,), [b"f3", b"f7"])
    assert not files.is_text
    assert output_tensor("image", two).shape == (2, 2)
    ids = output_tensor("image_id", two)
    assert (ids.shape, ids.data, ids.is_text) == ((2, 2), [b"", b"i4", b"", b"i8"], True)
    seeds = output_tensor("seed", two)
    assert isinstance(seeds.data, np.ndarray)
    assert (seeds.datatype, seeds.data.tolist(), seeds.data.dtype.str) == (
        "INT64",
        [3, 4, 7, 8],
        "<i8",
    )
    pixels = output_tensor("pixels", one)
    assert isinstance(pixels.data, np.ndarray)
    assert (pixels.datatype, pixels.shape) == ("UINT8", (2, 16, 8, 3))
    assert pixels.data.dtype == np.uint8
    assert pixels.data[1, 0, 0].tolist() == [7, 1, 2]
    assert output_tensor("pixels", two).shape == (2, 2, 16, 8, 3)


# Routes


def infer(http: TestClient, body: Any, path: str = INFER, **request: Any) -> Any:
    return http.post(path, json=body, **request)


def test_infer_json(http: TestClient, bed: Bed) -> None:
    body = {"inputs": [prompts("quick"), row("seed", [5])], "id": "mine"}
    answer = infer(http, body, headers={"X-Request-Id": "r"})
    assert answer.headers["content-type"] == "application/json"
    assert (answer.headers["x-request-id"], answer.headers["cache-control"]) == ("r", "no-store")
    assert HEADER_LENGTH not in answer.headers
    result = answer.json()
    assert {k: result[k] for k in ("model_name", "model_version", "id")} == {
        "model_name": "fake",
        "model_version": "1",
        "id": "mine",
    }
    assert [each["name"] for each in result["outputs"]] == list(DEFAULT_OUTPUTS)
    assert result["outputs"][1] == {
        "name": "seed",
        "datatype": "INT64",
        "shape": [1],
        "data": [5],
    }
    assert "id" not in infer(http, {"inputs": [prompts("quick")]}).json()


def test_infer_binary(http: TestClient) -> None:
    wanted = [
        {"name": "seed", "parameters": {"binary_data": True}},
        {"name": "image_id"},
        {"name": "pixels", "parameters": {"binary_data": True}},
    ]
    answer = infer(http, {"inputs": [prompts("quick"), row("seed", [5])], "outputs": wanted})
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers[HEADER_LENGTH])
    result, raw = json.loads(answer.content[:length]), answer.content[length:]
    assert [each["name"] for each in result["outputs"]] == ["seed", "image_id", "pixels"]
    assert raw[:8] == struct.pack("<q", 5)
    assert len(raw) == 8 + 64 * 64 * 3
    assert list(raw[8:11]) == [5, 9, 9]


def test_infer_by_version(http: TestClient, bed: Bed) -> None:
    assert infer(http, {"inputs": [prompts("quick")]}, "/v2/models/fake/versions/1/infer")
    assert bed.last["model"] == "fake:1"
    missing = infer(http, {"inputs": [prompts("a")]}, "/v2/models/fake/versions/2/infer")
    assert missing.status_code == 404


@pytest.mark.parametrize(
    ("status", "request_", "error"),
    [
        (422, {"json": {"inputs": []}}, "inputs: got []"),
        (400, {"content": b"{"}, "body: got '{'"),
        (
            415,
            {"content": b"{}", "headers": {"Content-Encoding": "gzip"}},
            "Content-Encoding: got 'gzip'",
        ),
        (422, {"json": {}, "headers": {"X-Request-Id": "a b"}}, "X-Request-Id"),
        (400, {"content": b"{}", "headers": {HEADER_LENGTH: "9"}}, HEADER_LENGTH),
        (429, {"json": {"inputs": [prompts("full")]}}, "the queue is full"),
        (500, {"json": {"inputs": [prompts("bug")]}}, "an unexpected error"),
    ],
)
def test_errors(http: TestClient, status: int, request_: Any, error: str) -> None:
    answer = http.post(INFER, **request_)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].startswith(error)
    assert (
        http.post(INFER, content=b"{}", headers={"Content-Encoding": "identity"}).status_code == 422
    )


def test_a_wrong_call_is_counted(http: TestClient) -> None:
    def count() -> float:
        return sum(
            sample.value
            for metric in REGISTRY.collect()
            for sample in metric.samples
            if sample.name == "sdxl_requests_total"
            and sample.labels["protocol"] == "open_inference"
            and sample.labels["outcome"] != "ok"
        )

    before = count()
    infer(http, {"inputs": []})
    assert count() == before + 1


def test_the_server(http: TestClient, bed: Bed) -> None:
    assert http.get("/v2").json() == {
        "name": "sdxl-bento",
        "version": __version__,
        "extensions": ["binary_tensor_data", "model_repository"],
    }
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    bed.generator.state = "loading"
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").status_code == 503
    bed.generator.state, bed.generator.state_reason = "dead", "the device is gone"
    dead = http.get("/v2/health/live")
    assert dead.status_code == 503
    assert dead.json() == {"error": "the engine has died: the device is gone"}


@pytest.mark.parametrize("path", ["/v2/models/fake", "/v2/models/fake/versions/1"])
def test_a_model(http: TestClient, path: str) -> None:
    assert http.get(f"{path}/ready").json() == {"name": "fake", "ready": True}
    model = http.get(path).json()
    assert {k: model[k] for k in ("name", "versions", "platform")} == {
        "name": "fake",
        "versions": ["1"],
        "platform": "sdxl_fake",
    }
    shapes = {each["name"]: (each["datatype"], each["shape"]) for each in model["inputs"]}
    assert (shapes["prompt"], shapes["target_size"]) == (("BYTES", [-1]), ("INT64", [-1, 2]))
    assert model["outputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "seed", "datatype": "INT64", "shape": [-1]},
        {"name": "image_id", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
    ]
    for missing in ("/v2/models/x", "/v2/models/fake/versions/2", "/v2/models/x/ready"):
        assert http.get(missing).status_code == 404


INDEX = "/v2/repository/index"


def test_the_index(http: TestClient, bed: Bed) -> None:
    ready = [{"name": "fake", "version": "1", "state": "READY", "reason": ""}]
    for request in ({}, {"json": {}}, {"json": {"ready": True}}, {"json": {"ready": False}}):
        assert http.post(INDEX, **request).json() == ready  # type: ignore[arg-type]
    entry = {"name": "fake", "version": "1"}
    for state, shown in (("new", "LOADING"), ("loading", "LOADING"), ("dead", "UNAVAILABLE")):
        bed.generator.state = state
        [model] = http.post(INDEX).json()
        assert model == entry | {"state": shown, "reason": f"the engine is {state}"}
        assert http.post(INDEX, json={"ready": True}).json() == []
    bed.generator.state_reason = "no memory"
    assert http.post(INDEX).json()[0]["reason"] == "no memory"


@pytest.mark.parametrize(
    ("path", "request_", "error"),
    [
        (INDEX, {"json": {"ready": 1}}, "ready: got 1, allowed: true or false"),
        (INDEX, {"json": [1]}, "body: got [1], allowed: a JSON object, or nothing"),
        (
            "/v2/repository/models/fake/load",
            {"json": {"parameters": {"a": 1}}},
            "parameters: got {'a': 1}",
        ),
        (
            "/v2/repository/models/fake/unload",
            {},
            "unload: got 'fake', allowed: nothing: models are those",
        ),
    ],
)
def test_what_the_repository_refuses(
    http: TestClient, path: str, request_: Any, error: str
) -> None:
    answer = http.post(path, **request_)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(error)


def test_loading_a_model(http: TestClient) -> None:
    load = "/v2/repository/models/{}/load"
    for request in ({}, {"json": {"parameters": {}}}):
        answer = http.post(load.format("fake"), **request)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()) == (200, {})
    missing = http.post(load.format("x"))
    assert missing.status_code == 404
    assert missing.json()["error"] == (
        "no model named 'x'; available: fake; others are loaded at start, by SDXL_MODELS"
    )
    assert http.post("/v2/repository/models/x/unload").status_code == 404


def test_the_schema() -> None:
    body = schema._inference()
    assert body["required"] == ["inputs"]
    inputs_ = body["properties"]["inputs"]["items"]
    assert inputs_["required"] == ["name", "shape", "datatype"]
    assert inputs_["properties"]["datatype"]["enum"] == list(DATATYPES)
    for path, item in schema._repository().items():
        assert not item["post"]["requestBody"]["required"], path
    assert inputs_["properties"]["shape"]["items"] == {"type": "integer", "minimum": 0}


# Bounds


@pytest.mark.parametrize("shape", [[2**63], [10**19] * 4000, [129, 128]])
def test_shapes_are_bounded_before_they_are_multiplied(shape: list[int]) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_tensors([tensor(shape=shape, data=[1])], b"")
    assert caught.value.field == "x.shape"
    assert caught.value.allowed in ("at most 8 dimensions", "at most 16384 elements")


@pytest.mark.parametrize(
    ("datatype", "raw"), [("BYTES", b"\0" * 100_000), ("UINT8", b"1" * 16_385)]
)
def test_elements_of_raw_bytes_are_counted(datatype: str, raw: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_tensors([size(len(raw), datatype)], raw)
    assert (caught.value.field, caught.value.allowed) == ("x.data", "at most 16384 elements")


def test_inputs_and_ids_are_bounded() -> None:
    assert refused(inputs=[prompts("a")] * 65).allowed == "at most 64"
    assert read(prompts("a"), id="x" * 1000).id == "x" * 1000
    for given in ("x" * 1001, ["x" * 2000]):
        assert refused(prompts("a"), id=given).field == "id"


@pytest.mark.parametrize("length", ["²", "９", "9" * 5000, "1_0", "+1"])
def test_lengths_are_ascii_digits(length: str) -> None:
    with pytest.raises(MalformedBody):
        split_body(b"{}" * 20, length)
