"""The pytest plugin of every run: leaves out what is too slow, notes what each test did.

It writes a JSON document to the path in `SDXL_MUTANTS_RESULT`: per test function (all its
parameters together) the seconds of its set-up and of its call and whether it failed, and the files
of the project that were imported.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.mutants import tracing

RESULT = "SDXL_MUTANTS_RESULT"
LEFT_OUT = {"slow", "gpu"}


class Recorder:
    """Notes the tests of one pytest session. `failed` holds tests and, by file, collections."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.numbers: dict[str, int] = {}
        self.seconds: dict[str, dict[str, float]] = {}
        self.failed: list[str] = []
        self.skipped: set[str] = set()
        folder = os.environ.get(tracing.VARIABLE)
        self.board = tracing.Board(Path(folder)) if folder else None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        left_out = [i for i in items if LEFT_OUT & {mark.name for mark in i.iter_markers()}]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        function = function_of(item.nodeid)
        is_new = function not in self.numbers
        number = self.numbers.setdefault(function, len(self.numbers) + 1)
        if self.board is None:
            return (yield)
        self.board.set(number)
        if is_new and tracing.resume is not None:
            tracing.resume()
        try:
            return (yield)
        finally:
            self.board.set(0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        function = function_of(report.nodeid)
        spent = self.seconds.setdefault(function, {"setup": 0.0, "call": 0.0})
        if report.when == "call":
            spent["call"] += report.duration
        else:
            spent["setup"] = max(spent["setup"], report.duration)
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid} (collection)")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        self.write()

    def write(self) -> None:
        files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
        loaded = {
            str(Path(file).relative_to(self.root))
            for file in files
            if isinstance(file, str) and file.startswith(f"{self.root}/")
        }
        document = {
            "numbers": self.numbers,
            "seconds": self.seconds,
            "failed": self.failed,
            "loaded": sorted(loaded),
        }
        Path(os.environ[RESULT]).write_text(json.dumps(document))


def function_of(nodeid: str) -> str:
    """The id without parameters, which may come from the code under test."""
    return nodeid.partition("[")[0]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config.rootpath), "mutants-recorder")
