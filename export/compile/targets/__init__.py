"""One module for each target that a model can be compiled for.

Each module registers its target when it is imported, and `all_targets` imports them all. So that
listing the targets takes no time, a module imports torch, and the packages that its target compiles
with, inside its functions only.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from export.compile.registry import Target, registered
from sdxl_bento.manifest import BackendName


def all_targets() -> Mapping[BackendName, Target]:
    """Every target by its name, in the order of `BackendName`."""
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        importlib.import_module(module.name)
    return registered()
