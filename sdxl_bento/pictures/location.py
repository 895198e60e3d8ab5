"""Opens the image store that the settings name, and explains what is wrong if that fails."""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdxl_bento import scratch
from sdxl_bento.errors import ConfigurationError
from sdxl_bento.pictures.reasons import reason
from sdxl_bento.pictures.store import ImageStore
from sdxl_bento.pictures.threads import DaemonPool

if TYPE_CHECKING:
    from sdxl_bento.config import Settings

_CHECK_S = 60.0

# Nothing is cached, because other processes write to the store, too.
_OPTIONS: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
_FOR_SCHEME: dict[str, dict[str, Any]] = {
    "s3": {**_OPTIONS, "max_concurrency": 1},  # with more, it asks for the size before each read
    "gs": _OPTIONS,
}
_EXTRAS = {"s3": "s3", "gs": "gcs"}
_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile or role; AWS_ENDPOINT_URL for "
    "a store that is not Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or a role",
}


def open_store(settings: Settings) -> ImageStore:
    """The store that the settings name, or else a temporary folder.

    This sends no request to an object store.

    Raises:
        ConfigurationError: there is no file system of that kind, or a package is missing.
    """
    bounds: dict[str, Any] = {
        "ttl_s": settings.store_ttl_s,
        "max_bytes": settings.store_max_mb << 20,
        "writers": settings.workers,
    }
    if settings.store is None:
        files, root = _file_system(str(_temporary_folder(server=os.getppid())))
        return ImageStore(files, root, temporary=True, **bounds)
    files, root = _file_system(settings.store)
    return ImageStore(files, root, **bounds)


def check_store(settings: Settings) -> None:
    """Try to use the store, in the process from which a server's workers are started.

    Raises ConfigurationError, which says what to do, if that fails or takes too long.
    """
    if settings.store is None:
        folder = _temporary_folder(server=os.getpid())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return
    pool = DaemonPool(1, "sdxl-store-check")
    try:
        pool.submit(open_store(settings).check).result(_CHECK_S)
    except ConfigurationError:
        raise
    except FutureTimeout:
        late = TimeoutError(f"no answer within {_CHECK_S:g} s")
        raise ConfigurationError(_what_to_do(settings.store, late)) from late
    except Exception as error:  # client libraries share no class of errors
        raise ConfigurationError(_what_to_do(settings.store, error)) from error
    finally:
        pool.close(within_s=0)


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = _scheme(url)
    # Without credentials, gcsfs warns at every call that it cannot tell the kind of the bucket.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        files, root = fsspec.core.url_to_fs(url, **_FOR_SCHEME.get(scheme, {}))
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        package = f"'sdxl-bento[{extra}]'" if extra else f"what fsspec needs for it ({error})"
        raise ConfigurationError(
            f"SDXL_STORE is {without_password(url)}: {scheme}:// needs a package that is not "
            f"installed; pip install {package}"
        ) from None
    except ValueError as error:
        raise ConfigurationError(
            f"SDXL_STORE is {without_password(url)}: {error}; allowed: a folder, "
            "s3://bucket/prefix, gs://bucket/prefix, or another URL that fsspec knows"
        ) from None
    return files, str(root)


def _temporary_folder(server: int) -> Path:
    """The folder that all worker processes of a server share, named after their parent process.

    This process holds it until it ends.
    """
    folder = scratch.of_user() / str(server)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    if folder.parent.is_symlink() or folder.parent.stat().st_uid != os.getuid():
        raise ConfigurationError(f"{folder.parent} belongs to another user; set SDXL_STORE")
    scratch.hold(folder)
    return folder


def _what_to_do(url: str, error: Exception) -> str:
    scheme = _scheme(url)
    bucket = url.partition("://")[2].partition("/")[0]
    message = reason(error)
    if scheme not in _KEYS:
        remedy = "it has to be a folder that this user may write to"
    elif isinstance(error, FileNotFoundError):
        remedy = f"is there a bucket {bucket}? Make it, or name another"
    elif isinstance(error, PermissionError):
        remedy = f"the keys must allow to list {bucket}, and to get, put and delete objects in it"
    else:
        remedy = f"it has to be reachable; keys come from {_KEYS[scheme]}"
    return f"SDXL_STORE is {without_password(url)}, which cannot be used ({message}): {remedy}"


def _scheme(url: str) -> str:
    scheme = url.partition("://")[0] if "://" in url else "file"
    return {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme)


def without_password(url: str) -> str:
    """The URL without user name and password, so that it may be printed."""
    return re.sub(r"//[^/@]*@", "//…@", url)
