"""Run examples/clients.ipynb against a server, and keep what it shows in the file.

    make serve  # in another terminal
    python -m tools.notebook

The tests run it with `--output` elsewhere, so that the committed one is changed on purpose only.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "clients.ipynb"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://localhost:3000")
    parser.add_argument("--output", type=Path, default=NOTEBOOK)
    options = parser.parse_args()
    os.environ["SDXL_URL"] = options.url  # the kernel inherits it
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # No times, and what is printed in one piece: the same outputs make the same file.
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, options.output)


if __name__ == "__main__":
    main()
