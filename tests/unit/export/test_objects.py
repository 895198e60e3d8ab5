"""Folders and files in an object store, from a real S3 server on loopback."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.registry import _registry as registry

from export.embedded import WEIGHTS
from export.errors import ExportError, SourceError, UnsafeSourceError
from export.model.inspection import read_pipeline
from export.source import objects, remote, resolution
from export.source.downloads import Workspace
from sdxl_bento.config import ExportSettings
from tests.support import checkpoints
from tests.support.gcs import GoogleStorage
from tests.support.s3 import Bucket, s3_server

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr(remote, "PAUSE_S", 0.001)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return Bucket.empty(server, "models")


@pytest.fixture
def settings(settings: ExportSettings, server: str) -> ExportSettings:
    return settings.model_copy(update={"aws_endpoint_url": server})


def resolve(workspace: Workspace, url: str) -> resolution.LocalSource:
    return resolution.resolve(url, workspace)


def cached(workspace: Workspace, name: str) -> list[Path]:
    return list(workspace.settings.cache.rglob(name))


class TestFolder:
    @pytest.fixture(autouse=True)
    def _model(self, bucket: Bucket) -> None:
        bucket.put_folder("sdxl/v1", WEIGHTS / "base")
        bucket.put("sdxl/v1/README.md", b"x")
        bucket.put("sdxl/v1/pipeline.py", b"raise SystemExit")
        bucket.put("sdxl/v1/unet/diffusion_pytorch_model.bin", b"x" * 100)
        bucket.put("sdxl/v1-other/model_index.json", b"{}")
        bucket.put("sdxl/v1/unet/", b"")  # as consoles mark a folder

    def test_taken(self, workspace: Workspace) -> None:
        source = resolve(workspace, "s3://models/sdxl/v1/")
        assert (source.kind, source.location, source.name) == (
            "object", "s3://models/sdxl/v1", "v1",
        )  # fmt: skip
        pipeline = read_pipeline(source.folder, "base", None)
        taken = pipeline.files()[UNET]
        assert taken.read_bytes() == (WEIGHTS / "base" / UNET).read_bytes()
        assert not cached(workspace, "*.bin")
        assert not cached(workspace, "*.py")

    def test_only_what_has_changed_is_fetched_again(
        self, workspace: Workspace, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolve(workspace, "s3://models/sdxl/v1")
        config = json.loads((WEIGHTS / "base/unet/config.json").read_text()) | {"_name": "new"}
        bucket.put("sdxl/v1/unet/config.json", json.dumps(config).encode())
        workspace.__exit__()
        read: list[str] = []
        original = objects.Objects.read

        def noted(self: Any, file: Any, offset: int) -> Any:
            read.append(file.name)
            return original(self, file, offset)

        monkeypatch.setattr(objects.Objects, "read", noted)
        later = workspace.scratch / "later"
        with Workspace(later, workspace.settings) as second:
            folder = resolve(second, "s3://models/sdxl/v1").folder
        assert read == ["unet/config.json"]
        assert folder.json("unet", "config.json")["_name"] == "new"

    def test_older_files_in_the_cache_are_not_taken(
        self, workspace: Workspace, bucket: Bucket
    ) -> None:
        half = UNET.replace(".safetensors", ".fp16.safetensors")
        bucket.put(f"sdxl/v1/{half}", (WEIGHTS / "base" / UNET).read_bytes())
        resolve(workspace, "s3://models/sdxl/v1")
        assert cached(workspace, Path(half).name)
        bucket.delete(f"sdxl/v1/{half}")
        workspace.__exit__()
        with Workspace(workspace.scratch / "later", workspace.settings) as second:
            folder = resolve(second, "s3://models/sdxl/v1").folder
        assert Path(half).name not in folder.names("unet")

    def test_pickles_only(self, workspace: Workspace, bucket: Bucket) -> None:
        bucket.delete(f"sdxl/v1/{UNET}")
        with pytest.raises(UnsafeSourceError, match=r"s3://models/sdxl/v1/unet(?s:.)*run code"):
            resolve(workspace, "s3://models/sdxl/v1")
        assert not cached(workspace, "*.safetensors")

    def test_a_key_that_leads_out(self, workspace: Workspace, bucket: Bucket) -> None:
        bucket.put("sdxl/v1/../../evil", b"x")
        with pytest.raises(UnsafeSourceError, match="leads out of the folder"):
            resolve(workspace, "s3://models/sdxl/v1")

    def test_a_shard_that_leads_out(self, workspace: Workspace, bucket: Bucket) -> None:
        bucket.delete(f"sdxl/v1/{UNET}")
        index = {"weight_map": {"x": "../../../etc/passwd"}}
        bucket.put(f"sdxl/v1/{UNET}.index.json", json.dumps(index).encode())
        source = resolve(workspace, "s3://models/sdxl/v1")
        with pytest.raises(UnsafeSourceError, match="shards beside their index"):
            read_pipeline(source.folder, "base", None)

    def test_replaced_while_another_file_is_read(
        self, workspace: Workspace, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check = remote._check

        def change_then_check(*given: Any) -> str:
            bucket.put("sdxl/v1/model_index.json", b"{}")
            return check(*given)

        monkeypatch.setattr(remote, "_check", change_then_check)
        with pytest.raises(SourceError, match=r"model_index\.json(?s:.)*another content"):
            resolve(workspace, "s3://models/sdxl/v1")


class TestFile:
    CONTENT = b""

    @pytest.fixture(autouse=True)
    def _model(self, bucket: Bucket, tmp_path: Path) -> None:
        path = checkpoints.write(tmp_path / "x.safetensors", checkpoints.base())
        type(self).CONTENT = path.read_bytes()
        bucket.put("tunes/mine.safetensors", self.CONTENT)

    def test_taken(self, workspace: Workspace) -> None:
        source = resolve(workspace, "s3://models/tunes/mine.safetensors")
        assert (source.kind, source.name) == ("object", "mine")
        assert source.location == "s3://models/tunes/mine.safetensors"
        read_pipeline(source.folder, "base", None)

    def test_base_and_refiner_from_one_folder(
        self, workspace: Workspace, bucket: Bucket, tmp_path: Path
    ) -> None:
        """Neither waits for the other's lock."""
        path = checkpoints.write(tmp_path / "refiner.safetensors", checkpoints.refiner())
        bucket.put("tunes/refiner.safetensors", path.read_bytes())
        base = resolve(workspace, "s3://models/tunes/mine.safetensors")
        wanted = resolution.SourceRequest("refiner")
        refiner = resolution.resolve("s3://models/tunes/refiner.safetensors", workspace, wanted)
        read_pipeline(base.folder, "base", None)
        read_pipeline(refiner.folder, "refiner", None)

    def test_alone_in_its_folder(self, workspace: Workspace) -> None:
        read_pipeline(resolve(workspace, "s3://models/tunes").folder, "base", None)

    def test_goes_on_where_it_broke(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(objects, "BLOCK", 200_000)
        original, offsets = objects.Objects.read, []

        def breaks(self: Any, file: Any, offset: int) -> Any:
            offsets.append(offset)
            for number, chunk in enumerate(original(self, file, offset)):
                if number == 2 and len(offsets) < 3:
                    raise remote.Interrupted("broken")
                yield chunk

        monkeypatch.setattr(objects.Objects, "read", breaks)
        resolve(workspace, "s3://models/tunes/mine.safetensors")
        assert offsets == [0, 400_000, 800_000]
        (path,) = cached(workspace, "mine.safetensors")
        assert path.read_bytes() == self.CONTENT

    def test_replaced_between_two_blocks(
        self, workspace: Workspace, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The store itself refuses the second block: each is asked for by its ETag."""
        monkeypatch.setattr(objects, "BLOCK", 500_000)
        original = objects.Objects.read

        def changes(self: Any, file: Any, offset: int) -> Any:
            for chunk in original(self, file, offset):
                yield chunk
                bucket.put("tunes/mine.safetensors", TestFile.CONTENT[:-4] + b"1234")

        monkeypatch.setattr(objects.Objects, "read", changes)
        with pytest.raises(SourceError, match="another content than when"):
            resolve(workspace, "s3://models/tunes/mine.safetensors")
        assert not cached(workspace, "mine.safetensors")

    def test_no_safetensors(self, workspace: Workspace, bucket: Bucket) -> None:
        bucket.put("tunes/page.safetensors", b"<html>not here</html>")
        with pytest.raises(SourceError, match=r"page\.safetensors(?s:.)*no safetensors file"):
            resolve(workspace, "s3://models/tunes/page.safetensors")
        bucket.put("tunes/mine.ckpt", b"x")
        with pytest.raises(UnsafeSourceError, match="pickled"):
            resolve(workspace, "s3://models/tunes/mine.ckpt")


class TestHash:
    """What S3 says of an object's content."""

    def stat(self, settings: ExportSettings, key: str) -> remote.RemoteFile:
        return objects.Objects("s3://models", settings).stat(key)

    def test_sha256(self, bucket: Bucket, settings: ExportSettings) -> None:
        bucket.put("x", b"abc", ChecksumAlgorithm="SHA256")
        found = self.stat(settings, "x").hash
        assert found == remote.Hash("sha256", hashlib.sha256(b"abc").hexdigest())

    def test_etag_of_one_part(self, bucket: Bucket, settings: ExportSettings) -> None:
        bucket.put("x", b"abc")
        assert self.stat(settings, "x").hash == remote.Hash("md5", hashlib.md5(b"abc").hexdigest())

    def test_etag_of_parts_is_none(self, bucket: Bucket, settings: ExportSettings) -> None:
        bucket.put_in_parts("x", [b"a" * (5 << 20), b"b"])
        file = self.stat(settings, "x")
        assert file.hash is None
        assert file.size == (5 << 20) + 1

    def test_encrypted_objects_have_another_etag(self) -> None:
        head = {"ETag": f'"{"0" * 32}"', "ContentLength": 1, "ServerSideEncryption": "aws:kms"}
        assert objects._s3_file("x", "s3://b/x", head).hash is None

    def test_wrong(
        self, bucket: Bucket, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bucket.put_folder("sdxl", WEIGHTS / "base")
        original = objects._s3_file

        def lies(name: str, where: str, head: dict[str, Any]) -> remote.RemoteFile:
            file = original(name, where, head)
            wrong = remote.Hash("md5", "0" * 32)
            return (
                file
                if "vae" not in name
                else remote.RemoteFile(name, where, file.size, file.version, wrong)
            )

        monkeypatch.setattr(objects, "_s3_file", lies)
        with pytest.raises(SourceError, match=r"s3://models/sdxl/vae/(?s:.)*instead of 0000"):
            resolve(workspace, "s3://models/sdxl")


class TestGoogle:
    """The same through gcsfs."""

    @pytest.fixture
    def storage(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleStorage]:
        pytest.importorskip("gcsfs", reason="gs:// needs gcsfs")
        with GoogleStorage().running() as running:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
            yield running

    def test_folder(self, storage: GoogleStorage, workspace: Workspace) -> None:
        for path in (WEIGHTS / "base").rglob("*.*"):
            name = path.relative_to(WEIGHTS / "base").as_posix()
            storage.objects[f"sdxl/{name}"] = path.read_bytes()
        source = resolve(workspace, "gs://models/sdxl")
        assert (source.kind, source.location) == ("object", "gs://models/sdxl")
        pipeline = read_pipeline(source.folder, "base", None)
        assert pipeline.files()[UNET].read_bytes() == (WEIGHTS / "base" / UNET).read_bytes()

    def test_md5(self, storage: GoogleStorage, settings: ExportSettings) -> None:
        storage.objects["x"] = b"abc"
        found = objects.Objects("gs://models", settings).stat("x")
        assert found.hash == remote.Hash("md5", hashlib.md5(b"abc").hexdigest())
        assert found.size == 3

    def test_replaced(self, storage: GoogleStorage, settings: ExportSettings) -> None:
        storage.objects["x"] = b"abc"
        store = objects.Objects("gs://models", settings)
        file = store.stat("x")
        storage.objects["x"] = b"abd"
        with pytest.raises(SourceError, match="another content than when"):
            list(store.read(file, 0))


class TestRefused:
    def test_nothing_there(self, workspace: Workspace, bucket: Bucket) -> None:
        with pytest.raises(SourceError, match="nothing there"):
            resolve(workspace, "s3://models/none")
        with pytest.raises(SourceError, match="s3://nobucket"):
            resolve(workspace, "s3://nobucket/none")

    def test_no_model(self, workspace: Workspace, bucket: Bucket) -> None:
        bucket.put("notes/readme.md", b"x")
        with pytest.raises(SourceError, match=r"no model_index\.json"):
            resolve(workspace, "s3://models/notes")

    @pytest.mark.parametrize(
        "url", ["s3://key:secret@models/x", "s3://models/x?secret=1", "s3://", "gs:///x"]
    )
    def test_keys_in_the_address(self, workspace: Workspace, url: str) -> None:
        with pytest.raises(SourceError, match="no bucket and path") as error:
            resolve(workspace, url)
        assert "secret" not in str(error.value)

    def test_no_server(self, workspace: Workspace, settings: ExportSettings) -> None:
        away = settings.model_copy(update={"aws_endpoint_url": "http://127.0.0.1:9"})
        with pytest.raises(SourceError, match="the store's answer"):
            objects.Objects("s3://models", away).stat("x")

    def test_a_package_that_is_missing(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        monkeypatch.delitem(registry, "gs", raising=False)
        with pytest.raises(ExportError, match=r"pip install 'sdxl-bento\[gcs\]'"):
            resolve(workspace, "gs://models/x")
