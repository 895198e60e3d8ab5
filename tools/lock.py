"""Write the pinned requirements: `constraints.txt`, `requirements-cpu.txt`, `requirements-gpu.txt`.

`constraints.txt` pins everything a developer has, the other two what a built bento installs on a
machine without and with a GPU. The first two are exact and come from the environment this runs in,
in which the tests have passed, so that an image holds what was tested. For a GPU the same versions
are kept, and uv asks the package index for what this environment lacks: the CUDA libraries that
torch's wheels need, and `onnxruntime-gpu` in the place of `onnxruntime`.

    python -m tools.lock
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import NamedTemporaryFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
GPU_PLATFORM = "x86_64-manylinux_2_28"  # what torch's wheels ask for
CUDA_LIBRARY = "nvidia-cublas"  # needed by torch's CUDA wheels alone


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """Installed versions of `requirements` and of all that they need, by canonical name."""
    found: dict[str, str] = {}
    pending = [(Requirement(text), "") for text in requirements]
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue  # needed on another platform only
        # A local suffix (+cpu, +cu130) says which build is installed here, not what is needed.
        found[name] = Version(installed.version).public
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                pending += [(Requirement(text), wanted) for text in installed.requires or ()]
    return found


def resolve(requirements: Iterable[str], constraints: str) -> dict[str, str]:
    """What uv would install for `requirements` on `GPU_PLATFORM`, within `constraints`.

    Needs the package index. Raises SystemExit if uv fails, or if its settings (a find-links
    folder, UV_TORCH_BACKEND) have led it to a build of torch without CUDA.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-header"]
    command += ["--no-annotate", "--python-platform", GPU_PLATFORM]
    command += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
    with NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(constraints)
        file.flush()
        command += ["--constraint", file.name]
        wanted = "\n".join(requirements)
        done = subprocess.run(command, input=wanted, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"uv could not resolve the GPU set:\n{done.stderr}")
    found = [Requirement(line) for line in done.stdout.splitlines()]
    versions = {r.name: str(r.specifier).removeprefix("==") for r in found}
    if CUDA_LIBRARY not in versions:
        raise SystemExit(f"the GPU set has no {CUDA_LIBRARY}: uv took a torch without CUDA")
    return versions


def pins(title: str, versions: dict[str, str]) -> str:
    """The text of a pip requirements file, sorted by name."""
    header = f"# {title} Written by `python -m tools.lock`.\n"
    return header + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def main() -> None:
    """Read `pyproject.toml`, write the three files beside it, or none of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base: list[str] = project["dependencies"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    here = [requirement for name in extras if name != "gpu" for requirement in extras[name]]
    tested = pins("The tested environment.", closure(base + here))
    # An image is not to be built again for pictures to go to a bucket.
    bento = base + extras["s3"]
    cpu = pins("What a built bento installs without a GPU.", closure(bento + extras["cpu"]))
    gpu = pins("What a built bento installs for a GPU.", resolve(bento + extras["gpu"], tested))
    for name, text in (
        ("constraints", tested),
        ("requirements-cpu", cpu),
        ("requirements-gpu", gpu),
    ):
        (ROOT / f"{name}.txt").write_text(text)
        print(f"{name}.txt: {text.count('==')} packages")


if __name__ == "__main__":
    main()
