"""The image store in memory, in a folder, and in a bucket of a real S3 server."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sdxl_bento.config import Settings
from sdxl_bento.errors import ConfigurationError, ImageNotFound, StoreUnavailable
from sdxl_bento.pictures.location import check_store, open_store
from sdxl_bento.pictures.store import ImageStore
from tests.support.s3 import Bucket, s3_server

KEY = "0123456789abcdef" * 4
OTHER = "f" * 64


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in aws(url).items():
            patch.setenv(name, value)
        Bucket.empty(url, "pictures")
        yield url


def aws(url: str) -> dict[str, str]:
    """What a user sets for a store that is not Amazon's."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "verysecret"}
    return keys | {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}


Opener = Callable[[], ImageStore]


KINDS = ["memory", "folder", "s3"]
quick = pytest.mark.parametrize("opened", KINDS[:2], indirect=True)  # no matter where


@pytest.fixture(params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Opener:
    """Opens the same store again and again, as several processes do."""
    name = secrets.token_hex(4)
    url = {"memory": f"memory://{name}", "folder": str(tmp_path / "a[b]*c")}.get(request.param)
    if url is None:
        request.getfixturevalue("s3")
        url = f"s3://pictures/{name}"

    def open_one() -> ImageStore:
        settings = Settings(store=url, store_ttl_s=60)
        store = open_store(settings)
        return ImageStore(
            store._files, store._root, ttl_s=60, max_bytes=8000, clock=clock
        )  # in bytes, not MiB

    return open_one


@pytest.fixture
def store(opened: Opener) -> ImageStore:
    return opened()


def put(store: ImageStore, data: bytes = b"data", key: str | None = None) -> str:
    return store.put(data, "png", {"params": {"seed": 3}}, key)


def has(store: ImageStore, image_id: str) -> bool:
    try:
        store.get(image_id)
    except ImageNotFound:
        return False
    return True


def test_a_stored_picture_comes_back(store: ImageStore, clock: Clock) -> None:
    image_id = store.put(b"data", "webp", {"params": {"seed": 3}})
    found = store.get(image_id)
    assert (found.image_id, found.data, found.media_type) == (image_id, b"data", "image/webp")
    assert found.metadata == {"params": {"seed": 3}}
    described = {"image_id": image_id, "format": "webp", "bytes": 4, "created": clock.now}
    assert store.describe(image_id) == described | {"params": {"seed": 3}}


def test_ids_cannot_be_guessed(tmp_path: Path, clock: Clock) -> None:
    store = ImageStore(*fsspec.core.url_to_fs(str(tmp_path)), ttl_s=60, max_bytes=8000, clock=clock)
    ids = {put(store) for _ in range(50)}
    assert {len(image_id) for image_id in ids} == {28}
    assert len({image_id[11:] for image_id in ids}) == 50  # all but time and lifetime


@quick
@pytest.mark.parametrize("bad", ["", "x", "../../etc/passwd", "a" * 22, "a" * 21 + "/", "ä" * 22])
def test_unknown_ids(store: ImageStore, bad: str) -> None:
    with pytest.raises(ImageNotFound):
        store.get(bad)
    with pytest.raises(ImageNotFound):
        store.describe(bad)


def test_every_process_sees_what_another_has_stored(opened: Opener) -> None:
    one, other = opened(), opened()
    assert one.get_result(KEY, "png") is None
    for data in (b"first", b"second"):  # the second would not be in a listing that was kept
        image_id = put(other, data, KEY)
        assert one.get(image_id).data == data
        assert one.get_result(KEY, "png") is not None


@quick
def test_the_newest_result_counts(store: ImageStore, clock: Clock) -> None:
    for data in (b"old", b"new"):
        clock.now += 1
        put(store, data, KEY)
    found = store.get_result(KEY, "png")
    assert found is not None
    assert (found.data, found.metadata) == (b"new", {"params": {"seed": 3}})
    assert store.get_result(KEY, "webp") is None
    assert store.get_result(OTHER, "png") is None
    store._write(f"results/{OTHER}/{'a' * 28}", b"")  # its picture is gone
    assert store.get_result(OTHER, "png") is None


def test_a_picture_expires(store: ImageStore, clock: Clock) -> None:
    image_id = put(store, key=KEY)
    clock.now += 60
    store.get(image_id)
    clock.now += 1
    with pytest.raises(ImageNotFound, match="60 seconds"):
        store.get(image_id)
    assert store.get_result(KEY, "png") is None
    newer = put(store)
    store.sweep()
    assert names(store) == {f"{newer}.png", f"{newer}.json"}


def names(store: ImageStore) -> set[str]:
    """All files below the root."""
    return {path.removeprefix(store._root + "/") for path in store._files.find(store._root)}


def test_the_oldest_go_when_it_is_full(store: ImageStore, clock: Clock) -> None:
    ids = []
    for _ in range(10):
        clock.now += 1
        ids.append(put(store, b"x" * 800, secrets.token_hex(32)))
    store.sweep()
    kept = [image_id for image_id in ids if has(store, image_id)]
    assert kept == ids[-6:]  # 8000 bytes less an eighth; a note has some 300
    assert len(names(store)) == 6 * 3  # and no result without its picture


def test_other_files_are_left_alone(store: ImageStore, clock: Clock) -> None:
    for name in ("notes.txt", "my-picture.png", "results/readme", f"results/{KEY}/mine"):
        store._write(name, b"x" * 9000)
    image_id = put(store)
    clock.now += 100
    store.sweep()
    assert len(names(store)) == 4
    assert not has(store, image_id)


@quick
def test_what_an_interrupted_put_left_goes_in_its_time(store: ImageStore, clock: Clock) -> None:
    whole = put(store)
    store._files.rm_file(f"{store._root}/{whole}.json")
    half = put(store)
    store._write(f"{half}.json", b'{"format": ')
    assert not has(store, whole)
    store.sweep()
    assert len(names(store)) == 3
    clock.now += 61
    store.sweep()
    assert not names(store)


def test_what_is_being_read_stays(opened: Opener, clock: Clock) -> None:
    """A reader has the note when another process sweeps, and still gets the picture."""
    reader, sweeper = opened(), opened()
    image_id = put(reader, b"precious")
    read, sweeping = reader._read, threading.Thread(target=sweeper.sweep, args=(30,))

    def sweep_meanwhile(name: str, kind: str, most: int) -> bytes:
        data = read(name, kind, most)
        if kind == "json":
            clock.now += 60
            put(sweeper, b"x" * 9000)
            sweeping.start()
            while f"{image_id}.json" in names(sweeper):
                assert sweeping.is_alive()
        return data

    reader._read = sweep_meanwhile  # type: ignore[method-assign]
    assert reader.get(image_id).data == b"precious"
    assert not has(reader, image_id)
    sweeper.close()
    sweeping.join()
    opened().sweep()
    assert image_id not in str(names(reader))


@quick
def test_several_processes_keep_to_one_bound(opened: Opener, clock: Clock) -> None:
    """They write and sweep at once; nothing fails, and what is left is whole."""
    stores = [opened() for _ in range(3)]

    def work(store: ImageStore) -> None:
        for _ in range(4):
            clock.now += 1
            put(store, b"x" * 900, secrets.token_hex(32))
            store.sweep()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, stores))
    stores[0].sweep()
    left = names(stores[0])
    pictures = {name.removesuffix(".png") for name in left if name.endswith(".png")}
    assert 1 <= len(pictures) <= 7
    assert all(has(stores[1], image_id) for image_id in pictures)
    assert len(left) == 3 * len(pictures)


def test_folders_of_results_go_with_their_last_result(tmp_path: Path, clock: Clock) -> None:
    store = ImageStore(*fsspec.core.url_to_fs(str(tmp_path)), ttl_s=60, max_bytes=8000, clock=clock)
    for key in (KEY, OTHER):
        put(store, key=key)
    clock.now += 61
    put(store, key=OTHER)
    store.sweep()
    assert [path.name for path in (tmp_path / "results").iterdir()] == [OTHER]


@quick
def test_what_another_process_has_removed_first_stops_no_sweep(
    store: ImageStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        put(store, key=secrets.token_hex(32))
    clock.now += 100

    def fail(paths: list[str]) -> None:
        store._files.rm_file(paths[0])
        raise FileNotFoundError(paths[1])

    monkeypatch.setattr(store._files, "rm", fail)
    store.sweep()
    assert not names(store)


def test_sweeping_goes_on_by_itself(tmp_path: Path) -> None:
    swept = threading.Event()

    class Noted(ImageStore):
        def sweep(self, grace_s: float = 0.0) -> None:
            super().sweep(grace_s)
            swept.set()

    store = Noted(*fsspec.core.url_to_fs(str(tmp_path)), ttl_s=60, max_bytes=8000)
    store.start_sweeping()
    assert swept.wait(10)  # at the start, for what an earlier process left
    swept.clear()
    put(store, b"x" * 1000)  # an eighth
    assert swept.wait(10)
    store.close()
    assert not store._sweeper.is_alive()


@quick
def test_metadata_is_written_after_the_picture(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds the metadata, in any process, can rely on the picture."""
    written: list[str] = []
    write = store._files.pipe_file

    def noted(path: str, data: bytes) -> None:
        write(path, data)
        if path not in written:
            written.append(path)

    monkeypatch.setattr(store._files, "pipe_file", noted)
    image_id = put(store)
    root = f"{store._root}/{image_id}"
    assert written == [f"{root}.png", f"{root}.json"]


@quick
@pytest.mark.parametrize(("broken", "left"), [("png", 0), ("json", 1)])
def test_a_put_that_fails_half_way_leaves_nothing_to_find(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, broken: str, left: int
) -> None:
    put(store)  # so that there is a folder
    before = names(store)
    write = store._files.pipe_file

    def fail(path: str, data: bytes) -> None:
        write(path, data[:2])
        if path.endswith(broken):
            raise OSError("the disk is full")

    monkeypatch.setattr(store._files, "pipe_file", fail)
    with pytest.raises(StoreUnavailable):
        put(store)
    rest = names(store) - before
    assert not [name for name in rest if name.endswith(".json")]
    if store._has_folders:  # elsewhere a file is written whole or not at all
        assert len(rest) == left


@quick
def test_a_store_that_fails_says_so_to_its_user_only(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = put(store)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on secret-host")

    for name in ("pipe_file", "cat_file", "find", "ls"):
        monkeypatch.setattr(store._files, name, fail)
    calls: list[Callable[[], object]] = [
        lambda: put(store),
        lambda: store.get(image_id),
        lambda: store.get_result(KEY, "png"),
        store.sweep,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert "secret" not in str(caught.value)
        assert "No space" in str(caught.value.__cause__)


# Where it is


def test_a_store_of_its_own_is_removed_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for unset in (None, ""):
        store = open_store(Settings(store=unset))
        put(store)
        assert list(tmp_path.rglob("*.png"))
        store.close()
        assert not list(tmp_path.rglob("*.png"))


def test_a_named_store_stays(tmp_path: Path) -> None:
    store = open_store(Settings(store=str(tmp_path / "pictures")))
    image_id = put(store)
    store.close()
    assert (tmp_path / "pictures" / f"{image_id}.png").read_bytes() == b"data"


def test_a_good_store_is_left_as_it_was(s3: str, tmp_path: Path) -> None:
    bucket = Bucket.empty(s3, "tidy")
    for url in (str(tmp_path / "new"), "s3://tidy", "s3://tidy/a/b"):
        check_store(Settings(store=url))
    assert not list((tmp_path / "new").iterdir())
    assert "Contents" not in bucket.client.list_objects_v2(Bucket="tidy")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://nowhere/x", r"bucket does not exist.*is there a bucket nowhere\? Make it"),
        ("nope://x", "Protocol not known: nope; allowed: a folder, s3://bucket/prefix"),
        ("/proc/pictures", "folder that this user may write to"),
        ("ftp://me:verysecret@127.0.0.1:9/x", r"ftp://…@127.0.0.1:9/x.*refused"),
    ],
)
def test_a_wrong_store_is_told_with_its_remedy(s3: str, url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        check_store(Settings(store=url))
    assert "verysecret" not in str(caught.value)
    assert "SDXL_STORE is " in str(caught.value)


@pytest.mark.parametrize("verb", ["put_object", "list_objects_v2", "delete_object"])
def test_keys_without_a_right_are_told(s3: str, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """moto checks no rights, so the refusal is put into the client's answer."""
    import s3fs

    call = s3fs.S3FileSystem._call_s3

    async def refused(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == verb:
            raise PermissionError("Access Denied")
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refused)
    with pytest.raises(ConfigurationError, match="list pictures, and to get, put and delete"):
        check_store(Settings(store="s3://pictures/x"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'sdxl-bento\[s3\]'"):
        check_store(Settings(store="s3://pictures"))


def test_a_temporary_folder_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"sdxl-bento-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="set SDXL_STORE"):
        check_store(Settings())
