"""What a call asks for: an `Order` as the caller sent it, `Resolved` as it will be drawn.

A protocol creates the order. It is passed on whole to resolving, the result cache, planning, the
picture's metadata and the answer, so that all of them agree on what is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from sdxl_bento.params import GenerateParams, ResolvedParams

if TYPE_CHECKING:
    from PIL.Image import Image

# "generate": text to image. "img2img": the base model redraws a picture. "refine": the refiner
# redraws a picture.
Task = Literal["generate", "img2img", "refine"]
# What a picture of a call is for, which is also the native field that has it.
PictureRole = Literal["image"]
# The pictures that a task starts from, each of which has to be there.
PICTURES_OF: Mapping[Task, tuple[PictureRole, ...]] = {
    "generate": (),
    "img2img": ("image",),
    "refine": ("image",),
}


@dataclass(frozen=True, slots=True)
class InputImage:
    """A picture that a call starts from.

    `sha256` is the hash of its file. `image_id` is its id if it came from the image store.
    """

    image: Image
    sha256: str
    image_id: str | None = None

    @classmethod
    def of(cls, image: Image, data: bytes, image_id: str | None = None) -> InputImage:
        """The input image `image`, which was read from a file with the content `data`."""
        return cls(image, sha256(data).hexdigest(), image_id)


@dataclass(frozen=True, slots=True)
class Order:
    """A call as the caller sent it. `pictures` has those that its task starts from."""

    task: Task
    params: GenerateParams
    pictures: Mapping[PictureRole, InputImage] = field(default_factory=dict)

    @property
    def image(self) -> Image | None:
        """The picture to redraw, if there is one."""
        return self.pictures["image"].image if "image" in self.pictures else None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A call as it will be drawn, with its model, size, sampler and seed.

    It stands for `params.num_images` pictures; picture `i` has the seed `params.seed + i`.
    """

    task: Task
    params: ResolvedParams
    pictures: Mapping[PictureRole, InputImage] = field(default_factory=dict)

    @property
    def image(self) -> Image | None:
        """The picture to redraw, if there is one."""
        return self.pictures["image"].image if "image" in self.pictures else None

    @property
    def redraws(self) -> bool:
        """Whether it starts from a picture, which gives `strength` a meaning."""
        return self.task != "generate"

    @property
    def cut_from(self) -> tuple[int, int] | None:
        """Width and height of the picture to redraw, if it had to be cropped or scaled."""
        if self.image is None or self.image.size == (self.params.width, self.params.height):
            return None
        return self.image.size

    def with_params(self, **changes: Any) -> Resolved:
        """A copy with changed parameters, which are not validated."""
        return replace(self, params=self.params.model_copy(update=changes))

    def single(self, index: int, steps: int | None = None) -> Resolved:
        """Picture `index` as a call of its own.

        `steps` is the number of steps that it was drawn with; None means the call's.
        """
        own: dict[str, Any] = {"seed": self.params.seed + index, "num_images": 1}
        return self.with_params(**own if steps is None else own | {"num_inference_steps": steps})
