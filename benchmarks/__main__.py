"""`python -m benchmarks NAME [options]` runs one; without a name it lists them."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path


def programs() -> dict[str, str]:
    """The benchmarks by name, with the question that each answers."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_text("utf-8")
        if path.name != "__main__.py" and '__name__ == "__main__"' in text:
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def main() -> None:
    known = programs()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in known:
        del sys.argv[1]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        return
    for one, question in known.items():
        print(f"  {one:<12} {question}")
    if name:
        raise SystemExit(f"there is no benchmark {name}")


if __name__ == "__main__":
    main()
