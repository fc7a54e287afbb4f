"""Command-line options from a class of options; whatever is wrong is one line, with the nearest known name.

`glscl.training.config` is another module, because commands that train nothing need not wait for torch.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar, cast, get_args

import tyro
from pydantic import BaseModel, ValidationError

from glscl.errors import UserError
from glscl.options import Options
from glscl.options.mistakes import annotated_keys, describe_mistake, keys_of, nearest_key

SURE_LIKENESS = 0.9
"""From it on, a known key is meant whatever other keys there are."""

SectionType = TypeVar("SectionType", bound=Options)


def parse_options(
    kind: type[SectionType],
    arguments: Sequence[str],
    program: str,
    default: SectionType | None = None,
    about: str | None = None,
) -> SectionType:
    """Parse ``--a.b value`` options with tyro; ``--help`` prints every key and leaves.

    Args:
        kind: class of the options.
        arguments: command-line words.
        program: name of the command in the help.
        default: values of options that are not given; None is the class's defaults.
        about: first text of the help; None is the class's docstring.

    Raises:
        UserError: unknown option, or a value of the wrong type.
    """
    cli = partial(tyro.cli, kind, prog=program, description=about, **({} if default is None else {"default": default}))
    if "--help" in arguments or "-h" in arguments:
        return cast(SectionType, cli(args=["--help"]))
    known = {name.replace("_", "-") for name in keys_of(kind)}
    for argument in arguments:
        match = re.match(r"^--([A-Za-z][\w.-]*)", argument)
        name = match.group(1).replace("_", "-") if match else ""
        if match and name not in known and not _is_no_flag(name, known):
            raise UserError(
                f"unknown option '--{match.group(1)}'{nearest_key(f'--{name}', [f'--{option}' for option in known])}"
            )
    arguments = _spelt_out(arguments, kind)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return cast(SectionType, cli(args=list(arguments)))
    except SystemExit as leaving:
        raise UserError(f"bad option: {_one_line(printed.getvalue(), leaving, kind)}") from None
    except ValidationError as error:  # tyro lets those of the outermost section through
        raise UserError(f"bad option: {describe_mistake(error, kind)}") from None


def _switches(kind: type[BaseModel]) -> set[str]:
    """The flags that are on, off or "auto"."""
    return {
        name.replace("_", "-")
        for name, annotation in annotated_keys(kind)
        if bool in get_args(annotation) and len(get_args(annotation)) > 1
    }


def _spelt_out(arguments: Sequence[str], kind: type[BaseModel]) -> list[str]:
    """Add a value after every switch that is on, off or "auto", because tyro takes no bare ``--a.b`` for these."""
    switches = _switches(kind)
    words: list[str] = []
    for at, word in enumerate(arguments):
        name = word[2:].replace("_", "-") if word.startswith("--") else ""
        head, _, last = name.rpartition(".")
        positive = ".".join(filter(None, [head, last.removeprefix("no-")]))
        following = arguments[at + 1].lower() if at + 1 < len(arguments) else "--"
        if name in switches and following in ("true", "false"):
            words.append(word)
        elif name in switches and following.startswith("--"):
            words += [word, "True"]
        elif last.startswith("no-") and positive in switches:
            words += [f"--{positive}", "False"]
        elif words and words[-1][2:].replace("_", "-") in switches and word.lower() in ("true", "false"):
            words.append(word.capitalize())
        else:
            words.append(word)
    return words


def check_spelling(arguments: Iterable[str], sections: Mapping[str, type[Options]]) -> None:
    """Refuse an option that is nearly a key of these sections, before the whole configuration is imported.

    Less clear mistakes are left to `parse_options`, which knows all keys.

    Raises:
        UserError: an option is misspelt; the message names the right key.
    """
    known = {f"{name}.{key}".replace("_", "-") for name, kind in sections.items() for key in keys_of(kind)}
    for argument in arguments:
        match = re.match(r"^--([A-Za-z][\w-]*)\.([\w.-]*)", argument)
        name = f"{match.group(1)}.{match.group(2)}".replace("_", "-") if match else ""
        if match and match.group(1) in sections and name not in known and not _is_no_flag(name, known):
            meant = nearest_key(f"--{name}", [f"--{option}" for option in known], least=SURE_LIKENESS)
            if meant:
                raise UserError(f"unknown option '--{match.group(1)}.{match.group(2)}'{meant}")


def _one_line(printed: str, leaving: SystemExit, kind: type[BaseModel]) -> str:
    """The message of tyro, without its box, its rules and the help that it repeats."""
    words = " ".join(re.sub(r"[│╭╮╰╯|+]", " ", printed).split())
    blocks = [block.strip() for block in re.split(r"[-─]{4,}", words) if block.strip()]
    text = blocks[1] if len(blocks) > 1 else words
    cause = leaving.__context__
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__context__
    if cause is not None:
        section = re.match(r"Error parsing ([\w.-]+):", text)
        prefix = section.group(1).replace("-", "_") if section else ""
        return describe_mistake(cause, kind, "" if prefix == kind.__name__ else prefix)
    if re.match(r"Unrecognized options:.* (true|false)\b", text, re.IGNORECASE):
        text += " (switches take no value: write --a.b or --a.no-b)"
    text = re.sub(
        r"no type matching (.+?) could be instantiated from (\[.*?\])\. Got errors:.*", r"expected \1, got \2", text
    )
    return text.removeprefix("Error parsing ")


def _is_no_flag(name: str, known: set[str]) -> bool:
    """Whether a name is the negative form of a switch, ``--a.no-b``."""
    head, _, last = name.rpartition(".")
    return last.startswith("no-") and ".".join(filter(None, [head, last[3:]])) in known
