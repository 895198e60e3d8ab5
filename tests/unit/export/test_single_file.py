"""Checkpoints in one file: what they are recognised as, and that they are unpacked to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors.torch import load_file, save_file

from export.embedded import WEIGHTS
from export.errors import NotSDXLError, SourceError
from export.model.inspection import Folder, read_pipeline
from export.model.layout import COMPONENTS
from export.source import resolution, single_file, unpack, vocabulary
from export.source.downloads import Workspace
from export.source.resolution import SourceRequest
from export.source.single_file import Checkpoint
from tests.support import checkpoints

UNET = "model.diffusion_model."
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def packed() -> dict[str, Any]:
    """The embedded base model's tensors; to be copied before they are changed."""
    return checkpoints.base()


@pytest.fixture
def checkpoint(tmp_path: Path, packed: dict[str, Any]) -> Path:
    return checkpoints.write(tmp_path / "Mine_v1.safetensors", packed)


def plain(path: Path) -> dict[str, Any]:
    """Tensors by the names that both of transformers' layouts share."""
    return {key.removeprefix("text_model."): value for key, value in load_file(path).items()}


def same_weights(folder: Path, original: Path) -> None:
    paths = [path for name in PARTS for path in (original / name).glob("*.safetensors")]
    assert len(paths) >= 3
    for path in paths:
        ours, theirs = plain(folder / path.relative_to(original)), plain(path)
        assert ours.keys() == theirs.keys(), path
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), path
        assert all(ours[key].dtype == theirs[key].dtype for key in theirs), path


def test_base(workspace: Workspace, checkpoint: Path) -> None:
    source = resolution.resolve(str(checkpoint), workspace)
    assert (source.kind, source.location, source.name) == (
        "file", "Mine_v1.safetensors", "Mine_v1",
    )  # fmt: skip
    read_pipeline(source.folder, "base", None)
    same_weights(source.folder.root, WEIGHTS / "base")


def test_refiner(workspace: Workspace, tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "refiner.safetensors", checkpoints.refiner())
    source = resolution.resolve(str(path), workspace, SourceRequest("refiner"))
    read_pipeline(source.folder, "refiner", None)
    same_weights(source.folder.root, WEIGHTS / "refiner")
    with pytest.raises(NotSDXLError, match="give it with --refiner"):
        resolution.resolve(str(path), workspace)


def test_base_given_as_the_refiner(workspace: Workspace, checkpoint: Path) -> None:
    with pytest.raises(NotSDXLError, match="a base model"):
        resolution.resolve(str(checkpoint), workspace, SourceRequest("refiner"))


@pytest.mark.parametrize(
    ("at", "wrapped"), [("", "_orig_mod."), ("", "module."), (UNET, f"{UNET}_orig_mod.")]
)
def test_what_compilers_put_into_names(
    workspace: Workspace, tmp_path: Path, packed: dict[str, Any], at: str, wrapped: str
) -> None:
    renamed = {name.replace(at, wrapped, 1) if name.startswith(at) else name: value
               for name, value in packed.items()}  # fmt: skip
    path = checkpoints.write(tmp_path / "x.safetensors", renamed)
    source = resolution.resolve(str(path), workspace)
    same_weights(source.folder.root, WEIGHTS / "base")


def test_a_folder_that_holds_nothing_else(workspace: Workspace, checkpoint: Path) -> None:
    """As KServe's storage initializer leaves it at /mnt/models."""
    source = resolution.resolve(str(checkpoint.parent), workspace)
    same_weights(source.folder.root, WEIGHTS / "base")


def test_what_training_leaves_behind_is_left_out(
    workspace: Workspace, tmp_path: Path, packed: dict[str, Any]
) -> None:
    extra = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77),
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
        "model_ema.decay": torch.tensor(0.9),
        "denoiser.sigmas": torch.ones(1000),
    }
    path = checkpoints.write(tmp_path / "x.safetensors", packed | extra)
    same_weights(resolution.resolve(str(path), workspace).folder.root, WEIGHTS / "base")


class TestConfig:
    """`--config` names the folder that configs and vocabulary are taken from."""

    def test_taken(self, workspace: Workspace, checkpoint: Path, base: Any) -> None:
        base.set("scheduler/scheduler_config.json", timestep_spacing="trailing")
        wanted = SourceRequest(config=str(base.path))
        source = resolution.resolve(str(checkpoint), workspace, wanted)
        assert read_pipeline(source.folder, "base", None).variant == "lightning"

    def test_that_does_not_fit(self, workspace: Workspace, checkpoint: Path, base: Any) -> None:
        base.set("unet/config.json", block_out_channels=[32, 64, 96])
        with pytest.raises(NotSDXLError, match=r"width 48(?s:.)*needed: .*width 32"):
            resolution.resolve(str(checkpoint), workspace, SourceRequest(config=str(base.path)))

    def test_that_only_seems_to_fit(
        self, workspace: Workspace, checkpoint: Path, base: Any
    ) -> None:
        base.set("text_encoder_2/config.json", num_hidden_layers=4)
        with pytest.raises(NotSDXLError, match=r"a text_encoder_2 that lacks encoder\.layers\.3"):
            resolution.resolve(str(checkpoint), workspace, SourceRequest(config=str(base.path)))

    def test_links_out_of_it_are_refused(
        self, workspace: Workspace, checkpoint: Path, base: Any, tmp_path: Path
    ) -> None:
        (base.path / "vae" / "config.json").rename(tmp_path / "elsewhere.json")
        (base.path / "vae" / "config.json").symlink_to(tmp_path / "elsewhere.json")
        with pytest.raises(SourceError, match="a link to"):
            resolution.resolve(str(checkpoint), workspace, SourceRequest(config=str(base.path)))


class TestScheduler:
    """What the checkpoint, or the user, says of its noise schedule."""

    def config(self, workspace: Workspace, path: Path, wanted: SourceRequest | None = None) -> Any:
        folder = resolution.resolve(str(path), workspace, wanted).folder
        read_pipeline(folder, "base", None)
        return folder.json("scheduler", "scheduler_config.json")

    def test_plain(self, workspace: Workspace, checkpoint: Path) -> None:
        config = self.config(workspace, checkpoint)
        assert (config["prediction_type"], config["timestep_spacing"]) == ("epsilon", "leading")

    def test_velocity_by_tensors(
        self, workspace: Workspace, tmp_path: Path, packed: dict[str, Any]
    ) -> None:
        marks = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
        path = checkpoints.write(tmp_path / "x.safetensors", packed | marks)
        config = self.config(workspace, path)
        assert config["prediction_type"] == "v_prediction"
        assert config["rescale_betas_zero_snr"] is True

    def test_velocity_by_metadata(
        self, workspace: Workspace, tmp_path: Path, packed: dict[str, Any]
    ) -> None:
        metadata = {"modelspec.prediction_type": "v"}
        path = checkpoints.write(tmp_path / "x.safetensors", packed, **metadata)
        assert self.config(workspace, path)["prediction_type"] == "v_prediction"

    def test_the_users_word_counts_for_most(
        self, workspace: Workspace, tmp_path: Path, packed: dict[str, Any]
    ) -> None:
        metadata = {"modelspec.prediction_type": "flow"}
        path = checkpoints.write(tmp_path / "x.safetensors", packed, **metadata)
        with pytest.raises(SourceError, match="flow"):
            self.config(workspace, path)
        wanted = SourceRequest(prediction="v_prediction")
        assert self.config(workspace, path, wanted)["prediction_type"] == "v_prediction"

    @pytest.mark.parametrize("variant", ["turbo", "lightning", "lcm"])
    def test_variant(self, workspace: Workspace, checkpoint: Path, variant: Any) -> None:
        source = resolution.resolve(str(checkpoint), workspace, SourceRequest(variant=variant))
        assert read_pipeline(source.folder, "base", None).variant == variant


class TestRefused:
    """Each refusal names the file and says what was found."""

    def refused(self, tmp_path: Path, weights: dict[str, Any]) -> str:
        path = checkpoints.write(tmp_path / "x.safetensors", weights)
        with pytest.raises(NotSDXLError) as error:
            read = Checkpoint.read(path)
            single_file.check_role(read, "base")
            template = single_file.find_template(read, "base", None)
            unpack.unpack(read, "base", template, tmp_path / "out")
        assert str(path) in str(error.value)
        return error.value.found

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("cond_stage_model.transformer.text_model.x", "Stable Diffusion 1"),
            ("cond_stage_model.model.x", "Stable Diffusion 2"),
            ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
            ("double_blocks.0.x", "Flux"),
            ("edm_mean", "Playground"),
            ("edm_vpred.sigma_max", "CosXL"),
            ("lora_unet_x.lora_down.weight", "a LoRA"),
            ("unet.x.lora_A.weight", "a LoRA"),
            ("diffusion_model.x.lora_down.weight", "a LoRA"),
            ("lycoris_x.lokr_w1", "a LoRA"),
            ("diffusion_model.input_blocks.0.0.weight", "a UNet alone"),
            ("text_model.embeddings.x", "a text encoder alone"),
            ("down_blocks.0.x", "a UNet alone"),
            ("decoder.conv_in.weight", "a VAE alone"),
            ("model.diffusion_model.x", "without VAE and text encoders"),
        ],
    )
    def test_other_models(self, tmp_path: Path, name: str, words: str) -> None:
        assert words in self.refused(tmp_path, {name: torch.ones(4)})

    def test_inpainting(self, tmp_path: Path, packed: dict[str, Any]) -> None:
        wide = torch.ones(48, 9, 3, 3)
        found = self.refused(tmp_path, packed | {f"{UNET}input_blocks.0.0.weight": wide})
        assert "9 input channels" in found

    def test_a_smaller_relative(self, tmp_path: Path, packed: dict[str, Any]) -> None:
        """As SSD-1B and Vega are: SDXL with transformer blocks taken out."""
        less = {name: value for name, value in packed.items() if "middle_block.1." not in name}
        assert "transformer blocks" in self.refused(tmp_path, less)

    def test_a_missing_weight(self, tmp_path: Path, packed: dict[str, Any]) -> None:
        less = {name: value for name, value in packed.items() if name != f"{UNET}out.2.bias"}
        assert "a unet that lacks conv_out.bias" in self.refused(tmp_path, less)

    def test_a_weight_in_another_shape(self, tmp_path: Path, packed: dict[str, Any]) -> None:
        name = "first_stage_model.decoder.conv_in.weight"
        found = self.refused(tmp_path, packed | {name: packed[name][:, :2]})
        assert "a vae that has in another shape: decoder.conv_in.weight" in found

    def test_cut_short(self, workspace: Workspace, checkpoint: Path) -> None:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
        with pytest.raises(SourceError, match="broken safetensors"):
            resolution.resolve(str(checkpoint), workspace)


class TestOfSDXL:
    """The configs of SDXL that come with this package, on empty models."""

    @pytest.mark.parametrize(
        ("role", "component", "millions"),
        [  # as the models are published
            ("base", "unet", 2567.46), ("refiner", "unet", 2259.53), ("base", "vae", 83.65),
            ("base", "text_encoder", 123.06), ("base", "text_encoder_2", 694.66),
        ],
    )  # fmt: skip
    def test_parameters(self, role: str, component: str, millions: float) -> None:
        config = json.loads((single_file.CONFIGS / role / component / "config.json").read_text())
        shapes = unpack._shapes(component, config)
        parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
        assert round(parameters / 1e6, 2) == millions

    @pytest.mark.parametrize("role", ["base", "refiner"])
    def test_every_tensor_has_its_place(self, tmp_path: Path, role: Any) -> None:
        """A checkpoint of the true size without content: names and shapes, there and back."""
        configs = {
            name: json.loads((single_file.CONFIGS / role / name / "config.json").read_text())
            for name in PARTS
            if (single_file.CONFIGS / role / name).is_dir()
        }
        packed = checkpoints.empty(role, configs)
        assert infer_diffusers_model_type(packed) == f"xl_{role}"  # what diffusers takes it for
        shapes = {name: tuple(tensor.shape) for name, tensor in packed.items()}
        checkpoint = Checkpoint(tmp_path / "x.safetensors", shapes, {})
        single_file.check_role(checkpoint, role)
        template = single_file.find_template(checkpoint, role, None)
        assert template.root == single_file.CONFIGS / role
        for name, config in configs.items():
            prefix = unpack._prefix(name, role)
            part = {key: value for key, value in packed.items() if key.startswith(prefix)}
            converted = unpack._convert(name, part, config, prefix)
            unpack._check(checkpoint, name, converted, config)

    @pytest.mark.parametrize("role", ["base", "refiner"])
    def test_they_make_a_pipeline(self, tmp_path: Path, role: Any) -> None:
        """Every check but those of the weights, which are one tensor each here."""
        for name in COMPONENTS[role]:
            (tmp_path / name).mkdir()
            for path in (single_file.CONFIGS / role / name).iterdir():
                (tmp_path / name / path.name).write_bytes(path.read_bytes())
            stem = unpack.KINDS[name].stem
            if stem:
                save_file({"x": torch.ones(1)}, tmp_path / name / f"{stem}.safetensors")
            if name.startswith("tokenizer"):
                for file in ("vocab.json", "merges.txt"):
                    (tmp_path / name / file).write_text("{}")
        index = (single_file.CONFIGS / role / "model_index.json").read_text()
        (tmp_path / "model_index.json").write_text(index)
        pipeline = read_pipeline(Folder(tmp_path), role, None)
        assert (pipeline.geometry.width, pipeline.geometry.vae_scale_factor) == (1024, 8)
        assert (pipeline.has_family_vae, pipeline.variant) == (True, "base")

    @pytest.mark.parametrize(("role", "blocks"), [("base", 70), ("refiner", 44)])
    def test_signature(self, role: str, blocks: int) -> None:
        signature = single_file._expected(Folder(single_file.CONFIGS / role))
        assert signature.attentions == blocks

    def test_no_vocabulary_to_be_had(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(*_: object) -> None:
            raise SourceError("hub", "the hub says: no network", "a network")

        monkeypatch.setattr("export.source.hub.fetch_vocabulary", unreachable)
        (tmp_path / "tokenizer").mkdir()
        with pytest.raises(SourceError, match=r"no network(?s:.)*--config with a folder"):
            vocabulary.complete(tmp_path, None)
