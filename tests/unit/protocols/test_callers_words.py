"""Errors are about what was sent: the caller's own field and value, in every protocol.

One table has all of them, whatever finds the mistake: the translation, the types of the fields, the
model, the limits of the server, or the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sdxl_bento.errors import AdapterMismatch, DeadlineInfeasible, InvalidInput, ModelNotFound
from sdxl_bento.order import Order, Resolved
from sdxl_bento.protocols.http.translation import Sent, Translation
from tests.unit.protocols.conftest import Bed, png_base64

GENERATE, V1, V2 = "/generate", "/v1/models/fake:predict", "/v2/models/fake/infer"
OPENAI, A1111 = "/v1/images/generations", "/sdapi/v1/txt2img"
STEPS = "an integer from 1 to 30"


def inputs(*prompts: str, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "prompt", "shape": [len(prompts)], "datatype": "BYTES", "data": prompts}
    return {"inputs": [tensor], "parameters": parameters}


def tensor(name: str, *values: int) -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": "INT64", "data": list(values)}


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    """A server with limits of its own, whose models draw multiples of 8."""
    folder: Path = tmp_path_factory.mktemp("store")
    bed = Bed(folder, max_steps=30, max_images=4, max_running=2, max_queue=4)
    resolve = bed.generator.resolve

    def strict(order: Order) -> Resolved:
        resolved = resolve(order)
        if resolved.params.num_inference_steps > 30:
            raise InvalidInput("num_inference_steps", 31, "at most 30 on this server")
        if resolved.params.width > 96:
            size = f"{resolved.params.width} x {resolved.params.height}"
            raise InvalidInput("width x height", size, "at most 9216 pixels on this server")
        if resolved.params.slo_ms is not None and resolved.params.slo_ms < 5:
            raise DeadlineInfeasible(resolved.params.slo_ms / 1e3, 0.043, 1.0)
        return resolved

    bed.generator.resolve = strict  # type: ignore[method-assign]
    return bed


@pytest.fixture(scope="module")
def http(bed: Bed) -> Iterator[TestClient]:
    with TestClient(bed.app, raise_server_exceptions=False) as client:
        yield client


CASES: list[tuple[str, dict[str, Any], int, str]] = [
    # native
    (GENERATE, {"prompt": "a", "width": 65}, 422, "width: got 65, allowed: a multiple of 8"),
    (GENERATE, {"prompt": "a", "steps": 0}, 422, f"steps: got 0, allowed: {STEPS}"),
    (GENERATE, {"prompt": "a", "num_steps": 31}, 422, "num_steps: got 31, allowed: at most 30"),
    (GENERATE, {"prompt": "a", "num_outputs": 99}, 422, "num_outputs: got 99, allowed: an integer "
                                                        "from 1 to 4"),
    (GENERATE, {"prompt": "a", "scheduler": "PNDM"}, 422, "scheduler: got 'PNDM', allowed: one of"),
    (GENERATE, {"prompt": "a", "loras": [{"name": "a", "scale": 9}]}, 422, "loras.0.scale: got 9"),
    (GENERATE, {"prompt": "a", "width": 104, "height": 96}, 422, "width x height: got '104 x 96'"),
    (GENERATE, {"prompt": "a", "slo_ms": 0.5}, 503, "slo_ms: 0.5 ms cannot be met, it would take "
                                                    "43 ms"),
    (GENERATE, {"prompt": "a", "slo_ms": f" 0.{'1' * 60}\n"}, 503,
     f"slo_ms: 0.{'1' * 29}… ms cannot be met, it"),
    (GENERATE, {"prompt": "a", "steps": 5, "num_inference_steps": 5}, 422,
     "steps: got 5, allowed: one of steps and num_inference_steps, not both"),
    # OpenAI
    (OPENAI, {"prompt": "a", "size": "65x64"}, 422, "size: got '65x64', allowed: a multiple of 8"),
    (OPENAI, {"prompt": "a", "size": "10x64"}, 422, "size: got '10x64', allowed: an integer from"),
    (OPENAI, {"prompt": "a", "size": "104x96"}, 422, "size: got '104x96', allowed: at most 9216"),
    (OPENAI, {"prompt": "a", "n": 17}, 422, "n: got 17, allowed: an integer from 1 to 4"),
    (OPENAI, {"prompt": "a", "steps": 201}, 422, f"steps: got 201, allowed: {STEPS}"),
    (OPENAI, {"prompt": "a", "n": 1, "num_outputs": 1}, 422, "n: got 1, allowed: one of n and "
                                                             "num_outputs, not both"),
    # KServe V1
    (V1, {"instances": ["a", {"prompt": "b", "width": 65}]}, 422, "instances.1.width: got 65"),
    (V1, {"instances": ["a", {"prompt": "b", "width": 5}]}, 422, "instances.1.width: got 5"),
    (V1, {"inputs": [{"prompt": "b", "parameters": {"width": 65}}]}, 422,
     "inputs.0.parameters.width: got 65"),
    (V1, {"instances": ["a", "b"], "parameters": {"width": 65}}, 422, "parameters.width: got 65"),
    (V1, {"instances": ["a", {"prompt": "b", "steps": 31}]}, 422, "instances.1.steps: got 31"),
    (V1, {"instances": ["a", {}]}, 422, "instances.1.prompt: got None"),
    (V1, {"instances": [{"prompt": "a", "widht": 64}]}, 422, "instances.0.widht: got 64, allowed: "
                                                             "width (the nearest)"),
    (V1, {"instances": [{"prompt": "a", "loras": [{"name": "b", "wieght": 1}]}]}, 422,
     "instances.0.loras.0.wieght: got 1, allowed: "),
    (V1, {"instances": ["a"], "slo_ms": 1}, 503, "slo_ms: 1 ms cannot be met"),
    (V1, {"instances": [{"prompt": "a", "slo_ms": 1}]}, 503, "instances.0.slo_ms: 1 ms cannot"),
    (V1, {"instances": [{"prompt": "a", "loras": [{"name": "x"}]}]}, 404,
     "no LoRA named 'x'; available: striped (in instances.0.loras)"),
    (V1, {"prompt": "a", "width": 65}, 422, "width: got 65"),
    # KServe V2
    (V2, inputs("a", timeout=1), 503, "timeout: 1 µs cannot be met, it would take 43 ms"),
    (V2, inputs("a", steps=201), 422, f"steps: got 201, allowed: {STEPS}"),
    (V2, inputs("a", timeout=4_000_000_000), 422, "timeout: got 4000000000, allowed: microsec"),
    (V2, {"inputs": [*inputs("a", "b")["inputs"], tensor("width", 64, 65)]}, 422,
     "width (row 1): got 65"),
    (V2, {"inputs": [*inputs("a", "b")["inputs"], tensor("steps", 5, 31)]}, 422,
     "steps (row 1): got 31"),
    # AUTOMATIC1111
    (A1111, {"prompt": "a", "steps": 31}, 422, "steps: got 31, allowed: at most 30"),
    (A1111, {"prompt": "a", "width": 65}, 422, "width: got 65, allowed: a multiple of 8"),
    (A1111, {"prompt": "a", "cfg_scale": 99}, 422, "cfg_scale: got 99, allowed: a number from"),
    (A1111, {"prompt": "a <lora:b:9>"}, 422, "prompt: got '<lora:b:9>', allowed: a number from -8"),
    (A1111, {"prompt": "a <lora:b>"}, 404, "no LoRA named 'b'; available: striped"),
    (A1111, {"batch_size": 9, "n_iter": 2}, 422, "batch_size x n_iter: got '9 x 2', allowed: an "),
    (A1111, {"batch_size": 17}, 422, "batch_size: got 17, allowed: an integer from 1 to 4"),
    (A1111, {"seed": -5}, 422, "seed: got -5, allowed: an integer from 0"),
    (A1111, {"override_settings": {"sd_model_checkpoint": "x.safetensors [0a]"}}, 404,
     "no model named 'x.safetensors [0a]'"),
    (A1111, {"sampler_index": "Heun"}, 422, "sampler_index: got 'Heun', allowed: one of Euler"),
]  # fmt: skip


def message(body: dict[str, Any]) -> str:
    """The message of an error in any protocol's form."""
    error = body["error"]
    return str(error["message"] if isinstance(error, dict) else body.get("detail", error))


@pytest.mark.parametrize(("path", "body", "status", "text"), CASES)
def test_what_was_sent(
    http: TestClient, path: str, body: dict[str, Any], status: int, text: str
) -> None:
    answer = http.post(path, json=body)
    assert message(answer.json())[: len(text)] == text
    assert answer.status_code == status


def test_a_header_is_told_apart_from_a_field(http: TestClient) -> None:
    for path, body in ((GENERATE, {"prompt": "a"}), (OPENAI, {"prompt": "a"}), (A1111, {}),
                       (V1, {"instances": ["a"]}), (V2, inputs("a"))):  # fmt: skip
        answer = http.post(path, json=body, headers={"X-SLO-MS": "2"})
        assert message(answer.json()).startswith("slo_ms: 2 ms cannot be met"), path
        assert message(answer.json()).endswith("; it was sent as the header X-SLO-MS"), path
        answer = http.post(path, json=body, headers={"X-Priority": "x"})
        assert message(answer.json()).startswith("priority: got 'x'"), path
        assert "; it was sent as the header X-Priority" in message(answer.json()), path


def test_the_id_of_a_picture_has_the_name_that_was_used(http: TestClient) -> None:
    for name in ("image_id", "id"):
        answer = http.post("/img2img", json={"prompt": "a", name: "A" * 22})
        assert answer.status_code == 404
        assert answer.json()["error"]["field"] == name


def test_a_picture_is_not_repeated(http: TestClient) -> None:
    body = {"init_images": [png_base64((96, 104))]}
    answer = http.post("/sdapi/v1/img2img", json=body)
    assert answer.status_code == 413
    assert message(answer.json()).startswith("init_images: got ")
    assert "iVBOR" not in answer.text


def test_paths_inside_of_a_field() -> None:
    sent = {"loras": Sent("adapters", [1]), "a.1": Sent("prompt", "<tag>", whole=True)}
    noted = Translation(place="x", suffix=" (row 2)", sent=sent)
    for error, field, value in (
        (InvalidInput("loras", [], "less"), "adapters (row 2)", [1]),
        (InvalidInput("loras.0.scale", 9, "less"), "adapters.0.scale (row 2)", 9),
        (InvalidInput("a.1.scale", 9, "less"), "prompt (row 2)", "<tag>"),
        (InvalidInput("a.0.scale", 9, "less"), "x.a.0.scale (row 2)", 9),
        (InvalidInput("body", 9, "less"), "x (row 2)", 9),
        (AdapterMismatch("b", ["k"], "rank"), "adapters (row 2)", "b"),
    ):
        told: Any = noted.told(error)
        assert (told.field, told.value, type(told)) == (field, value, type(error))
        assert str(told).startswith(f"{field}: got {value!r}, allowed: ")
    for same in (ModelNotFound("m"), TimeoutError("late"), InvalidInput("f", 1, "less")):
        assert Translation().told(same) is same


def test_a_compressed_body_is_refused_as_such(http: TestClient) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    paths = (GENERATE, OPENAI, A1111, V1, V2, "/generate_batch", "/img2img", "/v1/images/edits")
    for path in paths:
        answer = http.post(path, content=b"\x1f\x8b", headers=headers)
        assert answer.status_code == 415, path
        assert message(answer.json()).startswith("Content-Encoding: got 'gzip'"), path
