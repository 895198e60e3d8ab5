"""What became of the faults: a line of JSON each, and the tables at the end."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.mutants.faults import Fault

CAUGHT = ("caught", "timeout", "crash")
NOT_CAUGHT = ("missed", "unreached")
EQUIVALENT_FILE = Path(__file__).with_name("equivalent.toml")


@dataclass(frozen=True)
class Verdict:
    """`outcome` is one of

    caught      a test failed, or could not be collected
    timeout     the tests did not end
    crash       the process of the tests died by a signal
    missed      all tests passed
    unreached   no test of the pool runs the line
    equivalent  listed in `equivalent.toml`: no test can tell
    error       pytest itself could not run; look at why
    """

    number: int
    key: str
    file: str
    line: int
    operator: str
    before: str
    after: str
    outcome: str
    seconds: float
    tests: int
    by: str
    source: str  # hash of the file before the change

    @property
    def area(self) -> str:
        return "/".join(self.file.split("/")[:2])


class Equivalents:
    """Known changes that change nothing: `[[equivalent]]` with file, before, after and reason."""

    def __init__(self, path: Path = EQUIVALENT_FILE) -> None:
        tables = tomllib.loads(path.read_text("utf-8")).get("equivalent", [])
        self.reasons = {(t["file"], t["before"], t["after"]): str(t["reason"]) for t in tables}

    def reason(self, fault: Fault) -> str | None:
        before, after = (" ".join(text.split()) for text in fault.changed)
        return self.reasons.get((fault.mutation.file, before, after))


def read(path: Path) -> list[Verdict]:
    """The lines of a report; one that was cut off is left out."""
    verdicts = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            verdicts.append(Verdict(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return verdicts


def append(path: Path, verdict: Verdict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(verdict)) + "\n")


def share(verdicts: Sequence[Verdict]) -> float:
    """Percent caught, of those that could be."""
    caught = sum(v.outcome in CAUGHT for v in verdicts)
    counted = caught + sum(v.outcome in NOT_CAUGHT for v in verdicts)
    return 100 * caught / counted if counted else 100.0


def tables(verdicts: Sequence[Verdict]) -> str:
    """Counts for each area, then the faults that were not caught, and those with errors."""
    lines = [
        f"{'area':28}{'drawn':>7}{'caught':>8}{'(timeout)':>11}{'missed':>8}{'unreached':>11}"
        f"{'equivalent':>12}{'error':>7}{'share':>8}"
    ]
    areas = sorted({v.area for v in verdicts})
    for area in [*areas, "all"]:
        rows = [v for v in verdicts if area in (v.area, "all")]
        count = {
            outcome: sum(v.outcome == outcome for v in rows)
            for outcome in (*CAUGHT, *NOT_CAUGHT, "equivalent", "error")
        }
        caught = sum(count[outcome] for outcome in CAUGHT)
        lines.append(
            f"{area:28}{len(rows):7}{caught:8}{count['timeout']:11}{count['missed']:8}"
            f"{count['unreached']:11}{count['equivalent']:12}{count['error']:7}{share(rows):7.1f}%"
        )
    for outcomes, title in ((NOT_CAUGHT, "Not caught"), (("error",), "Errors")):
        listed = sorted(
            (v for v in verdicts if v.outcome in outcomes), key=lambda v: (v.file, v.line)
        )
        if listed:
            lines += ["", f"{title}:"]
        for v in listed:
            tried = f"{v.tests} tests passed" if v.outcome == "missed" else v.outcome
            lines += [f"#{v.number} {v.file}:{v.line} {v.operator} ({tried})"]
            lines += [f"    - {v.before}", f"    + {v.after}"]
            lines += [f"    {v.by}"] if v.outcome == "error" else []
    return "\n".join(lines)
