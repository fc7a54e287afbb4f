"""The commands of ``glscl``, one module each. A new command is one new file in this folder.

The file's name is the command: ``shards_build.py`` is `glscl shards build`. Files with a leading underscore are shared
by commands. Each command's file has

- ``HELP = "..."``, the line in `glscl --help`, and ``ORDER = 60``, the place of that line. They are read from the
  file's text, so that `glscl --help` and a misspelt command wait for no imports. Write them exactly like this.
- ``run(words, program)``, which takes the words after the command and returns the verdict. It raises `UserError` for
  bad input, and `CommandFailed` if something that ran elsewhere has failed.

An import stands inside a command's function for one reason only: it brings torch, Ray or what starts Ray, and a
misspelt option is refused before that.
"""

import importlib
import re
import shutil
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from glscl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from glscl.options import Options

_FIRST_STEPS = """\
New here?         glscl quickstart    train and test on made videos on a CPU
Your own videos:  glscl shards build --help, then glscl train --config tiny
A benchmark:      glscl presets       list what is ready-made
`glscl COMMAND --help` explains a command. Paths may be local or s3://."""
_CONSTANT = re.compile(r'^(HELP|ORDER) = ("[^"\n]*"|[0-9]+)$', re.MULTILINE)


class Command(NamedTuple):
    """A command, not yet imported."""

    order: int
    name: str
    help: str

    def run(self, words: Sequence[str]) -> str:
        """Import the command's module and run it; returns the verdict."""
        module = importlib.import_module(f"{__name__}.{self.name.replace(' ', '_')}")
        verdict: str = module.run(list(words), f"glscl {self.name}")
        return verdict

    def options(self) -> "type[Options] | None":
        """The class of the options that its help explains; None if it takes none."""
        from glscl.options.flags import find_options  # lazy: `glscl --help` needs no parser

        return find_options(lambda: self.run(["--help"]))


@cache
def list_commands() -> dict[str, Command]:
    """Every command by its name, in the order of the help."""
    commands = []
    for file in [file for folder in __path__ for file in Path(folder).glob("[!_]*.py")]:
        constants = dict(_CONSTANT.findall(file.read_text(encoding="utf-8")))
        commands.append(Command(int(constants["ORDER"]), file.stem.replace("_", " "), constants["HELP"].strip('"')))
    return {command.name: command for command in sorted(commands)}


def format_usage() -> str:
    """What `glscl` alone and `glscl --help` print: the commands, wrapped to the terminal, and what to begin with."""
    width = max(60, shutil.get_terminal_size().columns)
    known = list_commands().values()
    indent = 4 + max(len(command.name) for command in known)
    lines = [
        textwrap.fill(
            command.help,
            width,
            initial_indent=f"  {command.name}".ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
        for command in known
    ]
    return "\n".join(["usage: glscl COMMAND [options]", "", *lines, "", _FIRST_STEPS])


def find_command(words: Sequence[str]) -> tuple[Command, Sequence[str]]:
    """The command that a command line begins with, and the words after it.

    Raises `UserError`: there is none of that name; `SystemExit`: the usage was asked for, and has been printed.
    """
    known = list_commands()
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in known:
            return known[name], words[length:]
    if second := [name.partition(" ")[2] for name in known if name.startswith(f"{words[0]} ")]:
        if words[1:] in (["-h"], ["--help"]):
            print(format_usage())
            raise SystemExit(0)
        raise UserError(f"`glscl {words[0]}` needs {', '.join(second[:-1])} or {second[-1]}")
    raise UserError(f"unknown command '{words[0]}'{did_you_mean(words[0], known)}; see `glscl --help`")
