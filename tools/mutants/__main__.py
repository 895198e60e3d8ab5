"""Of some faults drawn at random, how many do the tests catch?

    python -m tools.mutants --count 300 --seed 1 --workers 2 --json report.jsonl

A fault is one small change of the source, such as `<` for `<=` or 3 for 2, by the operators of
cosmic-ray (see `faults`). For each, the tests that run the changed line are tried, nearest and
quickest first, until one fails; end-to-end tests are not among them. The sample depends on
`--seed`, `--only` and the sources alone.

The first run traces each file of tests once, which takes some minutes; later ones do that again
only for files of tests whose imports have changed. Python 3.11 and a system that forks are needed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tools.mutants import faults, forks, reach, report, session

AREAS = (
    "sdxl_bento/engine",
    "sdxl_bento/diffusion",
    "sdxl_bento/backends",
    "sdxl_bento/pictures",
    "sdxl_bento/protocols",
    "export/check",
)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--count", type=int, default=300, help="faults to draw (default 300)")
    add("--seed", type=int, default=1, help="of the draw (default 1)")
    add("--workers", type=int, default=2, help="faults tried at once (default 2)")
    add("--only", nargs="+", default=AREAS, metavar="PATH", help="folders or files to draw from")
    add("--tests", nargs="+", default=reach.POOL, metavar="PATH", help="folders or files of tests")
    add("--timeout-s", type=float, default=60, help="most seconds of one run of tests (default 60)")
    add("--json", type=Path, metavar="FILE", help="append a line of JSON for each fault")
    add("--resume", action="store_true", help="skip the faults that FILE of --json holds")
    add("--show", type=int, metavar="N", help="print the diff of the Nth fault drawn, and end")
    add("--list", action="store_true", help="print what is drawn, and end")
    add("--fail-under", type=float, metavar="PERCENT", help="exit with 1 below this share caught")
    options = parser.parse_args(given)
    if options.resume and not options.json:
        parser.error("--resume needs --json")
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the forks too
    root = forks.ROOT
    drawn = faults.draw(root, sources(root, options.only), options.count, options.seed)
    if options.show is not None:
        print(drawn[options.show - 1].diff())
        return 0
    say(f"{len(drawn)} faults drawn with seed {options.seed} from {' '.join(options.only)}")
    if options.list:
        for number, fault in enumerate(drawn, 1):
            print(f"#{number} {fault.mutation.key} (line {fault.mutation.line})")
            print("    - {}\n    + {}".format(*fault.changed))
        return 0
    known = {(v.key, v.source): v for v in report.read(options.json)} if options.resume else {}
    verdicts = try_all(drawn, known, options)
    print(report.tables(verdicts))
    return int(options.fail_under is not None and report.share(verdicts) < options.fail_under)


def try_all(
    drawn: Sequence[faults.Fault],
    known: dict[tuple[str, str], report.Verdict],
    options: argparse.Namespace,
) -> list[report.Verdict]:
    """A verdict on each fault, those that are known already first."""
    verdicts = []
    todo = []
    for number, fault in enumerate(drawn, 1):
        if verdict := known.get((fault.mutation.key, session.source_digest(fault))):
            verdicts.append(replace(verdict, number=number))
        else:
            todo.append((number, fault))
    if not todo:
        return verdicts
    say(f"{len(verdicts)} of them are known; importing the heavy packages")
    forks.warm()
    with session.slots(options.workers) as slots:
        atlas = survey(slots, options.tests)
        began = time.monotonic()
        trials = (session.Trial.plan(n, f, atlas, options.timeout_s).steps for n, f in todo)
        for count, verdict in enumerate(session.perform(trials, slots), 1):
            verdicts.append(verdict)
            if options.json:
                report.append(options.json, verdict)
            place = f"{verdict.file}:{verdict.line}"
            say(f"{count}/{len(todo)} #{verdict.number} {verdict.outcome:10} {place} "
                f"{verdict.seconds:.1f} s {verdict.by}")  # fmt: skip
        seconds = time.monotonic() - began
        say(f"{len(todo)} faults in {seconds:.0f} s: {seconds / len(todo):.1f} s each")
    return verdicts


def survey(slots: Sequence[session.Slot], tests: Iterable[str]) -> reach.Atlas:
    """What each file of tests runs; what cannot be used is named."""
    atlas = reach.Atlas(session.CACHE / "reach", forks.ROOT)
    missing = atlas.load(reach.test_files(forks.ROOT, tests))
    if missing:
        say(f"tracing {len(missing)} files of tests, once")
    for file in session.perform(map(session.tracing, missing), slots):
        atlas.add(file)
        say(f"traced {file.path}: {len(file.calls_s)} tests, {sum(file.calls_s.values()):.1f} s")
    for file in atlas.files.values():
        if file.note:
            say(f"left out: {file.path}: {file.note}")
        for test in file.failing:
            say(f"left out, fails without any fault: {test}")
    return atlas


def sources(root: Path, areas: Iterable[str]) -> list[str]:
    """Python files of folders, or files, relative to `root`."""
    files: set[str] = set()
    for area in areas:
        path = root / area
        if not path.exists():
            raise SystemExit(f"there is no {area}")
        found = path.rglob("*.py") if path.is_dir() else (path,)
        files |= {str(file.relative_to(root)) for file in found}
    return sorted(files)


def say(text: str) -> None:
    """Progress; the tables alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
