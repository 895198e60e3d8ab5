"""Write `constraints.txt` and `requirements.txt` from the environment this runs in.

`constraints.txt` pins everything a developer has, `requirements.txt` what the service needs to
run (it goes into a built bento). Both are exact and both come from one environment, in which the
tests have passed, so that an image holds what was tested.

    python -m tools.lock
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


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


def pins(header: str, versions: dict[str, str]) -> str:
    """The text of a pip requirements file, sorted by name."""
    return header + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def main() -> None:
    """Read `pyproject.toml`, write the two files beside it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime = closure(project["dependencies"])
    everything = closure(
        [*project["dependencies"], *project["optional-dependencies"]["dev"]],
    )
    (ROOT / "requirements.txt").write_text(
        pins("# What a built bento installs. Written by `python -m tools.lock`.\n", runtime)
    )
    (ROOT / "constraints.txt").write_text(
        pins("# The tested environment. Written by `python -m tools.lock`.\n", everything)
    )
    print(f"{len(runtime)} packages to run, {len(everything)} to develop")


if __name__ == "__main__":
    main()
