"""What /metrics tells, over two real workers with the embedded model and real clients."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from export.embedded.checker import analyse
from sdxl_bento.errors import InvalidInput
from sdxl_bento.order import Resolved
from sdxl_bento.params import ResolvedParams
from sdxl_bento.serving.gpu import Usage, gpus_of
from sdxl_bento.serving.metrics import Metrics, metrics
from sdxl_bento.serving.results import GeneratedImage, Generation, ModelSummary, Timings, UnitDone
from tests.support.server import ROOT, Server, serve

STEPS = 4
CALLS = 6
MODEL = "sdxl-embedded"
NAMES = {
    "inference_request_count",
    "inference_request_duration_seconds",
    "model_load_time_seconds",
    "gpu_memory_usage_bytes",
    "gpu_utilization_percent",
}

# In this process: what becomes of calls


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def counted() -> Callable[..., float]:
    """Like `sample`, without what other tests of this process have counted before now."""
    before = {
        (each.name, *sorted(each.labels.items())): each.value
        for family in REGISTRY.collect()
        for each in family.samples
    }
    return lambda name, **labels: (
        sample(name, **labels) - before.get((name, *sorted(labels.items())), 0.0)
    )


@pytest.fixture
def told() -> Metrics:
    made = metrics()
    model = ModelSummary("m", "m:1", True, 64, 64, 8, True, "fp32", "eager", "cpu", 1.5, 0.5)
    made.started([model])
    return made


def test_every_metric_is_documented(told: Metrics) -> None:
    text = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    families = [each for each in REGISTRY.collect() if each.name.startswith(("sdxl_", *NAMES))]
    names = {each.name + "_total" * (each.type == "counter") for each in families}
    assert listed == names
    assert {name.removesuffix("_total") for name in names} >= NAMES


@pytest.mark.parametrize(("model", "label"), [("m", "m"), (None, "unknown")])
def test_calls_for_no_model_share_a_label(told: Metrics, model: str | None, label: str) -> None:
    before = sample("inference_request_count_total", model_name=label, status="success")
    with told.request("test", model):
        pass
    after = sample("inference_request_count_total", model_name=label, status="success")
    assert after == before + 1


def test_errors(told: Metrics) -> None:
    since = counted()
    with pytest.raises(InvalidInput), told.request("test", "m"):
        raise InvalidInput("width", 3, "more")
    assert since("sdxl_requests_total", protocol="test", outcome="invalid") == 1
    assert since("inference_request_count_total", model_name="m", status="error") == 1


def test_promises(told: Metrics) -> None:
    def order(slo_ms: float | None) -> Resolved:
        fields = {"model": "m", "width": 64, "height": 64, "seed": 1, "sampler": "ddim"}
        return Resolved("generate", ResolvedParams(prompt="a", slo_ms=slo_ms, **fields))

    def drawn(slo_ms: float | None) -> Generation:
        picture = GeneratedImage(Image.new("RGB", (8, 8)), 1, 0)
        return Generation("r", order(slo_ms), (picture,), Timings(0, 0, 0.4, 0, 0.1, 0.5))

    since = counted()
    for slo_ms in (None, 499, 500, 600):
        told.generated("test", drawn(slo_ms))
    assert since("sdxl_slo_total", outcome="met") == 2
    assert since("sdxl_slo_total", outcome="missed") == 1
    assert since("sdxl_stage_seconds_count", stage="queue") == 4
    assert since("sdxl_stage_seconds_count", stage="refine") == 0
    cached = Generation("r", order(None), (), Timings(0, 0, 0, 0, 0, 0.01))
    told.generated("test", cached)  # it was in no queue
    assert since("sdxl_stage_seconds_count", stage="queue") == 4


def test_totals_become_counters(told: Metrics) -> None:
    for hits in (2, 2, 5):
        told.load({"running": 1, "loras": {"hits": hits, "loads": 1}, "prompt_cache": {}})
    assert sample("sdxl_loras_total", result="hits") == 5
    assert sample("sdxl_pictures", state="running") == 1


def test_units_and_gpus(told: Metrics) -> None:
    since = counted()
    told.units([UnitDone("base", 8, 0.02), UnitDone("base", 2, 0.01)])
    assert since("sdxl_unit_rows_sum", stage="base") == 10
    told.gpu(Usage("0", 5_000_000_000, None))
    assert sample("gpu_memory_usage_bytes", device="0") == 5e9
    assert gpus_of({"cpu"}) == []
    assert gpus_of({"cuda:99"}) == []  # without such a device there are none to tell of


def test_gauges_of_a_killed_worker_are_forgotten(tmp_path: Path) -> None:
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}

    def run(code: str) -> str:
        head = "import os\nfrom sdxl_bento.serving.metrics import metrics\nm = metrics()\n"
        command = [sys.executable, "-c", head + code]
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("m.load({'running': 3})\nm.units([])\nm._images.labels('a').inc(2)\nos._exit(0)")
    assert list(tmp_path.glob("gauge_livesum_*.db"))
    text = run(
        "m.load({'running': 1})\n"
        "from prometheus_client import CollectorRegistry, generate_latest, multiprocess\n"
        "r = CollectorRegistry()\nmultiprocess.MultiProcessCollector(r)\n"
        "print(generate_latest(r).decode())"
    )
    assert 'sdxl_pictures{state="running"} 1.0' in text
    assert 'sdxl_images_total{protocol="a"} 2.0' in text


# Over two workers


@pytest.fixture(scope="module")
def server(embedded_tag: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = {"SDXL_MODEL": embedded_tag, "SDXL_THREADS": "1", "SDXL_WORKERS": "2"}
    log = tmp_path_factory.mktemp("workers") / "log"
    with serve("service:SDXLService", log, env=env) as running:
        until_both_are_ready(running)
        yield running


def until_both_are_ready(server: Server) -> None:
    """/readyz is answered by one of them."""
    deadline = time.monotonic() + 120
    while server.output().count("warmed up in") < 2:
        assert time.monotonic() < deadline, server.output()
        time.sleep(0.1)


def scraped(server: Server) -> dict[tuple[str, str], float]:
    """Samples by name and labels in one string."""
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    return {
        (each.name, ",".join(f"{k}={v}" for k, v in sorted(each.labels.items()))): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


def until(server: Server, key: tuple[str, str], value: float) -> dict[tuple[str, str], float]:
    deadline = time.monotonic() + 10
    while (seen := scraped(server)).get(key) != value:
        assert time.monotonic() < deadline, f"{key} is {seen.get(key)}, not {value}"
        time.sleep(0.2)
    return seen


@pytest.fixture(scope="module")
def used(server: Server) -> dict[tuple[str, str], float]:
    """What is told after CALLS good calls at once, each on a connection of its own, and two bad."""

    def call(seed: int) -> int:
        fields = {
            "prompt": "a red circle on a blue background",
            "seed": seed,
            "num_inference_steps": STEPS,
            "guidance_scale": 5.0,
            "sampler": "euler",
            "slo_ms": 600_000,
            "loras": [{"name": "striped"}],
        }
        return httpx.post(f"{server.url}/generate", json=fields, timeout=60).status_code

    with ThreadPoolExecutor(CALLS) as pool:
        assert list(pool.map(call, range(CALLS))) == [200] * CALLS
    for fields, status in (({"slo_ms": 0.1}, 503), ({"model": "nope"}, 404)):
        answer = httpx.post(f"{server.url}/generate", json={"prompt": "a"} | fields, timeout=60)
        assert answer.status_code == status
    return until(server, ("sdxl_unit_rows_sum", "stage=base"), 2 * STEPS * CALLS)


def test_both_workers_are_counted_together(used: dict[tuple[str, str], float]) -> None:
    assert used["sdxl_requests_total", "outcome=ok,protocol=native"] == CALLS
    assert used["sdxl_requests_total", "outcome=refused,protocol=native"] == 1
    assert used["sdxl_request_seconds_count", "protocol=native"] == CALLS + 2
    assert used["sdxl_stage_seconds_count", "stage=base"] == CALLS
    assert used["sdxl_slo_total", "outcome=met"] == CALLS
    assert used["sdxl_slo_total", "outcome=refused"] == 1
    units = used["sdxl_unit_seconds_count", "stage=base"]
    assert STEPS <= units <= STEPS * CALLS
    loads, hits = (used["sdxl_loras_total", f"result={name}"] for name in ("loads", "hits"))
    assert 1 <= loads <= 2  # one for each worker that had a call
    assert loads + hits >= CALLS
    assert used["sdxl_prompt_cache_total", "result=misses"] >= 1


def test_an_idle_server_says_so(server: Server, used: dict[tuple[str, str], float]) -> None:
    for state in ("running", "waiting"):
        until(server, ("sdxl_pictures", f"state={state}"), 0)
    assert used["sdxl_requests_in_progress", "protocol=native"] == 0


def test_the_names_of_other_runtimes(used: dict[tuple[str, str], float]) -> None:
    assert used["inference_request_count_total", f"model_name={MODEL},status=success"] == CALLS
    assert used["inference_request_count_total", "model_name=unknown,status=error"] == 1
    assert used["inference_request_duration_seconds_count", f"model_name={MODEL}"] == CALLS + 1
    assert used["model_load_time_seconds", f"model_name={MODEL}"] > 0
    assert used["sdxl_model_start_seconds", f"model={MODEL},phase=warm_up"] > 0


# The embedded model through KServe's protocols

RED = {"prompt": "a red circle on a blue background", "seed": 1, "num_inference_steps": 14}


def shown(data: bytes) -> tuple[str | None, str | None]:
    seen: Any = analyse(Image.open(io.BytesIO(data)).convert("RGB"))
    return seen.colour, seen.shape


def test_v1_shows_each_prompt(server: Server) -> None:
    green = RED | {"prompt": "a green square on a yellow background"}
    url = f"{server.url}/v1/models/{MODEL}:predict"
    answer = httpx.post(url, json={"instances": [RED, green]}, timeout=60)
    images = [base64.b64decode(each["image"]["b64"]) for each in answer.json()["predictions"]]
    assert list(map(shown, images)) == [("red", "circle"), ("green", "square")]


def test_v2_shows_each_prompt(server: Server) -> None:
    prompts = np.array([RED["prompt"], "a green square on a yellow background"], object)
    prompt = triton.InferInput("prompt", [2], "BYTES")
    prompt.set_data_from_numpy(prompts)
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        parameters = {"seed": 1, "num_inference_steps": 14}
        images = client.infer(MODEL, [prompt], parameters=parameters).as_numpy("image")
        assert list(map(shown, images)) == [("red", "circle"), ("green", "square")]
        alone = httpx.post(f"{server.url}/v1/models/{MODEL}:predict", json=RED, timeout=60)
        assert shown(alone.content) == ("red", "circle")
