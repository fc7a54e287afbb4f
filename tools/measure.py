"""Measure the code: lengths of files and functions, branches, types, documentation, duplicates.

    python tools/measure.py                  print the table for this tree
    python tools/measure.py --root ELSEWHERE print it for another checkout
    python tools/measure.py --check          end with status 1 where a limit is broken (`make lint` runs this)

Reads the source only, imports nothing of it, and needs nothing but Python. Limits, and what may be above them, are in
pyproject.toml under ``tool.measure``.

How things are counted:

* A file's lines are all its lines. A function's lines run from its ``def`` to its last line, docstring included.
* A branch is an ``if`` or ``elif``, a loop, an ``except``, a ``case``, a conditional expression, an ``and`` or ``or``,
  a comprehension and each ``if`` in one. Nested functions count towards the function that holds them.
* Typed: functions of which every parameter (but ``self`` and ``cls``) and the return value have an annotation.
* Documented: public functions, methods, classes and modules that have a docstring.
* ``Any``: every occurrence of the word in the text, imports included. ``dict[str, Any]``: every occurrence of exactly
  this text; the line below it adds ``Mapping[str, Any]``.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("glscl", "tune", "cluster")
"""Whose figures are printed."""
CHECKED = (*PACKAGES, "stress", "benchmarks", "tools")
"""Whose limits are checked."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Limits:
    """Most lines of a function and of a module, most branches, and what may be above: ``path::name`` or path."""

    function_lines: int = 70
    branches: int = 12
    module_lines: int = 350
    long_functions: frozenset[str] = frozenset()
    branched_functions: frozenset[str] = frozenset()
    long_modules: frozenset[str] = frozenset()


def read_limits(path: Path) -> Limits:
    """The limits that a pyproject.toml sets."""
    settings = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("measure", {})
    plain = Limits()
    return Limits(
        function_lines=settings.get("function-lines", plain.function_lines),
        branches=settings.get("branches", plain.branches),
        module_lines=settings.get("module-lines", plain.module_lines),
        long_functions=frozenset(settings.get("long-functions", ())),
        branched_functions=frozenset(settings.get("branched-functions", ())),
        long_modules=frozenset(settings.get("long-modules", ())),
    )


@dataclass(frozen=True, slots=True)
class Function:
    """One function or method."""

    path: str
    name: str
    lines: int
    branches: int
    parameters: int
    is_typed: bool
    body: str
    """Its statements without docstring, as one text: equal for functions that do the same."""
    formats_number: bool

    def __str__(self) -> str:
        return f"{self.path}::{self.name}"


@dataclass(frozen=True, slots=True)
class Module:
    """One source file."""

    path: str
    lines: int
    text: str
    functions: tuple[Function, ...]
    documented: int
    documentable: int


_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)


def count_branches(function: Definition) -> int:
    """Branches of a function: see the module's docstring."""
    count = 0
    for node in ast.walk(function):
        if isinstance(node, _BRANCHES):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
    return count


def _parameters(function: Definition) -> list[ast.arg]:
    every = function.args
    named = [*every.posonlyargs, *every.args, *every.kwonlyargs]
    return [*named, *(star for star in (every.vararg, every.kwarg) if star is not None)]


def _is_typed(function: Definition) -> bool:
    first = {"self", "cls"}
    annotated = all(one.annotation is not None or one.arg in first for one in _parameters(function))
    return annotated and function.returns is not None


def _formats_number(function: Definition) -> bool:
    """Whether all that a function does is to write a number as text: at most two parameters and four statements."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if len(body) > 4 or len(_parameters(function)) > 2 or ast.unparse(function.returns or ast.Constant(0)) != "str":
        return False
    specs = [node.format_spec for node in ast.walk(function) if isinstance(node, ast.FormattedValue)]
    return 0 < len(specs) <= 2 and any(
        spec and re.search(r"[.,][\d,]*[fge%]?'|,'", ast.unparse(spec)) for spec in specs
    )


def _functions(path: str, tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Definition):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield Function(
                path=path,
                name=node.name,
                lines=(node.end_lineno or node.lineno) - node.lineno + 1,
                branches=count_branches(node),
                parameters=len(_parameters(node)),
                is_typed=_is_typed(node),
                body="\n".join(ast.unparse(statement) for statement in body),
                formats_number=_formats_number(node),
            )


def _public(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | Definition]:
    """The module, its public classes and functions, and the public methods of those classes."""
    yield tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Definition) and not node.name.startswith("_"):
            yield node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, Definition) and not inner.name.startswith("_"):
                    yield inner


def read_module(root: Path, path: Path) -> Module:
    """Parse one file and measure it."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    name = path.relative_to(root).as_posix()
    public = list(_public(tree))
    documented = sum(ast.get_docstring(node) is not None for node in public)
    return Module(name, text.count("\n"), text, tuple(_functions(name, tree)), documented, len(public))


def read_modules(root: Path, packages: Sequence[str] = PACKAGES) -> list[Module]:
    """Measure every file of the packages, in the order of their paths."""
    paths = sorted(path for package in packages for path in (root / package).rglob("*.py"))
    return [read_module(root, path) for path in paths]


def quantile(numbers: Sequence[int], share: float) -> int:
    """The number below which ``share`` of the numbers lie (0 of none)."""
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def find_duplicates(functions: Sequence[Function]) -> list[list[Function]]:
    """Functions of several statements that are written out more than once."""
    groups: dict[str, list[Function]] = defaultdict(list)
    for function in functions:
        if function.body.count("\n") or len(function.body) > 60:
            groups[function.body].append(function)
    return [group for group in groups.values() if len(group) > 1]


def _count(modules: Sequence[Module], pattern: str) -> int:
    return sum(len(re.findall(pattern, module.text)) for module in modules)


def describe(modules: Sequence[Module], tests: int, limits: Limits) -> str:
    """The table, one figure a line."""
    functions = [function for module in modules for function in module.functions]
    lengths = [module.lines for module in modules]
    sizes = [function.lines for function in functions]
    longest = max(functions, key=lambda function: function.lines)
    branched = max(functions, key=lambda function: function.branches)
    documented = sum(module.documented for module in modules) / sum(module.documentable for module in modules)
    typed = sum(function.is_typed for function in functions) / len(functions)
    long, many, large = (
        _above({str(f): f.lines for f in functions}, limits.function_lines),
        _above({str(f): f.branches for f in functions}, limits.branches),
        _above({module.path: module.lines for module in modules}, limits.module_lines),
    )
    rows = (
        ("files", len(modules)),
        ("lines", f"{sum(lengths):,}"),
        ("file: median, p90, max", f"{quantile(lengths, 0.5)}, {quantile(lengths, 0.9)}, {max(lengths)}"),
        ("functions", f"{len(functions):,}"),
        ("function: median, p95, longest", f"{quantile(sizes, 0.5)}, {quantile(sizes, 0.95)}, {longest.lines}"),
        ("longest function", longest),
        ("most branches", f"{branched.branches} ({branched})"),
        ("typed", f"{typed:.1%}"),
        ("documented", f"{documented:.1%}"),
        ("test files", tests),
        (f"functions above {limits.function_lines} lines", _list(long)),
        (f"functions above {limits.branches} branches", _list(many)),
        (f"modules above {limits.module_lines} lines", _list(large)),
        ("Any", _count(modules, r"\bAny\b")),
        ("dict[str, Any]", _count(modules, r"\bdict\[str, Any\]")),
        ("dict[str, Any] and Mapping[str, Any]", _count(modules, r"\b(?:dict|Mapping)\[str, Any\]")),
        *describe_duplicates(modules, functions),
    )
    return "\n".join(f"{name}: {value}" for name, value in rows)


def _above(sizes: Mapping[str, int], limit: int) -> dict[str, int]:
    """Those above a limit, the largest first."""
    above = {name: size for name, size in sizes.items() if size > limit}
    return dict(sorted(above.items(), key=lambda item: -item[1]))


def _list(counts: Mapping[str, int]) -> str:
    """How many there are, and each on a line."""
    return f"{len(counts)}" + "".join(f"\n    {name} {count}" for name, count in counts.items())


def describe_duplicates(modules: Sequence[Module], functions: Sequence[Function]) -> list[tuple[str, str]]:
    """What is written more than once, each with its count and its places."""
    differing = {str(function): function.lines for function in functions if "differing" in function.name}
    wide = {str(function): function.parameters for function in functions if function.parameters > 12}
    formats = {str(function): function.lines for function in functions if function.formats_number}
    twice = [" = ".join(map(str, group)) for group in find_duplicates(functions)]
    return [
        ("pydantic's first error made a message", _where(modules, r"\.errors\([^)]*\)\[0\]")),
        ("objects gathered over ranks", _where(modules, r"\b(?:all_)?gather_object\(")),
        ("functions that only format a number", _list(formats)),
        ("functions that compare configurations", _list(differing)),
        ("functions of more than 12 parameters", _list(wide)),
        ("functions written twice", "\n    ".join([str(len(twice)), *twice])),
    ]


def _where(modules: Sequence[Module], pattern: str) -> str:
    """How often a pattern occurs, and in which modules."""
    counts = {module.path: len(re.findall(pattern, module.text)) for module in modules}
    places = "".join(f"\n    {path} {count}" for path, count in counts.items() if count)
    return f"{sum(counts.values())}{places}"


def broken_limits(modules: Sequence[Module], limits: Limits) -> list[str]:
    """What is above a limit without being listed, and what is listed without need."""
    functions = [function for module in modules for function in module.functions]
    checks = (
        ("lines", {str(f): f.lines for f in functions}, limits.function_lines, limits.long_functions),
        ("branches", {str(f): f.branches for f in functions}, limits.branches, limits.branched_functions),
        ("lines", {module.path: module.lines for module in modules}, limits.module_lines, limits.long_modules),
    )
    problems = []
    for what, sizes, limit, listed in checks:
        above = _above(sizes, limit)
        problems += [f"{name}: {above[name]} {what}, more than {limit}" for name in sorted(above.keys() - listed)]
        problems += [f"{name}: within the {limit} {what}, so take it off the list" for name in listed - above.keys()]
    return problems


def main() -> int:
    """Print the table, or check the limits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="checkout to measure")
    parser.add_argument("--check", action="store_true", help="only name what breaks a limit")
    options = parser.parse_args()
    limits = read_limits(options.root / "pyproject.toml")
    if options.check:
        problems = broken_limits(read_modules(options.root, CHECKED), limits)
        print("\n".join(problems) or "lengths and branches: within the limits")
        return 1 if problems else 0
    modules = read_modules(options.root)
    print(describe(modules, len(list((options.root / "tests").rglob("test_*.py"))), limits))
    return 0


if __name__ == "__main__":
    sys.exit(main())
