"""The log of a command that loads the model itself."""

from __future__ import annotations

import ast
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

import sdxl_bento
from sdxl_bento.cli.local import show_log

PACKAGE = Path(sdxl_bento.__file__).parent
LOGGER = 'logging.getLogger(f"bentoml.{__name__}")'


def loggers() -> dict[str, list[str]]:
    """For each module of the package that has a logger: how it names it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        named = [
            ast.unparse(node.value).replace("'", '"')
            for node in ast.parse(path.read_text("utf-8")).body
            if isinstance(node, ast.Assign) and "getLogger" in ast.unparse(node.value)
        ]
        if named:
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = named
    return found


LOGGERS = loggers()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """BentoML's own logger is one for the whole process."""
    logger = logging.getLogger("bentoml")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


def shown(name: str, level: int, verbose: bool, exc_info: bool = False) -> str:
    """What a console shows of one line of a module's log."""
    console = Console(file=io.StringIO(), width=200)
    show_log(console, verbose)
    try:
        raise RuntimeError("the cause")
    except RuntimeError:
        logging.getLogger(f"bentoml.{name}").log(level, "a [line] of %s", name, exc_info=exc_info)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_there_are_loggers() -> None:
    assert {"sdxl_bento.serving.loading", "sdxl_bento.engine.core"} <= LOGGERS.keys()


@pytest.mark.parametrize("name", LOGGERS)
def test_verbose_shows_the_log_of_every_module(name: str) -> None:
    assert LOGGERS[name] == [LOGGER]
    assert shown(name, logging.INFO, verbose=True) == f"Info: a [line] of {name}\n"
    assert shown(name, logging.INFO, verbose=False) == ""
    assert shown(name, logging.WARNING, verbose=False) == f"Warning: a [line] of {name}\n"


def test_tracebacks_are_for_those_who_ask() -> None:
    name = "sdxl_bento.serving.loading"
    assert shown(name, logging.ERROR, verbose=False, exc_info=True) == ""
    text = shown(name, logging.ERROR, verbose=True, exc_info=True)
    assert text.startswith(f"Error: a [line] of {name}\n")
    assert text.rstrip().endswith("RuntimeError: the cause")
