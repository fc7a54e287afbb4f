"""Completion in bash, zsh and fish: their scripts are sourced, and asked."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from glscl.cli import main
from glscl.commands import list_commands
from glscl.models.heads import head_names
from glscl.options.flags import is_positional
from glscl.options.mistakes import annotated_keys
from glscl.options.packaged import preset_names

BASH = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_glscl
printf '%s\\n' "${COMPREPLY[@]}"
"""
SHELLS = ("bash", "fish")
HEADS = set(head_names())
CASES: list[tuple[str, set[str]]] = [
    ("glscl sha", {"shards"}),
    ("glscl shards ", {name.split()[1] for name in list_commands() if name.startswith("shards ")}),
    ("glscl shards build --ben", {"--benchmark"}),
    ("glscl shards build --benchmark ms", {"msrvtt", "msvd"}),
    ("glscl train --model.head ", HEADS),
    ("glscl train --model.freeze towers --model.head x", {"xclip", "xpool"}),
    ("glscl train --training.zero", {"--training.zero-stage"}),
    ("glscl train --training.zero-stage ", {"0", "1", "2", "3"}),
    ("glscl train --loss.tem", set()),
    ("glscl train --data.no", set()),
    ("glscl train --training.no-t", {"--training.no-tf32"}),
    ("glscl train --config m", {"msrvtt", "msvd", "my.yaml"}),
    ("glscl study --config toy_fa", {"toy_factors"}),
    ("glscl eval --frames single s", {"single", "shuffled"}),
    ("glscl eval --normalisations si", set()),
    ("glscl eval --run ", {"runs/first"}),
    ("glscl eval --run runs/f", {"runs/first"}),
    ("glscl submit --no-wait -- train --model.head x", {"xclip", "xpool"}),
    ("glscl presets sw", {"sweep"}),
    ("glscl completion ", {"bash", "zsh", "fish"}),
    ("glscl jobs status --", {"--help", "--address"}),
    ("glscl trian --", set()),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, another folder beside it, and a YAML file."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("runs/first", "runs/notes", "videos"):
        (root / folder).mkdir(parents=True)
    (root / "runs/first/status.json").write_text("{}")
    (root / "my.yaml").touch()
    return root


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The scripts as `glscl completion` prints them."""
    folder = tmp_path_factory.mktemp("scripts")
    capture = pytest.MonkeyPatch()
    written = {}
    for shell in ("bash", "zsh", "fish"):
        written[shell] = folder / f"glscl.{shell}"
        with written[shell].open("w", encoding="utf-8") as file, capture.context() as patched:
            patched.setattr("sys.stdout", file)
            assert main(["completion", shell]) == 0
    return written


def complete(shell: str, script: Path, line: str, folder: Path) -> set[str]:
    """What a shell offers at the end of a command line."""
    environment = os.environ | {"PATH": "/usr/bin:/bin"}  # no glscl there: completing starts none
    if shell == "bash":
        words = [*line.split(), ""] if line.endswith(" ") else line.split()
        command = ["bash", "--norc", "-c", BASH, "bash", str(script), *words]
    else:
        command = ["fish", "--no-config", "-c", f"source {script}; complete -C {line!r}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    begun = "" if line.endswith(" ") else line.split()[-1]  # fish also offers what only has these letters in it
    return {word for row in done.stdout.splitlines() if (word := row.partition("\t")[0]).startswith(begun) and word}


@pytest.mark.parametrize(("line", "offered"), CASES, ids=[line for line, _ in CASES])
def test_bash_and_fish_offer(scripts: dict[str, Path], project: Path, line: str, offered: set[str]) -> None:
    for shell in filter(shutil.which, SHELLS):
        assert complete(shell, scripts[shell], line, project) == offered, shell


def test_every_command_and_option_is_there(scripts: dict[str, Path], project: Path) -> None:
    names = {name.split()[0] for name in list_commands()}
    assert complete("bash", scripts["bash"], "glscl ", project) == names
    assert set(preset_names()) < complete("bash", scripts["bash"], "glscl train --config ", project)
    rows = {tuple(row.split("\t")[:2]) for row in scripts["bash"].read_text(encoding="utf-8").splitlines()}
    for command in list_commands().values():
        kind = command.options()
        for name, _ in annotated_keys(kind) if kind else ():
            if not is_positional(kind, name):
                assert (command.name, f"--{name.replace('_', '-')}") in rows


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(
    ("typed", "shown"),
    [("glscl shards bui", "glscl shards build "), ("glscl train --model.head xcl", "--model.head xclip ")],
)
def test_zsh_completes_what_is_typed(scripts: dict[str, Path], project: Path, typed: str, shown: str) -> None:
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(project)
        os.execvpe("zsh", ["zsh", "-f", "-i"], os.environ | {"TERM": "dumb", "PS1": "> "})
    try:
        source = f"autoload -Uz compinit; compinit -u -D; source {scripts['zsh']}; echo rea''dy\n"
        os.write(terminal, source.encode())
        assert "ready" in read_until(terminal, "ready")
        os.write(terminal, typed.encode() + b"\t")
        assert shown in read_until(terminal, shown)
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def read_until(terminal: int, words: str, limit_s: float = 120.0) -> str:
    """What a terminal shows until it shows these words."""
    shown, deadline = "", time.monotonic() + limit_s
    while words not in shown and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 1 << 16).decode(errors="replace")
    return shown


@pytest.mark.parametrize("words", [[], ["ksh"], ["bash", "zsh"]])
def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(["completion", *words]) == 2
    assert "takes one shell: bash, zsh, fish" in capsys.readouterr().out
