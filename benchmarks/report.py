"""What a benchmark says at its end: the machine, tables, and whether the aims are met."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("sdxl-bento", "torch", "diffusers", "transformers", "bentoml")
Row = Sequence[str]


def machine() -> dict[str, Any]:
    """When, on what, and with which versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def aim(name: str, value: float | None, target: float, *, at_least: bool) -> dict[str, Any]:
    """An aim, and whether the figure reaches it. None: not measured."""
    reached = None if value is None else (value >= target if at_least else value <= target)
    word = "at least" if at_least else "at most"
    return {"aim": name, "target": f"{word} {target:g}", "value": value, "reached": reached}


def show(console: Console, title: str, header: Row, rows: Sequence[Row]) -> None:
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_aims(console: Console, aims: Sequence[Mapping[str, Any]]) -> None:
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [(a["aim"], a["target"], number(a["value"]), words[a["reached"]]) for a in aims]
    show(console, "Aims", ("", "target", "measured", "reached"), rows)


def number(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:.3g}{unit}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
