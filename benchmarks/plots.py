"""Draw the pictures of docs/benchmarks.md, and its table of aims, from a benchmark's JSON document.

    python -m benchmarks.plots RESULT.json

Writes docs/images/bench-*.png, and in docs/benchmarks.md what is between the markers
`<!-- engine -->` and `<!-- /engine -->`. Needs matplotlib (`pip install matplotlib`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.report import number

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PAGE = ROOT / "docs" / "benchmarks.md"
LABELS = {
    "plain": "(a) one at a time",
    "whole": "(b) whole requests",
    "ours": "(c) steps, ours",
    "ours, told the deadlines": "(c) told the deadlines",
}
COLOURS = {
    "plain": "#9aa5b1",
    "whole": "#d9a441",
    "ours": "#3b7dd8",
    "ours, told the deadlines": "#1b4f91",
}
Found = Mapping[str, Any]


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    IMAGES.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    draw_throughput(document["throughput"])
    draw_late(document["late"])
    draw_traffic(document["traffic"])
    write_page(document)


def draw_throughput(found: Found) -> None:
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    clients = list(found["images_per_s"]["plain"])
    bars(axes, clients, {name: list(of.values()) for name, of in found["images_per_s"].items()})
    axes.set_xlabel("clients that each wait for their picture")
    axes.set_ylabel("pictures a second")
    legend(axes)
    save(figure, "throughput")


def draw_late(found: Found) -> None:
    figure, axes = plt.subplots(figsize=(6, 1.8), layout="constrained")
    names = list(found["seconds"])
    shown = axes.barh(
        [LABELS[name] for name in names],
        [found["seconds"][name] for name in names],
        color=[COLOURS[name] for name in names],
    )
    axes.bar_label(shown, fmt="%.2f s", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("seconds until a 4-step request is answered, eight of 50 steps at work")
    save(figure, "late")


def draw_traffic(found: Found) -> None:
    loads = {load: of for load, of in found["loads"].items() if "plain" in of}
    for name, key, label in (
        ("p50", "p50_s", "median latency, s"),
        ("p99", "p99_s", "p99 latency, s"),
        ("goodput", "goodput_per_s", "answers on time a second"),
    ):
        figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
        series = {v: [of[v][key] or 0 for of in loads.values()] for v in LABELS}
        bars(axes, list(loads), series)
        axes.set_xlabel("load, in units of the plain server's capacity")
        axes.set_ylabel(label)
        legend(axes)
        save(figure, name)


def bars(axes: Axes, groups: list[str], series: Mapping[str, list[float]]) -> None:
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        places = [at + (index - (len(series) - 1) / 2) * width for at in range(len(groups))]
        axes.bar(places, values, width * 0.92, label=LABELS[name], color=COLOURS[name])
    axes.set_xticks(range(len(groups)), groups)


def legend(axes: Axes) -> None:
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))


def save(figure: Any, name: str) -> None:
    figure.savefig(IMAGES / f"bench-{name}.png", dpi=150, metadata={"Software": None})
    plt.close(figure)


def write_page(document: Found) -> None:
    """Put the figures into the page, with the machine that they were measured on."""
    versions = ", ".join(f"{name} {v}" for name, v in document["versions"].items())
    words = {True: "yes", False: "**no**", None: "not measured"}
    own = document["traffic"]["loads"]["1.1 of our own"]
    lines = [
        f"Measured {document['date']} on {document['cores']} cores of {document['cpu']}, "
        f"{document['threads']} torch threads, {versions}; load average before the run "
        f"{document['load_average'][0]:g}.",
        "",
        "| | target | measured | reached |",
        "| --- | --- | ---: | --- |",
    ]
    for one in document["aims"]:
        cells = (one["aim"], one["target"], number(one["value"]), words[one["reached"]])
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "At 1.1 of our own capacity, where nothing but scheduling differs:",
        "",
        "| | on time | answers on time a second |",
        "| --- | ---: | ---: |",
        *(f"| {v} | {of['attainment']:.0%} | {of['goodput_per_s']:.3g} |" for v, of in own.items()),
    ]
    ms = document["forward"]["ms"]
    forward = ", ".join(f"{time:g} ms with {rows} rows" for rows, time in ms.items())
    lines += ["", f"A forward of the UNet alone takes {forward}."]
    text = PAGE.read_text("utf-8")
    block = "<!-- engine -->\n" + "\n".join(lines) + "\n<!-- /engine -->"
    changed = re.sub(r"<!-- engine -->.*<!-- /engine -->", lambda _: block, text, flags=re.S)
    PAGE.write_text(changed, "utf-8")


if __name__ == "__main__":
    main()
