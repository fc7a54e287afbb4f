"""The snippets of the documentation: every command line is parsed by its command, every YAML block by its model.

What runs them: `tests/e2e/test_readme.py` (README.md), `tests/retrieval/test_docs.py` (python.md, export.md),
`tests/models/test_registry.py` (heads.md), `tests/e2e/test_own_videos.py` (own-videos.md, and builds of benchmarks.md).
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from glscl.cli import main
from glscl.commands import find_command, list_commands
from glscl.data.benchmarks import benchmark_names, find_benchmark
from glscl.errors import UserError
from glscl.options.packaged import preset_names, preset_text
from glscl.runs.options import merge
from glscl.service.options import Serve
from glscl.study.options import StudyConfig
from glscl.training.config import run_config, validate
from tools.check_docs import documents
from tune.options import SweepConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in documents(ROOT)}
OTHER_PROGRAMS = {"make", "source", "mkdir", "export", "ray", "docker", "kubectl", "hf", "pip", "python", "base64"}
OTHER_PROGRAMS |= {"curl", "sbatch", "sky"}
"""What the blocks of shell call beside glscl."""
RUN_BY = {
    "README.md": "tests/e2e/test_readme.py",
    "docs/python.md": "tests/retrieval/test_docs.py",
    "docs/export.md": "tests/retrieval/test_docs.py",
    "docs/heads.md": "tests/models/test_registry.py",
    "docs/own-videos.md": "tests/e2e/test_own_videos.py",
    "docs/index.md": "tests/index/test_docs.py",
    "docs/tools.md": "tests/retrieval/test_mteb.py",
}
"""Pages with Python, and the tests that run it."""


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell_commands(block: str) -> Iterator[list[str]]:
    """The words of every command of a block of shell; what is written to a file ends with ``>`` and the file."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def preset_commands() -> Iterator[tuple[str, str]]:
    """The command lines in the comments of packaged configurations."""
    texts = {f"preset {name}": preset_text(name) for name in preset_names()}
    texts |= {f"study {name}": StudyConfig.text(name) for name in StudyConfig.names()}
    texts |= {f"sweep {name}": SweepConfig.text(name) for name in SweepConfig.names()}
    for name, text in texts.items():
        for line in re.findall(r"^ *# +(?:\w+: +)?(glscl .*)$", text, re.MULTILINE):
            if "..." not in line:  # what is left out stands in another line
                yield name, re.sub(r", edit, |, strike out [^,]*, [^,]*, |  +\(.*", "; ", line).partition(" `")[0]


COMMANDS = [
    (name, words)
    for name, text in [
        *((page, block) for page, text in PAGES.items() for block in blocks(text, "bash")),
        *preset_commands(),
    ]
    for words in shell_commands(text)
]


class Parsed(Exception):  # noqa: N818 (it is no error)
    """A command has read its options."""


def parse(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Let a command read its options, and check the configuration that they name; nothing is started.

    Raises `UserError`: bad input.
    """
    if "--help" in words:
        assert main(list(words)) == 0
        return
    command, rest = find_command(words)
    if command.name == "submit":
        parse(rest[list(rest).index("--") + 1 :], patch)
    if command.name == "train":
        run_config([word for word in rest if word != "--dry-run"], "glscl train").resolved()
        return
    module = importlib.import_module(f"glscl.commands.{command.name.replace(' ', '_')}")
    found: list[Any] = []

    def read(*arguments: Any, **keywords: Any) -> None:
        found.append(reader(*arguments, **keywords))
        raise Parsed

    name = next((name for name in ("parse_options", "shard_set_argument") if hasattr(module, name)), None)
    if name is None:  # it takes words alone
        assert command.name in ("presets", "towers", "completion", "index delete"), command.name
        if command.name == "presets":
            assert main(list(words)) == 0
        return
    reader = getattr(module, name)
    with patch.context() as patched:
        patched.setattr(module, name, read)
        patched.setattr(module, "check_environment", lambda: None, raising=False)
        with pytest.raises(Parsed):
            command.run(rest)
    if command.name in ("study", "sweep"):
        kind = {"study": StudyConfig, "sweep": SweepConfig}[command.name]
        kind.load(found[0].config, **found[0].changed_keys())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, but for the configuration that pages call ``my.yaml``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(preset_text("msrvtt"), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("where", "words"), COMMANDS, ids=[f"{where}: {' '.join(words)[:60]}" for where, words in COMMANDS]
)
def test_every_command_line_is_read_by_its_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, words: list[str]
) -> None:
    if words[0] != "glscl":
        assert words[0].partition("=")[0] in OTHER_PROGRAMS, where
        return
    if words[1:2] == ["study"] and "my.yaml" in words:
        (folder / "my.yaml").write_text(StudyConfig.text("benchmarks"), encoding="utf-8")
    if words[1:2] == ["sweep"] and "my.yaml" in words:
        (folder / "my.yaml").write_text(SweepConfig.text("toy"), encoding="utf-8")
    words = words[: words.index(">")] if ">" in words else words
    if len(words) > 1:
        parse(words[1:], monkeypatch)


def test_the_commands_were_found() -> None:
    found = {
        find_command(words[1:])[0].name
        for _, words in COMMANDS
        if words[0] == "glscl" and words[1:2] not in ([], ["--help"])
    }
    assert found >= {
        "train",
        "eval",
        "export",
        "study",
        "sweep",
        "encode",
        "shards build",
        "submit",
        "doctor",
        "search",
    }
    assert len(COMMANDS) > 100
    assert {"docs/own-videos.md", "preset msvd", "study benchmarks"} <= {where for where, _ in COMMANDS}


@pytest.mark.parametrize(
    "line",
    [
        "glscl train --config msrvtt --training.zero-stage 4",
        "glscl train --config msrvt",
        "glscl shards build --benchmark msrvtt",
        "glscl study --config toyy",
        "glscl eval --run r --test s --alphas much",
        "glscl submit -- train --config nowhere.yaml",
    ],
)
def test_a_wrong_line_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    with pytest.raises(UserError):
        parse(line.split()[1:], monkeypatch)


# ------------------------------------------------------------------------------------------------------------- YAML


def merged(base: dict[str, Any], block: dict[str, Any]) -> dict[str, Any]:
    """A packaged study with the keys of a block; what belongs to keys that were replaced is left out."""
    values = {**base, **block}
    for key, dependent in (("variants", "comparisons"), ("variants", "zero_shot"), ("conditions", "matched")):
        if key in block and dependent not in block:
            values.pop(dependent, None)
    return values


def check_yaml(text: str, page: str = "docs/study.md") -> None:
    """Validate a block as a study, on one of the packaged ones. Raises `UserError`: it is wrong on each."""
    block = yaml.safe_load(text)
    error: Exception | None = None
    for name in ("toy", "toy_factors"):
        try:
            study = StudyConfig.model_validate(merged(yaml.safe_load(StudyConfig.text(name)), block))
            for condition in study.conditions.values():
                for variant in study.variants.values():
                    validate(merge(study.run, condition, variant.run), page)
            return
        except (ValueError, UserError) as mistake:
            error = mistake
    raise UserError(str(error))


YAML = [(page, block) for page, text in PAGES.items() for block in blocks(text, "yaml")]


@pytest.mark.parametrize(("page", "block"), YAML, ids=[f"{page}: {block.splitlines()[0]}" for page, block in YAML])
def test_every_yaml_block_is_valid(page: str, block: str) -> None:
    if page == "docs/serve.md":  # a configuration of Ray Serve, whose arguments are ours
        (application,) = yaml.safe_load(block)["applications"]
        Serve.model_validate(application["args"])
        return
    assert page == "docs/study.md", "say which model validates the YAML of this page"
    check_yaml(block, page)


@pytest.mark.parametrize(
    "change", [("model: {head: mean_pool}", "model: {haed: mean_pool}"), ("comparisons", "comparison")]
)
def test_a_wrong_block_is_noticed(change: tuple[str, str]) -> None:
    block = next(block for _, block in YAML if "mean_pool_frozen" in block)
    with pytest.raises(UserError):
        check_yaml(block.replace(*change))


# ------------------------------------------------------------------------------------------------- Python and others


def test_every_block_is_of_a_kind_that_a_test_reads() -> None:
    for page, text in PAGES.items():
        kinds = set(re.findall(r"^```(\w+)$", text, re.MULTILINE))
        assert kinds <= {"bash", "python", "yaml", "toml", "text", "nginx"}, page
        assert "toml" not in kinds or page == "docs/heads.md"
        if "python" in kinds:
            assert Path(page).name in (ROOT / RUN_BY[page]).read_text(encoding="utf-8"), page


def test_programs_that_pages_name_have_the_options_that_they_give() -> None:
    """Benchmarks and stress tests, which are run by hand."""
    seen = 0
    for page, text in PAGES.items():
        for line in re.findall(r"`python ([^`]+)`", text.replace("\n", " ")):
            program, *words = line.split()
            if program == "-m":
                program = words.pop(0).replace(".", "/") + ".py"
            if not program.endswith(".py") or program.startswith("glscl") or "..." in words:
                continue
            source = (ROOT / program).read_text(encoding="utf-8")
            for option in [word for word in words if word.startswith("--")]:
                name = option[2:].replace("-", "_")
                assert option in source or re.search(rf"\b{name}\b", source), (page, line)
            seen += 1
    assert seen > 15


def test_the_page_of_the_benchmarks_lists_what_the_readers_know() -> None:
    rows = re.findall(
        r"^\| .*? \| `(\w+)`(?:, `(\w+)`)? \| (.*?) \| (.*?) \|", PAGES["docs/benchmarks.md"], re.MULTILINE
    )
    assert sorted(name for first, second, *_ in rows for name in (first, second) if name) == benchmark_names()
    for name, other, splits, files in rows:
        if not other:
            assert sorted(re.findall(r"`(\w+)`", splits)) == sorted(find_benchmark(name).splits)
            source = (ROOT / f"glscl/data/benchmarks/{name}.py").read_text(encoding="utf-8")
            for file in re.findall(r"`([\w.-]+)`", files):
                split = re.sub(r"^(val_1|val_2|train|val|test)(?=[_.])", "{split}", file)
                assert file in source or split in source or "{split}" + file[file.rindex("_") :] in source, (name, file)


def test_every_command_is_named_by_a_page() -> None:
    everything = "\n".join(PAGES.values())
    assert [name for name in list_commands() if f"glscl {name}" not in everything] == []
