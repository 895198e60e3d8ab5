"""From the settings to models and an engine, with the heavy parts faked: what is handed to whom."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bentoml.exceptions import NotFound

from sdxl_bento.config import Settings
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.errors import ConfigurationError, OutOfMemory
from sdxl_bento.manifest import BackendInfo, Manifest
from sdxl_bento.serving import adapters, compiled_parts, loading
from sdxl_bento.serving.compiled_parts import Chosen, load_parts, log_misfits
from sdxl_bento.serving.verification import Verification
from tests.support.loaded_models import CPU, loaded
from tests.support.manifests import manifest

HERE = {"onnxruntime": "1"}


def built(**changes: Any) -> BackendInfo:
    fields: dict[str, Any] = {
        "backend": "onnx", "device": "cpu", "dtype": "fp32", "versions": HERE,
        "artifacts": {"base/unet": "compiled/onnx/unet", "base/vae_decoder": "compiled/onnx/vae",
                      "refiner/unet": "compiled/onnx/refiner"},
    }  # fmt: skip
    return BackendInfo(**fields | changes)


class FakeRuntime:
    """A runtime that loads any file, but for those in `broken`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: dict[str, Exception] = {}
        self.loaded: list[tuple[Path, Any]] = []
        self.unloaded: list[str] = []
        monkeypatch.setattr("sdxl_bento.backends.choose.runtime", lambda _: self)
        monkeypatch.setattr(compiled_parts, "runtime", lambda _: self)

    def versions(self) -> dict[str, str]:
        return HERE

    def load(self, path: Path, options: Any) -> Any:
        if error := self.broken.get(path.name):
            raise error
        self.loaded.append((path, options))
        return SimpleNamespace(unload=lambda: self.unloaded.append(path.name))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    return FakeRuntime(monkeypatch)


def export(folder: Path, *infos: BackendInfo, **changes: Any) -> Path:
    eager = BackendInfo(backend="eager", device="any", versions={})
    manifest(backends=(eager, *infos), **changes).save(folder)
    return folder


# Which backend


def choose(folder: Path, settings: Settings) -> Chosen:
    described = Manifest.load(folder)
    check = Verification().of(folder, described)
    chosen = load_parts(folder, described, settings, CPU, check)
    log_misfits(described.name, chosen)
    return chosen


def test_each_part_is_loaded_with_the_weights_of_its_component(
    runtime: FakeRuntime, tmp_path: Path
) -> None:
    export(tmp_path, built())
    chosen = choose(tmp_path, Settings(threads=3, openvino_kernels=7))
    assert chosen.info == built()
    assert list(chosen.parts) == ["base/unet", "base/vae_decoder", "refiner/unet"]
    options = {path.relative_to(tmp_path).as_posix(): given for path, given in runtime.loaded}
    weights = {name: given.weights.relative_to(tmp_path) for name, given in options.items()}
    assert weights == {
        "compiled/onnx/unet": Path("base/unet"),
        "compiled/onnx/vae": Path("base/vae"),
        "compiled/onnx/refiner": Path("refiner/unet"),
    }
    for given in options.values():
        assert (given.info, given.device, given.threads) == (built(), CPU.device, 3)
        assert given.kernels == 7
        assert given.cache == tmp_path / "cache"
    assert (tmp_path / "cache").is_dir()


def test_nothing_is_kept_beside_a_read_only_model(
    runtime: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path, built())
    (tmp_path / "cache").write_text("a file where the folder should be")
    choose(tmp_path, Settings())
    assert {given.cache for _, given in runtime.loaded} == {None}
    (tmp_path / "cache").unlink()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    runtime.loaded.clear()
    choose(tmp_path, Settings())
    assert {given.cache for _, given in runtime.loaded} == {None}


@pytest.mark.parametrize("error", [ConfigurationError("cut short"), OSError("gone"),
                                   RuntimeError("no kernel")])  # fmt: skip
def test_the_next_backend_takes_over(
    runtime: FakeRuntime, tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.broken = {"first": error}
    first = built(dtype="bf16", artifacts={"base/vae_decoder": "vae", "base/unet": "first"})
    export(tmp_path, first, built())
    assert choose(tmp_path, Settings()).info == built()
    assert runtime.unloaded == ["vae"]  # it was loaded before the one that failed
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"tiny: onnx-cpu-bf16 is not used: it cannot be loaded: {error}; "
                    "onnx-cpu-fp32 runs instead"]  # fmt: skip


def test_a_bug_is_not_taken_for_a_misfit(runtime: FakeRuntime, tmp_path: Path) -> None:
    runtime.broken = {"refiner": KeyError("oops")}
    export(tmp_path, built())
    with pytest.raises(KeyError):
        choose(tmp_path, Settings())
    assert runtime.unloaded == ["unet", "vae"]


def test_eager_takes_over_unless_that_is_not_allowed(
    runtime: FakeRuntime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(tmp_path, built(device="cuda:9.0"), built(dtype="bf16"))
    settings = Settings(dtype="fp32")
    chosen = choose(tmp_path, settings)
    assert (chosen.info, chosen.parts, len(chosen.misfits)) == (None, {}, 2)
    assert [record.getMessage().rpartition("; ")[2] for record in caplog.records] == [
        "eager runs instead", "eager runs instead",
    ]  # fmt: skip
    strict = settings.model_copy(update={"allow_fallback": False})
    with pytest.raises(ConfigurationError, match="no compiled part of tiny fits") as caught:
        choose(tmp_path, strict)
    assert "onnx-cuda90-fp32: device: built for cuda:9.0, here is cpu; " in str(caught.value)
    assert "onnx-cpu-bf16: dtype: " in str(caught.value)
    assert not runtime.loaded


def test_a_model_that_was_never_compiled_runs_eagerly_without_a_word(
    runtime: FakeRuntime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(tmp_path)
    strict = Settings(allow_fallback=False)
    assert choose(tmp_path, strict) == Chosen(None)
    assert not caplog.records


def test_eager_by_wish_tries_nothing(runtime: FakeRuntime, tmp_path: Path) -> None:
    export(tmp_path, built(dtype="bf16"))
    assert choose(tmp_path, Settings(backend="eager")) == Chosen(None)
    assert not runtime.loaded


# One model


class Stubs:
    """Stand-ins for what holds tensors; they keep what they were made with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.sliced: list[tuple[bool, bool]] = []
        self.attention: list[object] = []
        self.registered: dict[str, Path] = {}
        self.scanned: list[object] = []
        self.made: dict[str, Any] = {}
        self.folder = folder
        self.encoders = [torch.nn.Identity(), torch.nn.Identity()]
        self.attention_error: Exception | None = None
        stubs = {
            "Model": SimpleNamespace(load=self.model),
            "EagerBackend": self.keep("eager"),
            "CompiledBackend": self.keep("compiled"),
            "Conditioner": self.keep("conditioner"),
        }
        for name, stub in stubs.items():
            monkeypatch.setattr(loading, name, stub)
        monkeypatch.setattr(adapters, "LoraPool", self.pool)
        layout = SimpleNamespace(columns=["a layer"])
        monkeypatch.setattr(adapters, "SlotLayout", {"base unet": layout}.__getitem__)
        monkeypatch.setattr("sdxl_bento.backends.attention.apply_attention", self.apply)

    def keep(self, name: str) -> Any:
        def make(*arguments: Any) -> Any:
            self.made[name] = arguments
            return SimpleNamespace(name=name)

        return make

    def model(self, name: str, tag: str, folder: Path, placement: Any, parts: Any) -> Any:
        def slice(*, attention: bool, vae: bool) -> None:
            self.sliced.append((attention, vae))

        base = SimpleNamespace(
            unet="base unet", text_encoders=self.encoders, scheduler_config={"of": "base"}
        )
        refiner = SimpleNamespace(unet="refiner unet", scheduler_config={"of": "refiner"})
        self.loaded = SimpleNamespace(
            name=name, tag=tag, folder=folder, placement=placement, base=base, refiner=refiner,
            manifest=loading.Manifest.load(folder), slice=slice,
        )  # fmt: skip
        self.made["model"] = parts
        return self.loaded

    def pool(self, targets: Any, **options: Any) -> Any:
        self.made["pool"] = (targets, options)

        register = self.registered.__setitem__
        load_pinned = partial(self.scanned.append, "pinned")
        return SimpleNamespace(register=register, scan=self.scanned.append, load_pinned=load_pinned)

    def apply(self, unet: object, name: str) -> None:
        if self.attention_error is not None:
            raise self.attention_error
        self.attention.append((unet, name))


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stubs:
    return Stubs(monkeypatch, export(tmp_path, built()))


def wake() -> None:
    """Passed through to the pool of adapters."""


def load_one(stubs: Stubs, **settings: Any) -> Any:
    given = Settings.model_validate({"verify": "off", **settings})
    tags, cache = ("tiny:latest", "tiny:v1"), object()
    return loading.load_folder("mine", tags, stubs.folder, given, CPU, cache, wake)  # type: ignore[arg-type]


def test_an_eager_model(stubs: Stubs, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "bentoml.sdxl_bento"):
        model = load_one(stubs, backend="eager", lora_cache_mb=3, vae_tile_pixels=5000)
    assert (model.name, model.requested_tag, model.tag, model.info) == (
        "mine", "tiny:latest", "tiny:v1", None,
    )  # fmt: skip
    assert model.served.backend.name == "eager"
    assert stubs.made["eager"] == (stubs.loaded, model.served.adapters, 5000)
    targets, options = stubs.made["pool"]
    assert targets == {
        "unet": "base unet", "text_encoder": stubs.encoders[0], "text_encoder_2": stubs.encoders[1],
    }  # fmt: skip
    assert options == {
        "budget_bytes": 3 << 20, "on_loaded": wake, "layers": None, "pinned": (),
    }  # fmt: skip
    assert stubs.made["conditioner"][:2] == (stubs.loaded, model.served.adapters)
    assert (model.facts.base_scheduler, model.facts.refiner_scheduler) == (
        {"of": "base"}, {"of": "refiner"},
    )  # fmt: skip
    assert (model.facts.name, model.facts.manifest) == ("mine", stubs.loaded.manifest)
    assert 0 <= model.load_seconds < 60
    assert model.warm_up_seconds == 0
    assert "tiny:v1 loaded in 0." in caplog.text
    assert ": eager, float32 on cpu" in caplog.text


def test_the_time_of_loading(stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 25.5])
    monkeypatch.setattr(loading, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert load_one(stubs, backend="eager").load_seconds == 15.5


def test_a_compiled_model(
    stubs: Stubs, runtime: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "bentoml.sdxl_bento"):
        model = load_one(stubs)
    assert model.info == built()
    assert list(stubs.made["model"]) == list(built().artifacts)
    assert stubs.made["pool"][1]["layers"] == {"unet": ["a layer"]}
    compiled = stubs.made["compiled"]
    assert compiled[:3] == (stubs.loaded, model.served.adapters, built())
    assert list(compiled[3]) == list(built().artifacts)
    assert compiled[4] == Settings().vae_tile_pixels
    assert ": onnx-cpu-fp32, float32 on cpu" in caplog.text
    assert not stubs.attention  # a compiled UNet has its own


def test_adapters_fit_a_compiled_decoder_as_they_are(stubs: Stubs, runtime: FakeRuntime) -> None:
    export(stubs.folder, built(artifacts={"base/vae_decoder": "vae"}))
    load_one(stubs)
    assert stubs.made["pool"][1]["layers"] is None


def test_a_model_with_one_text_encoder_has_the_second(stubs: Stubs) -> None:
    """As a refiner on its own."""
    only = stubs.encoders[:1]
    stubs.encoders = only
    load_one(stubs, backend="eager")
    assert stubs.made["pool"][0] == {"unet": "base unet", "text_encoder_2": only[0]}


def test_adapters_of_the_model_and_of_a_folder(stubs: Stubs, tmp_path: Path) -> None:
    load_one(stubs, backend="eager")
    path = stubs.folder / "loras/striped.safetensors"
    assert stubs.registered == {"striped": path}
    assert stubs.scanned == ["pinned"]
    load_one(stubs, backend="eager", lora_pinned="striped,other", lora_dir=tmp_path)
    assert stubs.made["pool"][1]["pinned"] == ("striped", "other")
    assert stubs.scanned == ["pinned", tmp_path, "pinned"], "loaded when all are known"


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("vae", [False, True])
def test_slicing(stubs: Stubs, attention: bool, vae: bool) -> None:
    load_one(stubs, backend="eager", attention_slicing=attention, vae_slicing=vae)
    assert stubs.sliced == [(attention, vae)]


def test_attention_as_it_was_the_fastest(stubs: Stubs, caplog: pytest.LogCaptureFixture) -> None:
    load_one(stubs, backend="eager")
    assert not stubs.attention
    eager = BackendInfo(backend="eager", device="any", versions={}, attention="flash")
    manifest(backends=(eager,)).save(stubs.folder)
    load_one(stubs, backend="eager")
    assert stubs.attention == [("base unet", "flash"), ("refiner unet", "flash")]
    stubs.attention_error = ConfigurationError("flash is not installed")
    load_one(stubs, backend="eager")
    assert "mine: PyTorch's own attention is used: flash is not installed" in caplog.text


# All models


class Start:
    """`load` with the loading of each model and its warm-up faked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.kept: list[Any] = []
        self.threads: list[int] = []
        self.budget: list[int] = []
        self.warm_up_error: Exception | None = None
        monkeypatch.setattr(loading, "find", lambda tag: (f"{tag} found", Path("/models", tag)))
        monkeypatch.setattr(loading, "load_folder", self.load_folder)
        monkeypatch.setattr(loading, "Runner", lambda served: SimpleNamespace(served=served))
        monkeypatch.setattr(loading, "PromptCache", self.cache)
        monkeypatch.setattr(loading, "warm_up", self.warm_up)
        monkeypatch.setattr(loading, "keep_profiles", lambda *given: self.kept.append(given))
        monkeypatch.setattr("torch.set_num_threads", self.threads.append)

    def cache(self, size: int) -> object:
        self.budget.append(size)
        return self.budget

    def load_folder(self, *given: Any) -> Any:
        self.asked.append(given)
        return loaded(given[0])

    def warm_up(self, engine: Any, models: Mapping[str, Any], placement: Any) -> dict[str, float]:
        if self.warm_up_error is not None:
            raise self.warm_up_error
        return {name: 1.5 + index for index, name in enumerate(models)}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    return Start(monkeypatch)


def test_every_model_of_the_settings_is_loaded_and_warmed_up(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(model="a:1", models="b:2,a:3", prompt_cache_mb=5, device="cpu")
    with caplog.at_level("INFO", "bentoml.sdxl_bento"):
        engine, models, keep = loading.load(settings, 0, wake)
    # Two are called a, so these go by their tags.
    assert list(models) == ["a:1", "b", "a:3"]
    assert [given[:3] for given in start.asked] == [
        ("a:1", ("a:1", "a:1 found"), Path("/models/a:1")),
        ("b", ("b:2", "b:2 found"), Path("/models/b:2")),
        ("a:3", ("a:3", "a:3 found"), Path("/models/a:3")),
    ]
    for given in start.asked:
        assert given[3:7] == (settings, CPU, start.budget, wake)  # one cache for all
        assert given[7] is start.asked[0][7]  # and one verification
    assert start.budget == [5 << 20]
    assert [model.warm_up_seconds for model in models.values()] == [1.5, 2.5, 3.5]
    assert "b warmed up in 2.5 s" in caplog.text
    assert not start.threads
    keep()
    assert start.kept == [(engine, models, CPU)]
    served: Any = engine.executor
    assert list(served.served) == list(models)


def test_without_warming_up_nothing_is_kept(start: Start) -> None:
    start.warm_up_error = AssertionError("not asked for")
    _, models, keep = loading.load(Settings(device="cpu", threads=2), 0, wake, warm=False)
    assert [model.warm_up_seconds for model in models.values()] == [0.98765]  # as it was loaded
    keep()
    assert not start.kept
    assert start.threads == [2]


def test_a_model_that_cannot_be_warmed_up_ends_the_start(start: Start) -> None:
    start.warm_up_error = OutOfMemory("too little memory")
    with pytest.raises(OutOfMemory):
        loading.load(Settings(device="cpu"), 0, wake)


def test_each_worker_has_its_own_gpu(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[Any, ...]] = []

    def choose(*given: Any) -> Placement:
        chosen.append(given)
        return CPU

    monkeypatch.setattr(loading, "Placement", SimpleNamespace(choose=choose))
    loading.load(Settings(device="cuda", dtype="bf16"), 3, wake, warm=False)
    assert chosen == [("cuda", "bf16", 3)]


def test_the_engine_has_the_limits_of_the_settings(start: Start) -> None:
    noted: list[Any] = []
    settings = Settings(
        max_batch_rows=3, max_batch_pixels=5000, max_running=7, ageing_s=11.0, max_queue=13,
        max_queue_megapixels=0.5,
    )  # fmt: skip
    engine = loading.engine_of({"tiny": loaded()}, settings, noted.append)
    limits, queue = engine.scheduler.limits, engine.admission.limits
    assert (limits.max_rows, limits.max_pixels) == (3, 5000)
    assert (limits.max_running, limits.ageing_s) == (7, 11.0)
    assert (queue.max_requests, queue.max_pixels) == (13, 500_000)
    assert engine._on_unit == noted.append


# Where models are


def test_a_model_is_found_by_its_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(tag: str) -> Any:
        if tag != "tiny:latest":
            raise NotFound(f"no {tag}")
        return SimpleNamespace(tag="tiny:v1", path=str(tmp_path))

    monkeypatch.setattr(importlib.import_module("bentoml.models"), "get", get)
    assert loading.find("tiny:latest") == ("tiny:v1", tmp_path)
    assert loading.folder_of("tiny:latest") == tmp_path
    with pytest.raises(ConfigurationError, match=r"other is not in the store \(.*no other\)"):
        loading.find("other")
