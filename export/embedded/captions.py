"""Describes scenes in words: plain captions, varied captions for training, the vocabulary."""

import random
import re
from dataclasses import dataclass

from export.embedded.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scene

_PREFIXES = ("", "", "", "", "a picture of ", "an image of ", "a photo of ", "a drawing of ",
             "an illustration of ")  # fmt: skip
_SUFFIXES = ("", "", "", "", "", ", high quality", ", detailed", ", sharp", ", 4k", ", simple",
             ", best quality, masterpiece", ", minimal")  # fmt: skip
_FILLERS = ("beautiful", "nice", "clean", "bright", "bold", "flat")
_BACKGROUNDS = (
    " on {a} {name} background",
    " on {name}",
    " with {a} {name} background",
    ", {name} background",
    " on {a} {name} backdrop",
)
# Words that people type although no picture shows them; training adds them as noise.
# fmt: off
JUNK = (
    "cat", "dog", "horse", "astronaut", "riding", "moon", "sky", "cinematic", "realistic",
    "painting", "art", "style", "lora", "blurry", "low", "quality", "bad", "worst", "ugly",
    "striped", "outlined", "stripes", "outline", "and", "or", "of", "in", "the", "with",
    "without", "no", "photo", "background", "scene", "shape", "shapes", "object", "color",
    "watermark", "text", "noisy",
)
# fmt: on
_OTHER = "a an one two three the middle centered backdrop background on at in with , . 4k"

Said = dict[str, str | int | None]
"""The value that a caption states for each attribute of a scene; ``None`` if it states none."""


@dataclass(frozen=True)
class Caption:
    """A caption and the attributes that it states."""

    text: str
    said: Said


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _noun(scene: Scene) -> str:
    return scene.shape if scene.count == 1 else scene.shape + "s"


def plain_caption(scene: Scene) -> str:
    """The caption without variation, such as ``two small red stars on a blue background``."""
    words = [] if scene.size == "medium" else [scene.size]
    words += [scene.colour, _noun(scene)]
    first = _article(words[0]) if scene.count == 1 else ("two", "three")[scene.count - 2]
    where = "" if scene.position == "center" else f" on the {scene.position}"
    ground = f" on {_article(scene.background)} {scene.background} background"
    return " ".join([first, *words]) + where + ground


def vary_caption(scene: Scene, rng: random.Random) -> Caption:
    """A caption with random wording that sometimes leaves out the colour or the background."""
    said: Said = dict(vars(scene))
    words = []
    if rng.random() < 0.06:
        words.append(rng.choice(_FILLERS))
    if scene.size != "medium" or rng.random() < 0.4:
        words.append(scene.size)
    if rng.random() < 0.03:
        said["colour"] = None
    else:
        words.append(scene.colour)
    words.append(_noun(scene))
    if scene.count > 1:
        words.insert(0, ("two", "three")[scene.count - 2])
    elif rng.random() < 0.12:
        words = [*rng.choice(([], ["one"], ["the"])), *words]
    else:
        words.insert(0, _article(words[0]))
    subject = " ".join(words) + _vary_position(scene, rng)
    if rng.random() < 0.04:
        said["background"] = None
        text = subject
    elif rng.random() < 0.06:
        text = f"{scene.background} background, {subject}"
    else:
        pattern = rng.choices(_BACKGROUNDS, (9, 4, 3, 3, 1))[0]
        text = subject + pattern.format(a=_article(scene.background), name=scene.background)
    return Caption(rng.choice(_PREFIXES) + text + rng.choice(_SUFFIXES), said)


def _vary_position(scene: Scene, rng: random.Random) -> str:
    if scene.position != "center":
        return rng.choice((" on the ", " at the ", " in the ")) + scene.position
    if scene.count == 1 and rng.random() < 0.12:
        return rng.choice((" in the center", " in the middle", " centered"))
    return ""


def junk(rng: random.Random, longest: int = 6) -> str:
    """A few words that say nothing about the scene."""
    return " ".join(rng.choice(JUNK) for _ in range(rng.randint(1, longest)))


def words() -> list[str]:
    """Every word and sign of the grammar, sorted."""
    vocabulary = {*COLOURS, *SHAPES, *(s + "s" for s in SHAPES), *SIZES, *POSITIONS}
    vocabulary |= {*_FILLERS, *JUNK}
    for text in (*_PREFIXES, *_SUFFIXES, _OTHER):
        vocabulary |= set(re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text))
    return sorted(vocabulary)
