"""The mutation tester: what it draws, which tests it chooses, how it counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tools.mutants import faults, report, tracing
from tools.mutants.reach import Atlas, Choice, TestFile, statement, within

SOURCE = '''\
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

Alias = int | None


@cache
def add(left: int | None = 3, *rest: int, **named: float) -> int | str:
    """Add 1 and 2."""
    logger.info("%d", left + 1)
    return left + min(*rest)


class Model:
    side: Annotated[int, Field(ge=8)]
    kind: Literal[5] = choose(6)
'''


def lines_of(source: str) -> dict[int, set[str]]:
    """Names of the operators' families that apply, by line."""
    places: dict[int, set[str]] = {}
    for (line, _), mutations in faults.places_of("a.py", source).items():
        families = {mutation.operator.split("_")[0] for mutation in mutations}
        places.setdefault(line, set()).update(families)
    return places


def test_annotations_logs_aliases_and_stars_are_left_alone() -> None:
    assert lines_of(SOURCE) == {
        12: {"NumberReplacer"},  # the default, not the annotations nor the stars
        15: {"ReplaceBinaryOperator"},
        19: {"NumberReplacer"},  # what pydantic is told
        20: {"NumberReplacer"},  # the value, not the annotation
    }


@pytest.mark.parametrize(
    ("source", "left_out"),
    [("x = a is b\n", "Is_Eq"), ("x = a == b\n", "Eq_Is"), ("x = a != b\n", "NotEq_IsNot")],
)
def test_identity_never_replaces_equality(source: str, left_out: str) -> None:
    ((_, mutations),) = faults.places_of("a.py", source).items()
    names = {mutation.operator for mutation in mutations}
    assert names and f"ReplaceComparisonOperator_{left_out}" not in names


def test_decorators_that_do_something_are_removed() -> None:
    source = "@app.get(path)\ndef f():\n    pass\n\n\n@dataclass(frozen=True)\nclass G:\n    pass\n"
    assert lines_of(source) == {1: {"RemoveDecorator"}}


def test_a_draw_is_repeatable_and_has_one_fault_a_place(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1 + 2\nif x > 3:\n    x = -x\n")
    (tmp_path / "b.py").write_text("def f(y):\n    return y * 2 or 7\n")
    drawn = faults.draw(tmp_path, ["b.py", "a.py"], 100, seed=5)
    places = [(f.mutation.file, f.mutation.line, f.mutation.column) for f in drawn]
    # 1, +, 2, x > 3 (its place is its condition), >, 3, -; *, 2, or, 7
    assert len(places) == len(set(places)) == 11
    assert drawn == faults.draw(tmp_path, ["a.py", "b.py"], 100, seed=5)
    assert drawn[:4] == faults.draw(tmp_path, ["a.py", "b.py"], 4, seed=5)
    assert drawn != faults.draw(tmp_path, ["a.py", "b.py"], 100, seed=6)
    for fault in drawn:
        assert fault.before != fault.after
        compile(fault.after, "a.py", "exec")


def test_a_fault_shows_the_changed_line() -> None:
    source = "def f(a):\n    return a < 3\n"
    mutation = next(
        mutation
        for mutations in faults.places_of("a.py", source).values()
        for mutation in mutations
        if mutation.operator == "ReplaceComparisonOperator_Lt_LtE"
    )
    fault = faults.make(mutation, source)
    assert fault is not None
    assert fault.changed == ("return a < 3", "return a <= 3")
    assert "-    return a < 3\n+    return a <= 3" in fault.diff()


def test_what_gives_no_program_is_no_fault() -> None:
    source = "if x := f():\n    pass\n"  # `if not x := f():` needs parentheses
    mutations = [m for each in faults.places_of("a.py", source).values() for m in each]
    assert mutations and all(faults.make(m, source) is None for m in mutations)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (1, (1, 1, True)),
        (3, (3, 5, True)),  # a decorator and the head of the function are run by imports
        (5, (3, 5, True)),
        (6, (6, 7, False)),  # a condition over two lines
        (7, (6, 7, False)),
        (8, (8, 8, False)),
        (10, (10, 10, False)),  # the handler
        (11, (11, 13, False)),
    ],
)
def test_statements(line: int, expected: tuple[int, int, bool]) -> None:
    source = (
        "A = 1\n\n@decorated\ndef f(\n  x=1):\n  while (x and\n    y):\n    x = 2\n"
        "  try: pass\n  except E:\n    g(\n      3,\n    )\n"
    )
    assert statement(source, line) == expected


@pytest.fixture
def atlas(tmp_path: Path) -> Atlas:
    made = Atlas(tmp_path / "kept", tmp_path)
    (tmp_path / "a.py").write_text("A = 1\n")
    hashes = {"a.py": "…"}
    near = {"a.py": {"": [1], "near::quick": [2, 3], "near::slow": [2], "near::other": [5]}}
    far = {"a.py": {"": [1], "far::wide": [2]}, "b.py": {"far::wide": list(range(500))}}
    seconds = {"near::quick": 0.1, "near::slow": 30.0, "near::other": 0.1, "near::failing": 0.0}
    near["a.py"]["near::failing"] = [2]
    made.add(TestFile("near", hashes, 0.0, seconds, near, failing=["near::failing"]))
    made.add(TestFile("far", hashes, 5.0, {"far::wide": 0.1, "far::none": 0.1}, far))
    made.add(TestFile("stranger", {}, 0.0, {"stranger::x": 0.1}, {}))
    return made


def test_tests_that_run_the_line_are_chosen_nearest_and_quickest_first(atlas: Atlas) -> None:
    chosen = [choice.test for choice in atlas.choose("a.py", 2, 2, imported=False)]
    assert chosen == ["near::quick", "near::slow", "far::wide"]
    assert atlas.choose("a.py", 4, 4, imported=False) == []


def test_what_imports_run_concerns_all_tests_of_the_files_that_import_it(atlas: Atlas) -> None:
    chosen = [choice.test for choice in atlas.choose("a.py", 1, 1, imported=True)]
    assert chosen == ["near::quick", "near::other", "near::slow", "far::wide", "far::none"]
    # A function that a module calls at its top, or a fixture.
    assert [c.test for c in atlas.choose("a.py", 1, 1, imported=False)] == chosen


def test_a_kept_file_counts_as_long_as_its_imports_stay(atlas: Atlas, tmp_path: Path) -> None:
    again = Atlas(tmp_path / "kept", tmp_path)
    # One with a failing test is not kept, one imports another a.py, one was never traced.
    assert again.load(["near", "far", "stranger", "unknown"]) == ["near", "far", "unknown"]
    assert list(again.files) == ["stranger"]


def test_a_budget_counts_the_set_up_of_a_file_once() -> None:
    first, second = (Choice(test, "file", 5.0, 1.0, 1.0) for test in ("first", "second"))
    other = Choice("other", "other", 0.0, 4.0, 1.0)
    assert within([first, other, second], 7.0) == [first, second]


def test_a_traced_process_notes_lines_under_the_running_test(tmp_path: Path) -> None:
    tree, trace = tmp_path / "tree", tmp_path / "trace"
    (tree / "export").mkdir(parents=True)
    trace.mkdir()
    path = tree / "export" / "a.py"
    path.write_text("def f(x):\n    if x:\n        return 1\n    return 2\n")
    before = sys.gettrace()
    board = tracing.Board(trace)
    names: dict[str, object] = {}
    _, write = tracing.start(tree, trace)
    try:
        exec(compile(path.read_text(), str(path), "exec"), names)
        f = names["f"]
        assert callable(f)
        board.set(300)
        f(True)
    finally:
        tracing.stop(before)
    write()
    (kept,) = trace.glob("lines-*.json")
    assert (
        kept.read_text()
        == '[[0, "export/a.py", 1], [300, "export/a.py", 2], [300, "export/a.py", 3]]'
    )


PROGRAM = """
import os, sys, time
print(sys.argv[1:], os.environ["WORD"], os.getcwd(), sys.stdin.read(), flush=True)
if "wait" in sys.argv:
    time.sleep(60)
sys.exit(7)
"""
STARTER = """
import subprocess, sys
from pathlib import Path
from tools.mutants import launcher
launcher.start(Path("bin"))
command = [sys.executable, "-m", "export"]
done = subprocess.run([*command, "a b"], input="in", stdout=subprocess.PIPE, text=True)
print(done.stdout, done.returncode, flush=True)
with subprocess.Popen([*command, "wait"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as run:
    run.stdout.readline()
    run.terminate()
    print(run.wait(30), flush=True)
"""


def test_a_launched_module_is_like_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").touch()
    (tmp_path / "export" / "__main__.py").write_text(PROGRAM)
    env = os.environ | {"WORD": "word", "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-c", STARTER]
    with (tmp_path / "output").open("w") as output:
        starter = subprocess.Popen(
            command, cwd=tmp_path, env=env, start_new_session=True, stdout=output
        )
    try:
        assert starter.wait(60) == 0
    finally:
        os.killpg(starter.pid, signal.SIGKILL)  # the launcher stays otherwise
    ended = f"['a b'] word {tmp_path} in\n 7\n{-signal.SIGTERM}\n"
    assert (tmp_path / "output").read_text() == ended


VERDICT = report.Verdict(1, "k", "a/b/c.py", 3, "Op", "x", "y", "caught", 1.0, 4, "t", "hash")


def test_a_report_is_read_back_without_its_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    assert report.read(path) == []
    report.append(path, VERDICT)
    with path.open("a") as file:
        file.write('{"number": 2, "ke')
    assert report.read(path) == [VERDICT]


def test_equivalents_and_errors_do_not_count() -> None:
    outcomes = ["caught", "timeout", "crash", "missed", "unreached", "equivalent", "error"]
    verdicts = [replace(VERDICT, outcome=outcome) for outcome in outcomes]
    assert report.share(verdicts) == pytest.approx(60)
    assert report.share([]) == 100
    text = report.tables(verdicts)
    assert "60.0%" in text and text.count("a/b/c.py:3") == 3


def test_an_equivalent_is_known_by_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "equivalent.toml"
    path.write_text(
        '[[equivalent]]\nfile = "a.py"\nbefore = "x = 1"\nafter = "x = 2"\nreason = "unused"\n'
    )
    known = report.Equivalents(path)
    mutation = faults.Mutation("a.py", 1, 4, "NumberReplacer", 0)
    assert known.reason(faults.Fault(mutation, "x = 1\n", "x =  2\n")) == "unused"
    assert known.reason(faults.Fault(mutation, "x = 1\n", "x =  0\n")) is None


def test_the_equivalents_of_the_project_say_why() -> None:
    assert all(report.Equivalents().reasons.values())
