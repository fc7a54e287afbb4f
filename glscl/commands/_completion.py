"""What a shell completes: every command's options and values, from the classes of options that `--help` prints."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args, get_origin

from glscl.commands import Command
from glscl.data.benchmarks import benchmark_names
from glscl.data.shifts import ALL, KINDS
from glscl.data.toy import toy_names
from glscl.options.flags import is_positional
from glscl.options.mistakes import annotated_keys
from glscl.options.packaged import preset_names

SHELLS = ("bash", "zsh", "fish")
_TEMPLATES = resources.files("glscl.commands") / "templates"
_RUNS = "run"
"""The option that takes the directory of a run."""
_NO_FILES = {"name", "address", "domain", "split", "data.augment"}
"""Texts that are no paths."""
_POSITIONAL = "-"
"""In place of an option: what a command takes without one."""


@dataclass(frozen=True, slots=True)
class Values:
    """What may follow an option.

    Attributes:
        kind: words (of the list), runs (directories of runs), files, any (nothing to offer) or none (a switch).
        several: whether an option takes more than one.
        words: those to choose from; beside files, names that are no files.
    """

    kind: Literal["words", "runs", "files", "any", "none"]
    several: bool = False
    words: tuple[str, ...] = ()


def values_of(name: str, annotation: Any, known: Mapping[str, Sequence[str]]) -> Values:
    """What may follow an option, by its key, its type, and the names that are ``known`` for some keys."""
    kinds, several = _kinds(annotation)
    words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    words += known.get(name, ())
    if name == _RUNS:
        return Values("runs", several)
    if bool in kinds:
        return Values("words", several, (*words, "true", "false")) if words else Values("none")
    if str in kinds and name not in {*known, *_NO_FILES}:
        return Values("files", several, tuple(words))
    return Values("words", several, tuple(words)) if words else Values("any", several)


def _kinds(annotation: Any) -> tuple[list[Any], bool]:
    """The types that one value may have, and whether an option takes several values."""
    kinds: list[Any] = []
    several = False
    for part in _parts(annotation):
        is_list = get_origin(part) in (tuple, list)
        several = several or is_list
        kinds += _parts(get_args(part)[0]) if is_list else [part]
    return kinds, several


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, else the type itself, without what is annotated of it."""
    if hasattr(annotation, "__metadata__"):
        return _parts(get_args(annotation)[0])
    is_union = get_origin(annotation) not in (None, Literal, tuple, list, dict) and get_args(annotation)
    return tuple(piece for part in get_args(annotation) for piece in _parts(part)) if is_union else (annotation,)


def list_values(commands: Iterable[Command]) -> Iterator[tuple[str, str, Values]]:
    """Every command's options, and what it takes without one, as (command, option, values)."""
    from glscl.models.heads import head_names
    from glscl.study.options import StudyConfig
    from glscl.training.config import RunConfig
    from tune.options import SweepConfig

    presets = {"train": preset_names(), "study": StudyConfig.names(), "sweep": SweepConfig.names()}
    known = {"benchmark": benchmark_names(), "model.head": list(head_names()), "shifts": [ALL, *KINDS]}
    for command in commands:
        kind = command.options()
        yield command.name, "--help", Values("none")
        yield command.name, _POSITIONAL, _positional(command.name, kind is None, presets)
        if command.name in presets:
            yield command.name, "--config", Values("files", words=tuple(presets[command.name]))
        if kind is RunConfig:
            yield command.name, "--dry-run", Values("none")
        names = known | ({"domain": toy_names()} if command.name == "toy" else {})
        if kind is None:
            continue
        for name, annotation in annotated_keys(kind):
            if name == "config" or is_positional(kind, name):
                continue
            flag, values = f"--{name.replace('_', '-')}", values_of(name, annotation, names)
            yield command.name, flag, values
            if values.kind == "none":
                yield command.name, re.sub(r"(--|\.)(?=[^.]*$)", r"\1no-", flag), values


def _positional(name: str, no_options: bool, presets: Mapping[str, Sequence[str]]) -> Values:
    """What a command takes without an option in front."""
    if name == "presets":
        names = dict.fromkeys([*presets, *(preset for some in presets.values() for preset in some)])
        return Values("words", several=True, words=tuple(names))
    if name == "completion":
        return Values("words", words=SHELLS)
    return Values("files" if no_options or name.startswith(("shards", "index", "search", "serve")) else "any", True)


def write_script(shell: str, commands: Iterable[Command]) -> str:
    """The script of a shell: its template with a table of the commands.

    A row is the command, the option, ``1`` or ``*`` values, their kind and the words, with tabs between.
    """
    commands = list(commands)
    rows = [
        "\t".join([command, option, "*" if values.several else "1", values.kind, " ".join(values.words)])
        for command, option, values in list_values(commands)
    ]
    template = (_TEMPLATES / f"completion.{'fish' if shell == 'fish' else 'bash'}").read_text(encoding="utf-8")
    script = template.replace("@COMMANDS@", "\n".join(command.name for command in commands))
    first = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return first + script.replace("@TABLE@", "\n".join(rows))
