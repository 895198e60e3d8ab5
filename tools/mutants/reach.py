"""Which tests can notice a change of a line: those that run it, nearest and quickest first.

Each file of tests is run once, traced; what it ran is kept in a file under `.cache/mutants`, valid
until one of the files of the project changes that were imported then.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1  # of the kept files; another one is traced again
POOL = ("tests/unit", "tests/simulation", "tests/parity", "tests/contracts")
OUTSIDE = ("tests/unit/benchmarks", "tests/unit/tools")  # they test none of what is drawn from
SHARED = ("tests/support", "tests/conftest.py", "pyproject.toml")
TOO_SLOW = "takes too long"
OWN = "tools/mutants/"  # imported by every run


@dataclass
class TestFile:
    """What one file of tests ran."""

    __test__ = False  # pytest would take it for a test

    path: str
    hashes: dict[str, str]  # of the project's files that it imported
    setup_s: float
    calls_s: dict[str, float]  # of each test function
    # Lines by source file and by test; under "" those of imports and fixtures.
    lines: dict[str, dict[str, list[int]]]
    failing: list[str] = field(default_factory=list)
    note: str = ""  # why it cannot be used

    def is_valid(self, root: Path) -> bool:
        return all(digest(root / file) == known for file, known in self.hashes.items())


@dataclass(frozen=True)
class Choice:
    """A test that can notice a change, and the seconds that it is expected to take."""

    test: str
    file: str
    setup_s: float
    call_s: float
    share: float  # of all lines that it runs, those in the changed file


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def test_files(root: Path, pool: Iterable[str] = POOL) -> list[str]:
    """Paths relative to `root`; a member of the pool is a folder or a file."""
    files: list[Path] = []
    for top in pool:
        path = root / top
        files += sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
    names = (str(file.relative_to(root)) for file in files)
    return [name for name in names if not name.startswith(OUTSIDE)]


def collect(path: str, result: Mapping[str, Any], trace: Path, root: Path) -> TestFile:
    """What a traced run of a file has left."""
    names = {number: test for test, number in result["numbers"].items()}
    lines: dict[str, dict[str, set[int]]] = {}
    for part in sorted(trace.glob("lines-*.json")):
        for number, source, line in json.loads(part.read_text()):
            tests = lines.setdefault(source, {})
            tests.setdefault(names.get(number, ""), set()).add(line)
    setup_s, calls_s = times(result)
    read = {*result["loaded"], *lines, *_shared(root), *_conftests(path)}
    read = {file for file in read if not file.startswith(OWN)}
    return TestFile(
        path,
        {file: digest(root / file) for file in sorted(read)},
        setup_s,
        calls_s,
        {source: {t: sorted(ls) for t, ls in by.items()} for source, by in lines.items()},
    )


def unusable(path: str, root: Path, note: str) -> TestFile:
    """What is kept of a file of tests that could not be traced to its end."""
    read = {*_shared(root), *_conftests(path)}
    return TestFile(path, {file: digest(root / file) for file in read}, 0.0, {}, {}, note=note)


def times(result: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
    """Seconds of the longest set-up and of the call of each test."""
    seconds: Mapping[str, Mapping[str, float]] = result["seconds"]
    setup_s = max((spent["setup"] for spent in seconds.values()), default=0.0)
    return setup_s, {test: seconds[test]["call"] for test in result["numbers"]}


def _shared(root: Path) -> Iterator[str]:
    for name in SHARED:
        path = root / name
        files = path.rglob("*.py") if path.is_dir() else (path,)
        yield from (str(file.relative_to(root)) for file in files)


def _conftests(path: str) -> Iterator[str]:
    yield path
    for parent in Path(path).parents:
        yield str(parent / "conftest.py")


class Atlas:
    """The files of tests by the lines that they run."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.root = root
        self.files: dict[str, TestFile] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, paths: Iterable[str]) -> list[str]:
        """Read what is kept and valid; returns the paths of which nothing is."""
        missing = []
        for path in paths:
            kept = self._place(path)
            try:
                document = json.loads(kept.read_text())
            except (OSError, ValueError):
                missing.append(path)
                continue
            known = TestFile(**document["file"]) if document["format"] == FORMAT else None
            if known and known.is_valid(self.root):
                self.files[path] = known
            else:
                missing.append(path)
        return missing

    def add(self, file: TestFile) -> None:
        """Keep it. A file that could not run, or not well, is traced again next time."""
        self.files[file.path] = file
        if file.failing or file.note not in ("", TOO_SLOW):
            return
        text = json.dumps({"format": FORMAT, "file": vars(file)})
        self._place(file.path).write_text(text)

    def _place(self, path: str) -> Path:
        return self.folder / f"{path.replace('/', '-')}.json"

    def choose(self, source: str, first: int, last: int, *, imported: bool) -> list[Choice]:
        """Tests that run a line of `source` from `first` to `last`, in the order to try them.

        `imported` says that the lines run when the module is imported: then all tests of a file
        that imports it follow those that run anything in it.
        """
        wanted = set(range(first, last + 1))
        near, far = [], []
        for file in self.files.values():
            if file.note or source not in file.hashes:
                continue
            tests = file.lines.get(source, {})
            early = imported or not wanted.isdisjoint(tests.get("", ()))
            for test, seconds in file.calls_s.items():
                if test in file.failing:
                    continue
                run = tests.get(test, [])
                share = len(run) / (1 + sum(len(by.get(test, ())) for by in file.lines.values()))
                choice = Choice(test, file.path, file.setup_s, seconds, share)
                if not wanted.isdisjoint(run) or (early and run):
                    near.append(choice)
                elif early:
                    far.append(choice)
        return sorted(near, key=_cost) + sorted(far, key=_cost)


def _cost(choice: Choice) -> tuple[float, str]:
    """Seconds by nearness; half a second for what a test takes at least, with all around it."""
    return (0.5 + choice.setup_s + choice.call_s) / (choice.share + 0.02), choice.test


def within(choices: Sequence[Choice], budget_s: float) -> list[Choice]:
    """Those that fit into a budget, in their order; a file's set-up counts once."""
    taken: list[Choice] = []
    files: set[str] = set()
    left = budget_s
    for choice in choices:
        cost = choice.call_s + (0 if choice.file in files else choice.setup_s)
        if cost <= left:
            taken.append(choice)
            files.add(choice.file)
            left -= cost
    return taken


def seconds_of(choices: Iterable[Choice]) -> float:
    """Of all tests together; a file's set-up counts once."""
    listed = list(choices)
    setups = {choice.file: choice.setup_s for choice in listed}
    return sum(choice.call_s for choice in listed) + sum(setups.values())


def statement(source: str, line: int) -> tuple[int, int, bool]:
    """First and last line of the innermost statement around `line`, and whether imports run it.

    Of a statement with a body only its head counts: `if …:` ends where its body begins.
    """
    first, last, imported = line, line, True
    for node in _around(ast.parse(source), line):
        body = getattr(node, "body", None)
        inner = body[0].lineno if isinstance(body, list) and body else None
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)])
        last = node.end_lineno or line
        if inner is not None and inner > line:
            last = max(first, inner - 1)
            break
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            imported = False
    return first, last, imported


def _around(tree: ast.AST, line: int) -> Iterator[Any]:
    """Statements and handlers that hold a line, from the outermost to the innermost."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            continue
        decorators = getattr(node, "decorator_list", [])
        starts = [getattr(n, "lineno", line) for n in (node, *decorators)]
        if isinstance(node, ast.match_case):
            starts = [node.pattern.lineno]
            last = node.body[-1].end_lineno or line
        else:
            last = node.end_lineno or line
        if min(starts) <= line <= last:
            if not isinstance(node, ast.match_case):
                yield node
            yield from _around(node, line)
