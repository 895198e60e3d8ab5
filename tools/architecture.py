"""Draw the picture of docs/concepts/architecture.md: the packages, and two paths through them.

    python -m tools.architecture

writes `docs/images/architecture.svg`. The picture has colours for light and for dark pages, and a
background of its own for viewers that do not choose between them. It needs no package.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "architecture.svg"
WIDTH, HEIGHT = 1080, 886
TITLE = "The packages of sdxl-bento and export, and the path of a request and of an export"

# Both columns of colours are chosen for a contrast of at least 4.5 between text and its background.
STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
       fill: #1f2328 }
.page { fill: #ffffff } .panel { fill: #f6f8fa; stroke: #d0d7de }
.room { fill: #ffffff; stroke: #8c959f }
.later { fill: none; stroke: #8c959f; stroke-dasharray: 5 4 }
.heading { font-size: 17px; font-weight: 600 } .name { font-size: 15px; font-weight: 600 }
.note { font-size: 12.5px; fill: #57606a } .legend { font-size: 13.5px }
.arrow { stroke: #57606a; stroke-width: 1.6; fill: none } .tip { fill: #57606a }
.request { fill: #0550ae } .export { fill: #953800 } .badge { font-size: 12px; font-weight: 700 }
text.badge { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .page { fill: #0d1117 } .panel { fill: #161b22; stroke: #30363d }
  .room { fill: #21262d; stroke: #6e7681 } .later { stroke: #6e7681 } .note { fill: #9da7b3 }
  .arrow { stroke: #9da7b3 } .tip { fill: #9da7b3 }
  .request { fill: #79c0ff } .export { fill: #ffa657 } text.badge { fill: #0d1117 }
}
"""


@dataclass(frozen=True)
class Room:
    """A box: one package or module, what it does in a few words, and the steps that it takes."""

    name: str
    note: str
    x: float
    y: float
    width: float
    height: float = 56
    steps: str = ""
    later: bool = False

    def draw(self) -> str:
        """The box as SVG. Steps are letters for an export, numbers for a request."""
        style = "later" if self.later else "room"
        parts = [rect(self.x, self.y, self.width, self.height, style)]
        middle = self.y + self.height / 2
        if self.note:
            parts.append(text(self.x + 14, middle - 4, self.name, "note" if self.later else "name"))
            parts.append(text(self.x + 14, middle + 15, self.note, "note"))
        else:
            parts.append(text(self.x + 14, middle + 5, self.name, "note" if self.later else "name"))
        for place, step in enumerate(reversed(self.steps)):
            parts.append(badge(self.x + self.width - 17 - 25 * place, self.y + 17, step))
        return "".join(parts)


def rect(x: float, y: float, width: float, height: float, style: str) -> str:
    """A box with round corners."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" class="{style}"/>\n'


def text(x: float, y: float, words: str, style: str, anchor: str = "start") -> str:
    """One line of text whose baseline is at `y`."""
    return f'<text x="{x}" y="{y}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>\n'


def badge(x: float, y: float, step: str) -> str:
    """A disc with the number of a request's step, or the letter of an export's."""
    kind = "request" if step.isdigit() else "export"
    disc = f'<circle cx="{x}" cy="{y}" r="10" class="{kind}"/>\n'
    return disc + text(x, y + 4.3, step, "badge", "middle")


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points with a tip at the last one."""
    path = "M" + " L".join(f"{x} {y}" for x, y in points)
    return f'<path d="{path}" class="arrow" marker-end="url(#tip)"/>\n'


# The layers of the run time from top to bottom: each imports only what is below it.
RUN_TIME = (
    Room(
        "service.py → app.py",
        "the BentoML service; the web app above pages and protocols",
        56,
        66,
        620,
    ),
    Room("cli", "the commands", 56, 134, 132),
    Room("ui", "the page", 198, 134, 112),
    Room("protocols", "http · native · openai · kserve · a1111", 320, 134, 270, steps="17"),
    Room("jobs", "", 600, 134, 76, later=True),
    Room(
        "drawing.py",
        "Order in, Answer out: cache → draw → provenance → publish",
        56,
        202,
        620,
        steps="2",
    ),
    Room("pictures", "files, store, result cache", 56, 270, 190, steps="6"),
    Room("serving", "models, planning, calls, metrics", 256, 270, 234, steps="3"),
    Room("jobs · access · training", "", 500, 270, 176, later=True),
    Room(
        "backends",
        "eager · compiled: inductor, onnx, openvino, tensorrt · CUDA graphs",
        56,
        358,
        620,
    ),
    Room(
        "diffusion",
        "conditioning, plan, runner, solvers, LoRA; the backends' contract",
        56,
        426,
        496,
        steps="5",
    ),
    Room("control", "", 562, 426, 114, later=True),
    Room(
        "engine",
        "scheduler, admission, ledger, cost table: plain Python, no tensors",
        56,
        494,
        620,
        steps="4",
    ),
    Room(
        "the ground", "order, params, fields, config, manifest, sampler_names, errors", 56, 562, 620
    ),
)
BUILD_TIME = (
    Room("source", "folders, files, object stores, the hub", 744, 66, 292, steps="A"),
    Room("model", "what it is, what is refused, writing it", 744, 154, 292, steps="B"),
    Room("compile", "targets, quantization, slots for LoRA", 744, 242, 292, steps="C"),
    Room("check", "parts and pictures against the original", 744, 330, 292, steps="D"),
    Room("store.py", "one rename into BentoML's store", 744, 418, 292, steps="E"),
)
ARTIFACT = Room("one BentoML model", "manifest, weights, compiled parts", 744, 562, 292)
REQUEST = (
    "A protocol parses the body and makes an Order: task, parameters, picture.",
    "Drawing looks for the pictures in the result cache.",
    "The Generator resolves the order, and plan() turns it into engine requests.",
    "The engine admits them and chooses the next unit: encode, image, base, refine or decode.",
    "The runner runs the unit on a backend. 4 and 5 repeat until every picture is decoded.",
    "The pictures are encoded and stored, with what drew them.",
    "The Answer becomes the protocol's answer.",
)
EXPORT = (
    "Fetch and verify the files.",
    "Inspect, convert, write weights.",
    "Compile parts for each target.",
    "Compare parts and pictures.",
    "Commit everything, or nothing.",
)


def legend() -> str:
    """What the steps of a request and of an export are."""
    parts = [text(36, 680, "The path of a request", "heading")]
    for number, line in enumerate(REQUEST):
        parts.append(badge(46, 702 + 24 * number, str(number + 1)))
        parts.append(text(66, 707 + 24 * number, line, "legend"))
    parts.append(text(744, 680, "The path of an export", "heading"))
    for number, line in enumerate(EXPORT):
        parts.append(badge(754, 702 + 24 * number, "ABCDE"[number]))
        parts.append(text(774, 707 + 24 * number, line, "legend"))
    return "".join(parts)


def picture() -> str:
    """The whole picture as SVG."""
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" class="tip"/></marker>'
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'width="{WIDTH}" height="{HEIGHT}" aria-label="{escape(TITLE)}">\n',
        f"<title>{escape(TITLE)}</title>\n<style>{STYLE}</style>\n<defs>{tip}</defs>\n",
        f'<rect width="{WIDTH}" height="{HEIGHT}" class="page"/>\n',
        rect(20, 20, 672, 616, "panel"),
        text(36, 48, "Run time: sdxl_bento", "heading"),
        text(676, 48, "imports point downwards, and to the right; dashed: planned", "note", "end"),
        rect(728, 20, 324, 616, "panel"),
        text(744, 48, "Build time: export", "heading"),
        arrow((40, 70), (40, 614)),
        *(room.draw() for room in (*RUN_TIME, *BUILD_TIME, ARTIFACT)),
        *(arrow((890, room.y + 56), (890, room.y + 87)) for room in BUILD_TIME[:-1]),
        arrow((890, 474), (890, 561)),
        text(902, 522, "writes", "note"),
        arrow((744, 590), (710, 590), (710, 345), (373, 345), (373, 327)),
        text(385, 341, "loads", "note"),
        legend(),
        "</svg>\n",
    ]
    return "".join(parts)


if __name__ == "__main__":
    IMAGE.write_text(picture(), "utf-8")
    print(IMAGE)
