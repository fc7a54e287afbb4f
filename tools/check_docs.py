"""Check the documentation: every relative link and anchor leads somewhere, every ``glscl`` command line exists.

    python tools/check_docs.py

Reads README.md, CONTRIBUTING.md, docs/*.md and the READMEs of packages. A link is right when its file is in the tree
and, where it names a section, the file has a heading of that name. A command line, in a fenced block or in inline code,
is right when the command exists and its ``--help`` knows every option. Nothing is started.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PLUGIN = "log-sum-exp"
"""Name of the plug-in that docs/heads.md writes as an example: its options are not known here."""


def documents(root: Path) -> list[Path]:
    """The Markdown files that are checked."""
    files = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    return [*(file for file in files if file.exists()), *sorted(root.glob("*/README.md"))]


def anchors(text: str) -> set[str]:
    """Names by which a page's headings are linked to, as GitHub makes them."""
    names: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?)\s*$", _FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeats = sum(known == name or re.fullmatch(rf"{re.escape(name)}-\d+", known) is not None for known in names)
        names.add(f"{name}-{repeats}" if repeats else name)
    return names


def broken_links(file: Path) -> Iterator[str]:
    """Links of a page that lead nowhere."""
    text = file.read_text(encoding="utf-8")
    for target in _LINK.findall(_FENCE.sub("", text)):
        if re.match(r"[a-z]+:", target):  # another site
            continue
        path, _, anchor = target.partition("#")
        linked = (file.parent / path).resolve() if path else file
        if not linked.exists():
            yield f"{target}: no such file"
        elif anchor and linked.suffix == ".md" and anchor not in anchors(linked.read_text(encoding="utf-8")):
            yield f"{target}: no such heading"


def command_lines(text: str) -> Iterator[list[str]]:
    """Words after ``glscl`` of every command line of a page; one that runs on is put together first."""
    fenced = [re.sub(r"\\\n\s*", " ", block) for block in _FENCE.findall(text)]
    inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", _FENCE.sub("", text))]
    for line in [line for block in fenced for line in block.splitlines()] + inline:
        for piece in re.split(r";|&&|\||#|>|\$\(", line):
            words = piece.split()
            if words[:1] == ["glscl"] and len(words) > 1:
                yield words[1:]


def wrong_command(words: list[str], help_of: Callable[[str], str | None]) -> str | None:
    """What is wrong with a command line; None if nothing is.

    Args:
        words: after ``glscl``.
        help_of: text of ``--help`` of a command, empty for the first word of several; None if there is no such command.
    """
    if words[0].isupper() or words[0].startswith("-"):  # `glscl COMMAND --help`
        return None
    if len(words) == 1 and help_of(words[0]) == "":  # `glscl jobs`: all commands of this first word
        return None
    name = next((name for name in (" ".join(words[:2]), words[0]) if help_of(name)), None)
    if name is None:
        return f"glscl {' '.join(words)}: no such command"
    before, _, nested = " ".join(words).partition(" -- ")  # `glscl submit ... -- train ...`
    known = set(re.findall(r"--[a-z][\w.-]*", help_of(name) or ""))
    if unknown := [option for option in _options(before.split()) if option not in known]:
        return f"glscl {name}: no option {unknown[0]}"
    return wrong_command(nested.split(), help_of) if nested else None


def _options(words: Sequence[str]) -> list[str]:
    """Names of the options among the words, as ``--help`` spells them; without those of the example plug-in."""
    names = [re.split("[=\\[]", word)[0] for word in words if re.match(r"--[a-z]", word)]
    return sorted({name.replace("_", "-").rstrip(",.") for name in names if _PLUGIN not in name})


@cache
def help_text(name: str) -> str | None:
    """What ``glscl NAME --help`` prints; empty for the first word of several commands; None if there is none."""
    from glscl.cli import main

    printed = io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS="400")  # no option is broken over two lines
    with wide, contextlib.redirect_stdout(printed):
        status = main([*name.split(), "--help"])
    if status != 0:
        return None
    return printed.getvalue() if printed.getvalue().startswith(f"usage: glscl {name} ") else ""


def main() -> int:
    """Check every page, and print what is wrong."""
    sys.path.insert(0, str(ROOT))
    problems: list[str] = []
    links = commands = 0
    for file in documents(ROOT):
        name = file.relative_to(ROOT)
        text = file.read_text(encoding="utf-8")
        links += len(_LINK.findall(text))
        problems += [f"{name}: {problem}" for problem in broken_links(file)]
        for words in command_lines(text):
            commands += 1
            if problem := wrong_command(words, help_text):
                problems.append(f"{name}: {problem}")
    print("\n".join(problems) or f"documentation: {links} links and {commands} command lines are right")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
