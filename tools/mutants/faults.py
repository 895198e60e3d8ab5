"""Draw single faults at random from source files. Their forms are the operators of cosmic-ray.

A *place* is where at least one operator applies: a comparison, a number, a condition. A draw picks
places uniformly and without repetition, then one of the mutations possible at each. (If mutations
were drawn instead, one `+`, which eleven other operators can replace, would weigh eleven times as
much as one `not`, and most of its replacements fail at once in any test.)

Left out is what no test could or should notice:

- type annotations, except for the calls in them (`Field(ge=1)` is read by pydantic), and aliases
  of types at the top of a module;
- `if TYPE_CHECKING`, `if __name__ == "__main__"`, and all arguments of log calls and warnings;
- `==` for `is` and the reverse, which are the same for enums, small numbers and short strings;
- decorators that only type checkers read, that only save time, or without which any use fails, and
  the arguments of `@dataclass`;
- `VariableReplacer` and `VariableInserter`, which insert random numbers.
"""

from __future__ import annotations

import ast
import difflib
import random
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import parso
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Name, PythonLeaf, String
from parso.tree import BaseNode, Leaf, NodeOrLeaf

BINARY, COMPARISON, UNARY = (
    f"Replace{kind}Operator_" for kind in ("Binary", "Comparison", "Unary")
)
BINARY_PARENTS = {"arith_expr", "term", "expr", "and_expr", "xor_expr", "shift_expr", "power"}
SKIPPED_OPERATORS = {"VariableReplacer", "VariableInserter"} | {
    f"{COMPARISON}{one}_{other}"
    for pair in (("Eq", "Is"), ("NotEq", "IsNot"))
    for one, other in (pair, pair[::-1])
}
SKIPPED_DECORATORS = re.compile(
    r"@(\w+\.)*(override|overload|abstractmethod|final|runtime_checkable|cache|lru_cache|dataclass|"
    r"property|cached_property|staticmethod|classmethod|contextmanager|asynccontextmanager)\b"
)
SKIPPED_CALLS = re.compile(r"(self\.)?_?(logger|log|warnings)\.\w+\(|logging\.\w+\(|print\(")
SKIPPED_CONDITIONS = re.compile(r"(typing\.)?TYPE_CHECKING$|__name__ ==")


@dataclass(frozen=True, order=True)
class Mutation:
    """One operator at one place of a file; `occurrence` counts its places there from zero."""

    file: str
    line: int
    column: int
    operator: str
    occurrence: int

    @property
    def key(self) -> str:
        return f"{self.file}:{self.operator}:{self.occurrence}"


@dataclass(frozen=True)
class Fault:
    """A mutation with the source that it makes."""

    mutation: Mutation
    before: str
    after: str

    @property
    def changed(self) -> tuple[str, str]:
        """The changed lines before and after, without indentation, joined by spaces."""
        lines = difflib.ndiff(self.before.splitlines(), self.after.splitlines())
        marked = [line for line in lines if line[:2] in ("- ", "+ ")]
        old, new = ([m[2:].strip() for m in marked if m[0] == sign] for sign in "-+")
        return " ".join(old), " ".join(new)

    def diff(self) -> str:
        """A unified diff with three lines of context."""
        name = self.mutation.file
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), name, name, lineterm=""
        )
        return "\n".join(lines)


@cache
def operators() -> dict[str, type[Operator]]:
    """The operators in use, by name."""
    provider = OperatorProvider()
    return {name: provider[name] for name in provider if name not in SKIPPED_OPERATORS}


@cache
def _operators_like(prefix: str) -> list[tuple[str, Operator]]:
    """Instances of those whose name begins with `prefix`; for "" those with a name of their own."""
    families = BINARY, COMPARISON, UNARY
    return [
        (name, operator())
        for name, operator in operators().items()
        if (name.startswith(prefix) if prefix else not name.startswith(families))
    ]


def draw(root: Path, files: Iterable[str], count: int, seed: int) -> list[Fault]:
    """`count` faults of `files` (relative to `root`), or as many as there are places."""
    rng = random.Random(seed)
    sources = {file: (root / file).read_text("utf-8") for file in sorted(files)}
    places = [
        (file, place)
        for file, source in sources.items()
        for place in places_of(file, source).values()
    ]
    rng.shuffle(places)
    faults: list[Fault] = []
    for file, mutations in places:
        if len(faults) == count:
            break
        # Some mutations give no program, or the same one; another may be possible at the place.
        for mutation in rng.sample(mutations, len(mutations)):
            if fault := make(mutation, sources[file]):
                faults.append(fault)
                break
    return faults


def places_of(file: str, source: str) -> dict[tuple[int, int], list[Mutation]]:
    """All mutations of a file, by line (from one) and column (from zero) of their place."""
    counts: dict[str, int] = {}
    places: dict[tuple[int, int], list[Mutation]] = {}
    for node in _walk(_tree(source)):
        for name, operator in _candidates(node):
            for (line, column), _ in operator.mutation_positions(node):
                occurrence = counts.get(name, 0)
                counts[name] = occurrence + 1
                if not _is_skipped(node, name):
                    mutation = Mutation(file, line, column, name, occurrence)
                    places.setdefault((line, column), []).append(mutation)
    return places


def make(mutation: Mutation, source: str) -> Fault | None:
    """The fault, or None where it gives no valid program or one that is the same."""
    operator = operators()[mutation.operator]()
    after = MutationVisitor.mutate_code(source, operator, mutation.occurrence)
    if after is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            compile(after, mutation.file, "exec", dont_inherit=True)
            same = ast.dump(ast.parse(after)) == ast.dump(ast.parse(source))
    except (SyntaxError, ValueError):
        return None
    return None if same else Fault(mutation, source, after)


def _tree(source: str) -> NodeOrLeaf:
    tree: NodeOrLeaf = parso.parse(source)  # type: ignore[no-untyped-call]
    return tree


def _walk(node: NodeOrLeaf) -> Iterator[NodeOrLeaf]:
    """In the order in which cosmic-ray counts occurrences."""
    yield node
    if isinstance(node, BaseNode):
        for child in node.children:
            yield from _walk(child)


def _candidates(node: NodeOrLeaf) -> list[tuple[str, Operator]]:
    """The operators that can apply to a node of this kind; trying all 200 would take minutes."""
    if isinstance(node, (Name, String)):
        return []
    if node.type == "operator":
        return _operators_like(BINARY)
    if node.type == "comparison":
        return _operators_like(COMPARISON)
    if node.type in ("factor", "not_test"):
        return _operators_like(UNARY)
    if isinstance(node, Leaf) and not isinstance(node, PythonLeaf):
        return []
    return _operators_like("")


def _is_skipped(node: NodeOrLeaf, operator: str) -> bool:
    parent = node.parent
    if operator.startswith(BINARY) and (parent is None or parent.type not in BINARY_PARENTS):
        return True  # `*` and `**` of an argument or a display
    if node.type == "decorator":
        return bool(SKIPPED_DECORATORS.match(_code(node)))
    if node.type in ("if_stmt", "while_stmt"):
        condition: Any = node
        if SKIPPED_CONDITIONS.match(_code(condition.children[1])):
            return True
    return _is_in_annotation(node) or any(_is_unread(outer) for outer in _ancestors(node))


def _is_in_annotation(node: NodeOrLeaf) -> bool:
    """Whether only a type checker reads it. What is called in an annotation, pydantic reads."""
    for outer in (node, *_ancestors(node)):
        parent: Any = outer.parent
        if parent is None or (outer.type == "trailer" and _code(outer).startswith("(")):
            return False
        index = parent.children.index(outer)
        if parent.type in ("annassign", "tfpdef") and parent.children[index - 1] == ":":
            return True
        if parent.type == "funcdef" and parent.children[index - 1] == "->":
            return True
    return False


def _is_unread(node: NodeOrLeaf) -> bool:
    """Whether it only reports or declares: a log call, a skipped condition, an alias of a type."""
    if node.type == "decorator":
        return _code(node).startswith("@dataclass(")
    if node.type == "atom_expr":
        return bool(SKIPPED_CALLS.match(_code(node)))
    parent: Any = node.parent
    if parent is not None and parent.type in ("if_stmt", "while_stmt"):
        return node is parent.children[1] and bool(SKIPPED_CONDITIONS.match(_code(node)))
    if node.type == "expr_stmt" and parent is not None and parent.parent.type == "file_input":
        return bool(re.match(r"[A-Z]\w*[a-z]\w* = [\w.\[\], ]+(\|[\w.\[\], ]+)+$", _code(node)))
    return False


def _ancestors(node: NodeOrLeaf) -> Iterator[NodeOrLeaf]:
    while node.parent is not None:
        node = node.parent
        yield node


def _code(node: NodeOrLeaf) -> str:
    code: str = node.get_code(include_prefix=False)  # type: ignore[no-untyped-call]
    return code
