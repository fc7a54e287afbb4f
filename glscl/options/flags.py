"""Command-line options from a class of options; whatever is wrong is one line, with the nearest known name.

`glscl.training.config` is another module, because commands that train nothing need not wait for torch.
"""

import contextlib
import inspect
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import NoReturn, TypeVar, cast, get_args

import tyro
from pydantic import BaseModel, ValidationError
from tyro.conf import Positional

from glscl.errors import UserError
from glscl.options import Options
from glscl.options.mistakes import annotated_keys, describe_mistake, keys_of, nearest_key

SURE_LIKENESS = 0.9  # from it on, a known key is meant whatever other keys there are

SectionType = TypeVar("SectionType", bound=Options)


class _AskedError(Exception):
    """Ends a command that was only asked for the class of its options."""

    def __init__(self, kind: type[Options]) -> None:
        self.kind = kind


_asking: ContextVar[bool] = ContextVar("asking", default=False)


def find_options(show_help: Callable[[], object]) -> type[Options] | None:
    """The class of options whose help a command would print; None if it has none. ``show_help`` runs its ``--help``.

    Completion and the documentation's tables are made from what this gives, so that they cannot differ from the help.
    """
    token = _asking.set(True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            show_help()
    except _AskedError as asked:
        return asked.kind
    except SystemExit:
        pass
    finally:
        _asking.reset(token)
    return None


def parse_options(
    kind: type[SectionType],
    arguments: Sequence[str],
    program: str,
    default: SectionType | None = None,
    about: str | None = None,
) -> SectionType:
    """Parse ``--a.b value`` options with tyro; ``--help`` prints every key and leaves.

    ``about`` begins the help of ``program``, by default the class's docstring; ``default`` has the values of options
    that are not given. Raises `UserError`: unknown option, or a value of the wrong type.
    """
    if _asking.get():
        raise _AskedError(kind)
    cli = partial(tyro.cli, kind, prog=program, description=about, **({} if default is None else {"default": default}))
    if "--help" in arguments or "-h" in arguments:
        _print_help(partial(cli, description=""), about or inspect.getdoc(kind) or "")
    known = _flags_of(kind)
    for argument in arguments:
        match = re.match(r"^--([A-Za-z][\w.-]*)", argument)
        if match and not _is_flag(name := f"--{match[1]}".replace("_", "-"), known):
            raise UserError(f"unknown option '--{match[1]}'{nearest_key(name, known)}")
    arguments = _spelt_out(arguments, kind)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return cast(SectionType, cli(args=list(arguments)))
    except SystemExit as leaving:
        raise UserError(f"bad option: {_one_line(printed.getvalue(), leaving, kind)}") from None
    except ValidationError as error:  # tyro lets those of the outermost section through
        raise UserError(f"bad option: {describe_mistake(error, kind)}") from None


def wrap_help(text: str) -> str:
    """A help text wrapped to the terminal: paragraphs, and indented lines, whose second column stays one."""
    width = max(60, shutil.get_terminal_size().columns)
    lines: list[str] = []
    for block in re.split(r"\n(?= )|\n(?=\n)|(?<=\n)\n(?!\n| )", text.strip()):
        columns = re.match(r" +(\S+ )*\S+ {2,}|", block)
        indent = len(columns[0]) if columns else 0
        first, rest = block[:indent], block[indent:]
        one = " ".join(rest.split())
        lines.append(
            textwrap.fill(one, width, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False)
        )
    return "\n".join(lines)


def _print_help(cli: Callable[..., object], about: str) -> NoReturn:
    """Print the help that tyro lays out, with a usage and a description that fit the terminal, and leave."""
    printed = io.StringIO()
    printed.isatty = sys.stdout.isatty  # type: ignore[method-assign]  # it has colours then
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli(args=["--help"])
    usage, _, rest = printed.getvalue().partition("\n")
    usage = re.sub(r"\x1b\[[\d;]*m", "", usage)  # colours would count as letters
    width = max(60, shutil.get_terminal_size().columns)
    print(textwrap.fill(usage, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False))
    print(f"\n{wrap_help(about)}\n{rest}", end="")
    raise SystemExit(0)


def is_positional(kind: type[BaseModel], name: str) -> bool:
    """Whether a field is given by its place on the command line, without its name."""
    field = kind.model_fields.get(name)
    return field is not None and any(marker in field.metadata for marker in get_args(Positional[str])[1:])


def _switches(kind: type[BaseModel]) -> set[str]:
    """The flags that are on, off or "auto"."""
    kinds = {name.replace("_", "-"): get_args(annotation) for name, annotation in annotated_keys(kind)}
    return {name for name, types in kinds.items() if bool in types and len(types) > 1}


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


def shard_set_argument(words: Sequence[str], program: str, what: str) -> str:
    """The one argument of a command, the address of a shard set; ``what`` the command does, for its help.

    Raises `UserError`: there is not exactly one word, or it is an option; `SystemExit`: the help was asked for, and has
    been printed.
    """
    if words and words[0] in ("-h", "--help"):
        print(f"usage: {program} SHARD_SET\n\n{wrap_help(f'{what}; a local folder or an s3:// prefix')}")
        raise SystemExit(0)
    if len(words) != 1 or words[0].startswith("--"):
        raise UserError(f"`{program}` takes one shard set: a local folder or an s3:// prefix")
    return words[0]


def check_spelling(
    arguments: Iterable[str], sections: Mapping[str, type[Options]], others: Collection[str] = ()
) -> None:
    """Refuse an option that is nearly a key of these sections, before the whole configuration is imported.

    Less clear mistakes are left to `parse_options`, which knows all keys; ``sections`` are those whose keys are known
    by now, ``others`` the names of the other ones. Raises `UserError`: an option is misspelt; it names the right key.
    """
    known = {flag for name, kind in sections.items() for flag in _flags_of(kind, f"{name}.")}
    for argument in arguments:
        match = re.match(r"^--([A-Za-z][\w-]*)\.[\w.-]*", argument)
        if not match or match[1] in others or _is_flag(name := match[0].replace("_", "-"), known):
            continue
        if meant := nearest_key(name, known, least=SURE_LIKENESS):
            raise UserError(f"unknown option '{match[0]}'{meant}")


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


def _flags_of(kind: type[BaseModel], prefix: str = "") -> set[str]:
    """``--a.b`` of every key."""
    return {f"--{name}".replace("_", "-") for name in keys_of(kind, prefix)}


def _is_flag(name: str, known: set[str]) -> bool:
    """Whether a name is one of these, or the negative form of a switch, ``--a.no-b``."""
    return name in known or re.sub(r"(^--|\.)no-(?=[^.]*$)", r"\1", name) in known
