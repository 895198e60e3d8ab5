"""Checks of Python and of the packages that this project needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, metadata, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sdxl_bento import __version__
from sdxl_bento.cli.doctor.findings import Finding, good, note, problem, warning

PROJECT = "sdxl-bento"
ONNX_BUILDS = ("onnxruntime", "onnxruntime-gpu")
# The packages of this project's extras, and the use of each.
OPTIONAL = {
    "onnxruntime": "compiled models of target onnx",
    "openvino": "compiled models of target openvino",
    "s3fs": "s3:// as image store and as a source of exports",
    "gcsfs": "gs:// as image store and as a source of exports",
}


def python() -> Iterator[Finding]:
    """The version of the interpreter."""
    here = ".".join(map(str, sys.version_info[:3]))
    try:
        wanted = str(metadata(PROJECT).json.get("requires_python", ""))
    except PackageNotFoundError:
        wanted = ""
    if SpecifierSet(wanted).contains(here, prereleases=True):
        yield good("Python", here)
    else:
        yield problem(
            "Python", f"{here}, needed: {wanted}", "make the environment with another one"
        )


def packages() -> Iterator[Finding]:
    """The packages that the project requires, and their versions."""
    try:
        wanted = [Requirement(text) for text in requires(PROJECT) or ()]
        installed = version(PROJECT)
    except PackageNotFoundError:
        yield note(
            "packages", f"{PROJECT} {__version__} is not installed, so versions were not compared"
        )
        return
    wrong = 0
    needed = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in needed:
        there = _version(requirement.name)
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            wrong += 1
            state = f"{there}, needed: {requirement.specifier}" if there else "not installed"
            mend = f"pip install '{requirement.name}{requirement.specifier}'"
            yield problem("packages", f"{requirement.name}: {state}", mend)
    if installed != __version__:
        yield warning(
            "packages", f"{PROJECT} is installed as {installed}, the code is {__version__}",
            "pip install -e . (with the extras that you use)",
        )  # fmt: skip
    if not wrong:
        yield good("packages", f"all {len(needed)} in the versions that are needed")


def onnx_builds() -> Iterator[Finding]:
    """Whether both builds of ONNX Runtime are installed, which share one Python package."""
    both = [name for name in ONNX_BUILDS if _version(name) is not None]
    if len(both) > 1:
        yield warning(
            "onnxruntime",
            f"{' and '.join(both)} are both installed, and overwrite each other's files",
            f"pip uninstall {' '.join(both)}, then install one of them again",
        )


def optional() -> Iterator[Finding]:
    """The packages of extras: which are installed, and what the others would be for."""
    there, missing = [], []
    for module, use in OPTIONAL.items():
        if find_spec(module) is not None:
            there.append(f"{module} {_version(module) or ''}".strip())
        else:
            missing.append(f"{module} ({use})")
    if there:
        yield good("extras", ", ".join(there))
    if missing:
        yield note("extras", f"not installed: {', '.join(missing)}")


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None
