"""The habits that `make lint` keeps: each check passes on the tree and fails where its rule is broken."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import check_docs, measure

ROOT = Path(__file__).resolve().parents[1]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]
    return subprocess.run(
        [*command, "--no-cache", "--no-logo"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in measure.PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_downward_and_in_no_circle() -> None:
    checked = lint_imports(ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("glscl/data/records.py", "from glscl.evaluation.metrics import recall", "glscl.data is not allowed to import"),
        ("glscl/losses/base.py", "def late():\n    import glscl.training.config", "glscl.losses is not allowed"),
        ("glscl/study/grid.py", "def late():\n    from tune import space", "glscl.study is not allowed to import tune"),
        (
            "glscl/training/engine.py",
            "def late():\n    import glscl.training.driver.launch",
            "engine is not allowed to import",
        ),
        ("cluster/doctor.py", "def late():\n    import glscl.evaluation.metrics", "cluster is not allowed to import"),
        ("glscl/data/limits.py", "def late():\n    import glscl.data.shards", "No cycles are allowed in glscl.data"),
    ],
    ids=["upward", "upward, lazy", "study to sweep", "training to its driver", "cluster to evaluation", "circle, lazy"],
)
def test_an_import_that_breaks_a_contract_fails(copy: Path, file: str, line: str, says: str) -> None:
    with (copy / file).open("a", encoding="utf-8") as opened:
        opened.write(f"\n{line}\n")
    checked = lint_imports(copy)
    assert checked.returncode == 1
    assert says in checked.stdout


def test_every_package_has_a_layer() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in settings["contracts"] if contract["id"] == "layers")
    named = {name.strip(" ()") for layer in layers for name in layer.split("|")}
    packages = {f"glscl.{path.parent.name}" for path in ROOT.glob("glscl/*/__init__.py")}
    assert packages | {"tune", "cluster"} <= named


def test_functions_and_modules_are_within_the_limits() -> None:
    limits = measure.read_limits(ROOT / "pyproject.toml")
    assert measure.broken_limits(measure.read_modules(ROOT, measure.CHECKED), limits) == []


def test_a_long_function_a_branched_one_and_a_needless_exception_are_named(tmp_path: Path) -> None:
    source = (
        "def long():\n" + "    pass\n" * 3 + "\n\ndef branched(a):\n    return a if a and a or a else [b for b in a]\n"
    )
    (tmp_path / "module.py").write_text(source, encoding="utf-8")
    module = measure.read_module(tmp_path, tmp_path / "module.py")
    limits = measure.Limits(function_lines=3, branches=3, module_lines=7, long_functions=frozenset({"gone.py::gone"}))
    assert measure.broken_limits([module], limits) == [
        "module.py::long: 4 lines, more than 3",
        "gone.py::gone: within the 3 lines, so take it off the list",
        "module.py::branched: 4 branches, more than 3",
        "module.py: 8 lines, more than 7",
    ]


@pytest.mark.parametrize(
    ("body", "branches"),
    [
        ("if a: pass\n elif b: pass\n else: pass", 2),
        ("for a in b: pass\n while c: pass", 2),
        ("try: pass\n except A: pass\n except B: pass\n finally: pass", 2),
        ("match a:\n  case 1: pass\n  case _: pass", 2),
        ("return a if b and c and d else e", 3),
        ("return {a for a in b if c if d}", 3),
        ("def inner():\n  if a: pass", 1),
        ("with a: pass\n assert b", 0),
    ],
)
def test_branches_are_counted(body: str, branches: int) -> None:
    function = ast.parse(f"def f():\n {body}").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert measure.count_branches(function) == branches


def test_links_of_the_documentation_lead_somewhere() -> None:
    pages = check_docs.documents(ROOT)
    assert {"README.md", "architecture.md", "reliability.md"} <= {page.name for page in pages}
    assert [f"{page.name}: {problem}" for page in pages for problem in check_docs.broken_links(page)] == []


def test_a_link_without_its_file_or_heading_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Two words, `code`\n\n## Same\n\n## Same\n\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md#two-words-code) [b](#here) [c](https://x.org/y) [d](other.md#same-1) "
        "[e](gone.md) [f](other.md#no-heading) [g](#gone)\n```\n[h](gone.md)\n```\n"
    )
    assert list(check_docs.broken_links(page)) == [
        "gone.md: no such file",
        "other.md#no-heading: no such heading",
        "#gone: no such heading",
    ]


def test_command_lines_of_the_documentation_exist() -> None:
    wrong = [
        f"{page.name}: {problem}"
        for page in check_docs.documents(ROOT)
        for words in check_docs.command_lines(page.read_text(encoding="utf-8"))
        if (problem := check_docs.wrong_command(words, check_docs.help_text))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("glscl shards build --benchmark msrvtt \\\n    --short-side 224", None),
        ("glscl shards biuld --benchmark msrvtt", "glscl shards biuld --benchmark msrvtt: no such command"),
        ("make x && glscl eval --runn x", "glscl eval: no option --runn"),
        ("glscl submit --name a -- train --config toy --nothing 1", "glscl train: no option --nothing"),
        ("glscl train --training.num_workers 2 # --gone", None),
    ],
)
def test_a_command_line_that_does_not_exist_is_named(line: str, problem: str | None) -> None:
    (words,) = check_docs.command_lines(f"```bash\n{line}\n```\n")
    assert check_docs.wrong_command(words, check_docs.help_text) == problem
