"""Mutation testing: check that a test fails for every small change of the code that results depend on.

    python stress/mutants.py --sample 400 --seed 0 --output mutants.jsonl

Draws places in the modules of `TESTS` at random (cosmic-ray's operators: comparisons, arithmetic, numbers, booleans,
``and``/``or``, ``not``, loops, exceptions), changes one at a time in a copy of the tree, and runs the tests of that
module until one fails. Prints what survived, with its line, and the share that was killed. What no correct program
shows is left alone: annotations, imports for types, ``strict`` of zip, ``frozen`` and ``slots`` of dataclasses.
Survivors that ``stress/equivalent_mutants.toml`` explains do not count. A run goes on where it stopped: mutants that
``--output`` holds are not tried again; delete a line to try it again.
``--only PART`` draws from the modules whose path contains PART. Needs the ``mutation`` extra.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import signal
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from stress.mutant_runner import ROOT, Runner

_NAMES = {
    "glscl/losses/*.py": "losses models/test_registry models/test_parity training/test_world_size",
    "glscl/models/heads/*.py": "models/test_heads models/test_head_options models/test_parity evaluation/test_cost "
    "training/test_world_size",
    "glscl/training/engine.py": "training/test_engine training/test_optimiser training/test_zero_stages "
    "training/test_checkpoint",
    "glscl/training/global_batch.py": "training/test_world_size training/test_zero_stages",
    "glscl/training/collectives.py": "training/test_collectives training/test_world_size",
    "glscl/training/checkpoint/format.py": "training/test_checkpoint_files training/test_checkpoint",
    "glscl/training/checkpoint/transfer.py": "training/test_checkpoint_files training/test_checkpoint",
    "glscl/training/checkpoint/retention.py": "training/test_retention training/test_checkpoint",
    "glscl/data/plan.py": "data/test_plan data/test_stream",
    "glscl/data/stream.py": "data/test_stream data/test_shared_memory data/test_holes",
    "glscl/data/loader.py": "data/test_stream data/test_shared_memory",
    "glscl/data/video/*.py": "data/test_video data/test_display data/test_moments data/test_holes "
    "data/test_hostile_video data/test_torchcodec",
    "glscl/evaluation/metrics.py": "evaluation/test_metrics evaluation/test_scoring",
    "glscl/evaluation/ranks.py": "evaluation/test_metrics evaluation/test_scoring",
    **dict.fromkeys(
        (f"glscl/evaluation/{module}.py" for module in ("caches", "matches", "scoring", "similarity")),
        "evaluation/test_scoring evaluation/test_retrieval",
    ),
    "glscl/training/rank_scoring.py": "training/test_rank_scoring",
    "glscl/study/statistics/*.py": "study/test_statistics study/test_families",
    **dict.fromkeys(
        (f"glscl/study/{module}.py" for module in ("analysis", "panels", "comparisons")),
        "study/test_analysis study/test_report",
    ),
}
TESTS = {
    pattern: tuple(f"tests/{name}.py" if "/" in name else f"tests/{name}" for name in names.split())
    for pattern, names in _NAMES.items()
}
"""Modules that are changed, and the tests that have to notice, quick ones first."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of the code.

    Attributes:
        path: of the module, under the root.
        operator: cosmic-ray's name.
        occurrence: which of the places in the module that the operator could change.
        line: from 1.
        old, new: the line before and after.
    """

    path: str
    operator: str
    occurrence: int
    line: int
    old: str
    new: str

    @property
    def name(self) -> str:
        """What identifies the mutant as long as its line stays what it is."""
        return f"{self.path}: {self.old} -> {self.new}"


def draw(sample: int, seed: int, only: str) -> list[Mutant]:
    """Draw places in the modules, each with one of the changes that are possible there."""
    generator = random.Random(seed)
    places = [
        (path, place)
        for pattern in TESTS
        for path in sorted(_sources(pattern))
        if only in str(path)
        for place in _places(path)
    ]
    generator.shuffle(places)
    mutants: list[Mutant] = []
    for path, variants in places:
        if len(mutants) == sample:
            break
        if mutant := _mutant(path, *generator.choice(variants)):
            mutants.append(mutant)
    return mutants


def _sources(pattern: str) -> Iterator[Path]:
    for path in ROOT.glob(pattern):
        yield from path.rglob("*.py") if path.is_dir() else [path]


def _places(path: Path) -> Iterator[list[tuple[str, int]]]:
    """Yield the changes (operator, occurrence) that are possible at each place of a module."""
    import cosmic_ray.plugins
    from cosmic_ray.ast import ast_nodes, get_ast_from_path

    tree = get_ast_from_path(path)
    skipped = _annotations(path.read_text(encoding="utf-8"))
    places: dict[tuple[str, tuple[int, int]], list[tuple[str, int]]] = defaultdict(list)
    for name in cosmic_ray.plugins.operator_names():
        operator = cosmic_ray.plugins.get_operator(name)
        if operator.arguments():
            continue
        positions = [start for node in ast_nodes(tree) for start, _ in operator().mutation_positions(node)]
        family = name.partition("_")[0]
        for occurrence, start in enumerate(positions):
            if not any(first <= start < last for first, last in skipped):
                places[family, start].append((name, occurrence))
    yield from (places[key] for key in sorted(places))


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Start and end (line, column) of every annotation and type alias of a module."""
    annotations: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            annotations.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            annotations.append(node.returns)
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id[0].isupper():
            annotations.append(node)  # Callable[[A | B], C] on the right of an alias
    return [
        ((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0))
        for node in annotations
        if node is not None
    ]


def _mutant(path: Path, operator: str, occurrence: int) -> Mutant | None:
    source = path.read_text(encoding="utf-8")
    changed = _mutated(source, operator, occurrence)
    if changed is None or _same_code(source, changed):
        return None
    lines = zip(source.splitlines(), changed.splitlines(), strict=False)
    number, (old, new) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
    name = str(path.relative_to(ROOT))
    return Mutant(name, operator, occurrence, number, " ".join(old.split()), " ".join(new.split()))


def _mutated(source: str, operator: str, occurrence: int) -> str | None:
    import cosmic_ray.plugins
    from cosmic_ray.mutating import mutate_code

    try:
        return mutate_code(source, cosmic_ray.plugins.get_operator(operator)(), occurrence)  # type: ignore[no-any-return]
    except AttributeError:  # cosmic-ray 8.7 cannot replace a dotted exception (`except av.error.FFmpegError`)
        return None


def _same_code(one: str, other: str) -> bool:
    try:
        return _observable(one) == _observable(other)
    except SyntaxError:
        return True  # no change of the program


def _observable(source: str) -> str:
    return ast.dump(_WithoutGuards().visit(ast.parse(source)))


class _WithoutGuards(ast.NodeTransformer):
    """Drops what changes nothing in a correct program: imports for types, ``strict`` of zip, dataclasses' guards."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if "TYPE_CHECKING" in ast.dump(node.test) else self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST | None:
        return None if node.arg in ("strict", "frozen", "slots") else self.generic_visit(node)


def tests_of(path: str) -> tuple[str, ...]:
    """The tests of a module."""
    return next(tests for pattern, tests in TESTS.items() if ROOT / path in set(_sources(pattern)))


def main() -> int:
    """Draw, try, report; exit status 1 below 95 % killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--runners", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    mutants = draw(arguments.sample, arguments.seed, arguments.only)
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    survived = {record["name"]: record["survived"] for record in map(json.loads, lines)}
    left = [mutant for mutant in mutants if mutant.name not in survived]
    print(f"{len(mutants)} mutants, {len(left)} to try", flush=True)
    with arguments.output.open("a") as output:
        survived |= try_mutants(left, arguments.runners, output)
    return report(mutants, survived)


def report(mutants: list[Mutant], survived: dict[str, bool]) -> int:
    """Print what survived, and the share that was killed; returns the exit status."""
    alive = sorted((m for m in mutants if survived[m.name]), key=lambda m: (m.path, m.line))
    reasons = tomllib.loads(Path(__file__).with_name("equivalent_mutants.toml").read_text(encoding="utf-8"))
    known = {name: group["why"] for group in reasons["equivalent"] for name in group["mutants"]}
    equivalent = {mutant.name: known[mutant.name] for mutant in alive if mutant.name in known}
    for mutant in alive:
        verdict = f"equivalent ({equivalent[mutant.name]})" if mutant.name in equivalent else "SURVIVED"
        print(f"{verdict}: {mutant.path}:{mutant.line}\n    {mutant.old}\n    {mutant.new}")
    score = 1 - (len(alive) - len(equivalent)) / (len(mutants) - len(equivalent))
    print(
        f"{len(mutants)} mutants: {len(mutants) - len(alive)} killed, {len(equivalent)} equivalent, "
        f"{len(alive) - len(equivalent)} survived: {100 * score:.1f} % of those that are not equivalent killed"
    )
    return int(score < 0.95)


def try_mutants(mutants: list[Mutant], number: int, output: IO[str]) -> dict[str, bool]:
    """Run the tests on every mutant, with a number of runners; returns, by name, whether it survived."""
    left = list(mutants)
    survived: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        runners = [Runner(Path(scratch), place) for place in range(number)]
        try:
            for tests in sorted({tests for mutant in left for tests in tests_of(mutant.path)}):
                if not runners[0].passes((tests,)):
                    raise SystemExit(f"{tests} fails without any change")

            def work(runner: Runner) -> None:
                while left:
                    mutant = left.pop(0)
                    start = time.monotonic()
                    source = (ROOT / mutant.path).read_text(encoding="utf-8")
                    changed = _mutated(source, mutant.operator, mutant.occurrence)
                    assert changed is not None
                    survived[mutant.name] = runner.survives(mutant.path, changed, tests_of(mutant.path))
                    record = {"name": mutant.name, "survived": survived[mutant.name], **asdict(mutant)}
                    record["seconds"] = round(time.monotonic() - start, 1)
                    print(json.dumps(record), file=output, flush=True)
                    print("SURVIVED" if record["survived"] else "killed  ", mutant.name, flush=True)

            pool = ThreadPoolExecutor(len(runners))  # not in a with block: an end by signal would wait for the threads
            list(pool.map(work, runners))
        finally:
            for runner in runners:
                runner.close()
    return survived


if __name__ == "__main__":
    raise SystemExit(main())
