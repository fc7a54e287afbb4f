"""The reference pages of the site: commands and configuration from their classes, Python by mkdocstrings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from glscl.options.flags import is_positional

_PUBLIC = {
    "A trained model": (
        "glscl.retrieval.model.load",
        "glscl.retrieval.model.RetrievalModel",
        "glscl.retrieval.model.Texts",
        "glscl.retrieval.model.Videos",
        "glscl.retrieval.model.Match",
        "glscl.retrieval.videos.Moment",
        "glscl.data.video.arrays.Frames",
    ),
    "A head of your own": (
        "glscl.models.heads.base.Head",
        "glscl.models.heads.base.LengthTiedHead",
        "glscl.models.heads.base.Draws",
        "glscl.models.heads.base.register_head",
        "glscl.models.heads.scoring.score_by_tiles",
    ),
    "A loss of your own": (
        "glscl.losses.base.LossInputs",
        "glscl.losses.base.TermOptions",
        "glscl.losses.base.register_term",
    ),
    "Plug-ins and their options": ("glscl.models.registry.Registry", "glscl.options.Options"),
    "A reader of annotations": (
        "glscl.data.benchmarks.base.register",
        "glscl.data.benchmarks.base.Annotations",
        "glscl.data.benchmarks.base.ReadResult",
        "glscl.data.records.Record",
    ),
}
"""What users' code may rely on, by what it is for."""
_PLAIN_TYPES = {bool: "yes or no", int: "integer", float: "number", str: "text"}
_OF_THE_MACHINE = ("processes",)
"""Fields whose default is counted where the command runs."""


def describe_python() -> str:
    """The public interface, from docstrings."""
    lines = [
        "# Python: the public interface",
        "",
        "What `import glscl` and plug-ins may rely on; [Python](../python.md) and [heads](../heads.md) show it in use.",
    ]
    for title, names in _PUBLIC.items():
        lines += ["", f"## {title}"]
        for name in names:
            lines += ["", f"::: {name}"]
    return "\n".join(lines) + "\n"


def describe_commands() -> str:
    """Every command with its options."""
    from glscl.commands import list_commands
    from glscl.training.config import RunConfig

    lines = ["# Commands", "", "`glscl COMMAND --help` prints the same. Options of one word are written `--one-word`."]
    for name, command in list_commands().items():
        kind = command.options()
        lines += ["", f"## glscl {name}", "", escape(command.help), ""]
        if kind is RunConfig:
            lines.append(
                "`--config NAME|FILE.yaml`, `--dry-run`, and every key of [the configuration](configuration.md)."
            )
        elif kind is not None:
            lines += describe_options(kind, flags=True)
    return "\n".join(lines) + "\n"


def describe_configuration() -> str:
    """Every key of the configurations of runs, studies and sweeps."""
    from glscl.study.options import StudyConfig
    from glscl.training.config import RunConfig
    from tune.options import SweepConfig

    lines = [
        "# Configuration",
        "",
        "A run is configured by a YAML file or a preset (`glscl presets`), and by flags, which win: `training.lr_head` "
        "is `--training.lr-head`. Unknown keys are refused, with the nearest known one.",
    ]
    for title, kind in (("A run", RunConfig), ("A study", StudyConfig), ("A sweep", SweepConfig)):
        lines += ["", f"## {title}", *describe_sections(kind)]
    return "\n".join(lines) + "\n"


def describe_sections(kind: type[BaseModel], prefix: str = "", level: int = 3) -> Iterator[str]:
    """The keys of a configuration, then those of its sections under headings of their own."""
    sections = {}
    own = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections[name] = field.annotation
        else:
            own.append(name)
    if own:
        yield ""
        yield from describe_options(kind, prefix=prefix)
    for name, section in sections.items():
        yield from ["", f"{'#' * level} `{prefix}{name}`", "", escape(_plain(section.__doc__))]
        yield from describe_sections(section, f"{prefix}{name}.", min(level + 1, 4))


def describe_options(kind: type[BaseModel], prefix: str = "", *, flags: bool = False) -> list[str]:
    """A table of the fields that are no sections: name, type, default, what it is."""
    rows = ["| key | type | default | what it is |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            continue
        key = f"{prefix}{name}"
        if flags:
            key = name.upper() if is_positional(kind, name) else f"--{name.replace('_', '-')}"
        default = "of the machine" if name in _OF_THE_MACHINE else _default(field)
        cells = (f"`{key}`", describe_type(field), default, escape(_plain(field.description)))
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def describe_type(field: FieldInfo) -> str:
    """A field's type and bounds, in words."""
    bounds = [
        f"{sign} {getattr(each, name)}"
        for each in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(each, name, None) is not None
    ]
    return ", ".join(filter(None, [_type(field.annotation), *bounds]))


def _type(kind: Any) -> str:
    origin, arguments = get_origin(kind), [part for part in get_args(kind) if part is not Ellipsis]
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, type(int | str)):
        return " or ".join("none" if part is type(None) else _type(part) for part in arguments)
    if origin in (tuple, list):
        return f"list of {' or '.join(dict.fromkeys(map(_type, arguments)))}"
    if arguments:
        return f"mapping of names to {_type(arguments[-1])}"
    return _PLAIN_TYPES.get(kind) or getattr(kind, "__name__", str(kind))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True) if field.default is PydanticUndefined else field.default
    if value is None or value in ("", (), [], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, BaseModel | dict):
        return "see the section"
    return f"`{', '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _plain(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip()


def escape(text: str) -> str:
    """A text of which Markdown takes nothing for HTML, columns, references or emphasis; what is in backticks stays."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([<|\[\]*_])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": describe_commands,
    "reference/configuration.md": describe_configuration,
    "reference/python.md": describe_python,
}
"""Pages of the site, and what writes them."""
