"""A tiny pipeline of the SDXL architecture that ships with the repository.

Importing this package is light: it names the weights folder and pulls in no tensor library.
"""

from pathlib import Path

WEIGHTS: Path = Path(__file__).resolve().parent / "weights"
"""Folder with ``base``, ``refiner`` and ``loras``."""
