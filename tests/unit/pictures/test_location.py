"""The store that the settings name, and what is said of one that cannot be used."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from sdxl_bento.config import Settings
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.pictures import location
from sdxl_bento.pictures.location import check_store, open_store, without_password
from sdxl_bento.pictures.store import ImageStore


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Roots and bounds of the stores that are opened."""
    stores: list[tuple[str, dict[str, Any]]] = []

    def note(files: object, root: str, **bounds: Any) -> object:
        stores.append((root, bounds))
        return object()

    monkeypatch.setattr(location, "ImageStore", note)
    return stores


def test_the_bounds_are_those_of_the_settings(
    opened: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    settings = Settings(store=str(tmp_path), store_ttl_s=70, store_max_mb=3, workers=2)
    open_store(settings)
    bounds = {"ttl_s": 70, "max_bytes": 3 * 1024 * 1024, "writers": 2}
    assert opened == [(str(tmp_path), bounds)]
    open_store(settings.model_copy(update={"store": None}))
    assert opened[1][1] == bounds | {"temporary": True}


def test_a_store_is_swept_by_its_share_of_what_may_be_written() -> None:
    store = ImageStore(None, "r/", ttl_s=80, max_bytes=16_000, writers=2)  # type: ignore[arg-type]
    assert store._sweeper._after_bytes == 1000
    assert store._sweeper._after_s == 10


def test_the_temporary_folder_is_this_users_and_its_servers(
    opened: list[tuple[str, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for _ in range(2):
        open_store(Settings())
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"sdxl-bento-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {root for root, _ in opened} == {f"{folder}/{os.getppid()}"}
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    other = tmp_path / f"sdxl-bento-{folder.stat().st_uid + 1}"
    other.mkdir()
    for call in (open_store, check_store):
        with pytest.raises(ConfigurationError, match=f"{other} belongs to another user"):
            call(Settings())


@pytest.mark.parametrize(
    ("url", "error", "remedy"),
    [
        ("/x", OSError("no"), "it has to be a folder that this user may write to"),
        ("memory://x", OSError("no"), "it has to be a folder that this user may write to"),
        ("s3://b/p", FileNotFoundError("no"), "is there a bucket b? Make it, or name another"),
        ("s3a://b", PermissionError("no"), "the keys must allow to list b, and to get, put and"),
        ("s3://b", OSError("no"), "keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"),
        ("gcs://b", OSError("no"), "keys come from GOOGLE_APPLICATION_CREDENTIALS, or a role"),
    ],
)
def test_each_failure_has_its_remedy(
    monkeypatch: pytest.MonkeyPatch, url: str, error: Exception, remedy: str
) -> None:
    class Failing:
        def check(self) -> None:
            raise error

    monkeypatch.setattr(location, "open_store", lambda _: Failing())
    with pytest.raises(ConfigurationError) as caught:
        check_store(Settings(store=url))
    said = str(caught.value)
    assert said.startswith(f"SDXL_STORE is {url}, which cannot be used (no): ")
    assert remedy in said
    assert caught.value.__cause__ is error


def test_a_long_message_is_cut_and_a_missing_one_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def check(self) -> None:
            raise self.error

    messages = {"y" * 500: "y" * 300, "a\n  b": "a b", "": "OSError"}
    for message, said in messages.items():
        monkeypatch.setattr(location, "open_store", lambda _, m=message: Failing(OSError(m)))
        with pytest.raises(ConfigurationError) as caught:
            check_store(Settings(store="/x"))
        assert f"({said})" in str(caught.value)


def test_a_store_that_cannot_even_be_named_is_told_as_it_is() -> None:
    with pytest.raises(ConfigurationError, match="Protocol not known: nope"):
        check_store(Settings(store="nope://x"))


def test_a_missing_package_of_another_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def fail(url: str, **options: Any) -> Any:
        raise ImportError("install paramiko")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    said = r"sftp:// needs a package.*pip install what fsspec needs for it \(install paramiko\)"
    with pytest.raises(ConfigurationError, match=said):
        open_store(Settings(store="sftp://me:secret@host/x"))
    with pytest.raises(ConfigurationError, match=r"pip install 'sdxl-bento\[gcs\]'"):
        open_store(Settings(store="gs://b"))


@pytest.mark.parametrize("url", ["s3://b", "s3a://b", "gs://b", "gcs://b", "memory://x"])
def test_listings_are_never_cached(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    import fsspec

    asked: list[dict[str, Any]] = []

    def note(url: str, **options: Any) -> Any:
        asked.append(options)
        return object(), "root"

    monkeypatch.setattr(fsspec.core, "url_to_fs", note)
    open_store(Settings(store=url))
    if url == "memory://x":  # it has no cache
        assert asked == [{}]
    else:
        assert asked[0]["skip_instance_cache"] is True
        assert asked[0]["use_listings_cache"] is False
        assert asked[0].get("max_concurrency", 1) == 1
    assert logging.getLogger("gcsfs").level == logging.CRITICAL


@pytest.mark.parametrize(
    ("url", "printed"),
    [("ftp://me:secret@host/x", "ftp://…@host/x"), ("s3://b/a@b", "s3://b/a@b"), ("/x", "/x")],
)
def test_passwords_are_not_printed(url: str, printed: str) -> None:
    assert without_password(url) == printed
