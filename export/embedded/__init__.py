"""A tiny pipeline of the SDXL architecture that ships with the repository.

Importing this package only defines the path of the weights; it imports no tensor library.
"""

from pathlib import Path

WEIGHTS: Path = Path(__file__).resolve().parent / "weights"
"""Folder with ``base``, ``refiner`` and ``loras``."""
