"""Run tests against faults, a few at once, and give a verdict on each."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tools.mutants.faults import Fault
from tools.mutants.forks import ROOT, Outcome, Run, Tree
from tools.mutants.plugin import function_of
from tools.mutants.reach import (
    TOO_SLOW,
    Atlas,
    Choice,
    TestFile,
    collect,
    seconds_of,
    statement,
    times,
    unusable,
    within,
)
from tools.mutants.report import Equivalents, Verdict

CACHE = ROOT / ".cache" / "mutants"
POLL_S = 0.05
FIRST_S = 4.0  # of tests that are tried before the others
TRACED_TIMEOUT_S = 400.0  # of a file of tests; one that takes longer is left out
QUICK_S = 5.0  # of a traced file, whose times are taken as they are
PYTEST_S = 20.0  # more than pytest takes to begin, on a busy machine
SLOWER = 4.0  # than at the first time a test may be
TIMED = "tests/contracts/"  # their tests are asked twice before they are believed
USAGE = 4  # exit status of pytest
BROKEN_CONFTEST = "ImportError while loading conftest"

R = TypeVar("R")
Steps = Generator[Run, Outcome, R]  # runs of pytest, one after the other, and what comes of them


@dataclass(frozen=True)
class Slot:
    """Where one thing at a time runs: a copy of the project, and folders."""

    tree: Tree
    work: Path
    models: Path

    def run(self, arguments: Sequence[str], timeout_s: float, trace: Path | None = None) -> Run:
        return Run(self.tree, arguments, self.work, self.models, timeout_s, trace)


@contextmanager
def slots(count: int) -> Iterator[list[Slot]]:
    """Places for `count` runs at once. What fixtures export is kept as long as the code stays."""
    models = CACHE / f"models-{_code_digest()}"
    for old in CACHE.glob("models-*"):
        if old != models:
            shutil.rmtree(old, ignore_errors=True)
    models.mkdir(parents=True, exist_ok=True)
    # Not a TemporaryDirectory: a fork that ends like any process would delete it.
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    try:
        yield [
            Slot(Tree(folder / f"tree-{number}"), folder / f"run-{number}", models)
            for number in range(count)
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _code_digest() -> str:
    files = (p for top in ("sdxl_bento", "export") for p in (ROOT / top).rglob("*.py"))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def perform(tasks: Iterable[Callable[[Slot], Steps[R]]], places: Sequence[Slot]) -> Iterator[R]:
    """Results of the tasks as they come; each slot works on one task at a time."""
    waiting = iter(tasks)
    free = list(places)
    running: list[tuple[Slot, Steps[R], Run]] = []
    try:
        while True:
            while free and (task := next(waiting, None)):
                steps = task(free[-1])
                try:
                    running.append((free[-1], steps, _started(next(steps))))
                    free.pop()
                except StopIteration as end:
                    yield end.value
            if not running:
                return
            for entry in list(running):
                slot, steps, run = entry
                if (outcome := run.poll()) is None:
                    continue
                running.remove(entry)
                try:
                    running.append((slot, steps, _started(steps.send(outcome))))
                except StopIteration as end:
                    free.append(slot)
                    yield end.value
            time.sleep(POLL_S)
    finally:
        for _, steps, run in running:
            run.kill()
            steps.close()


def _started(run: Run) -> Run:
    run.start()
    return run


def tracing(path: str) -> Callable[[Slot], Steps[TestFile]]:
    """Run a file of tests as it is: what each test runs, and which tests fail even so."""

    def steps(slot: Slot) -> Steps[TestFile]:
        trace = slot.work / "trace"
        shutil.rmtree(trace, ignore_errors=True)
        trace.mkdir(parents=True)
        outcome = yield slot.run([path], TRACED_TIMEOUT_S, trace)
        if not outcome.result:
            return unusable(path, slot.tree.folder, _why(outcome, slot.work))
        file = collect(path, outcome.result, trace, slot.tree.folder)
        if outcome.failed or outcome.seconds > QUICK_S:
            # Tracing has made it slow, and a test that waits may have failed for that.
            outcome = yield slot.run([path], TRACED_TIMEOUT_S)
            if not outcome.result:
                return unusable(path, slot.tree.folder, _why(outcome, slot.work))
            file.failing = sorted({function_of(test) for test in outcome.failed})
            file.setup_s, file.calls_s = times(outcome.result)
        return file

    return steps


@dataclass(frozen=True)
class Trial:
    """A numbered fault, the tests that can notice it, and how long they may take."""

    number: int
    fault: Fault
    choices: Sequence[Choice]
    timeout_s: float

    @classmethod
    def plan(cls, number: int, fault: Fault, atlas: Atlas, timeout_s: float) -> Trial:
        """Half of the time goes to tests, at their usual speed; the rest is reserve."""
        mutation = fault.mutation
        first, last, imported = statement(fault.before, mutation.line)
        choices = atlas.choose(mutation.file, first, last, imported=imported)
        return cls(number, fault, within(choices, timeout_s / 2), timeout_s)

    def verdict(self, outcome: str, seconds: float = 0.0, by: str = "") -> Verdict:
        mutation = self.fault.mutation
        before, after = (" ".join(text.split()) for text in self.fault.changed)
        return Verdict(
            self.number, mutation.key, mutation.file, mutation.line, mutation.operator,
            before, after, outcome, round(seconds, 2), len(self.choices), by,
            source_digest(self.fault),
        )  # fmt: skip

    def steps(self, slot: Slot) -> Steps[Verdict]:
        """Try the nearest tests, then the others; stop at the first that fails."""
        if reason := Equivalents().reason(self.fault):
            return self.verdict("equivalent", by=reason)
        if not self.choices:
            return self.verdict("unreached")
        spent = 0.0
        with slot.tree.changed(self.fault.mutation.file, self.fault.after):
            for part in self._parts():
                tests = [choice.test for choice in part]
                timeout_s = min(self.timeout_s, PYTEST_S + SLOWER * seconds_of(part))
                while tests:
                    outcome = yield slot.run(["-x", *tests], timeout_s)
                    spent += outcome.seconds
                    said = _judge(outcome, slot.work)
                    if said and (test := _of_a_server(outcome)) in tests:
                        again = yield slot.run(["-x", test], timeout_s)
                        spent += again.seconds
                        if again.status == 0:  # it was the load of the machine
                            tests.remove(test)
                            continue
                    if said:
                        return self.verdict(said[0], spent, said[1])
                    break
        return self.verdict("missed", spent)

    def _parts(self) -> Iterator[Sequence[Choice]]:
        count = 1
        while count < len(self.choices) and seconds_of(self.choices[: count + 1]) <= FIRST_S:
            count += 1
        yield self.choices[:count]
        if count < len(self.choices):
            yield self.choices[count:]


def source_digest(fault: Fault) -> str:
    return hashlib.sha256(fault.before.encode()).hexdigest()[:16]


def _judge(outcome: Outcome, work: Path) -> tuple[str, str] | None:
    """What a run says and by what; None if all tests have passed."""
    if outcome.status == 0:
        return None
    if outcome.status is None:
        return "timeout", ""
    if outcome.failed:
        return "caught", outcome.failed[0]
    if outcome.status < 0:
        return "crash", f"signal {-outcome.status}"
    output = (work / "output.txt").read_text("utf-8", "replace")
    if outcome.status == USAGE and BROKEN_CONFTEST in output:
        return "caught", "conftest (collection)"
    return "error", f"pytest ended with {outcome.status}: {_last_words(work)}"


def _of_a_server(outcome: Outcome) -> str:
    """The failed test if it is one that measures how quickly a server answers, or ""."""
    test = function_of(outcome.failed[0]) if outcome.failed else ""
    return test if test.startswith(TIMED) else ""


def _why(outcome: Outcome, work: Path) -> str:
    return TOO_SLOW if outcome.status is None else _last_words(work)


def _last_words(work: Path) -> str:
    lines = (work / "output.txt").read_text("utf-8", "replace").split("\n")
    return " / ".join([line.strip() for line in lines if line.strip()][-3:])[-400:]
