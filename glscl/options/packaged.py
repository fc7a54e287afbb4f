"""The packaged configurations by name. Imports nothing slow, so that a misspelt name is refused at once."""

from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from glscl.errors import UserError, did_you_mean

_PRESETS = resources.files("glscl") / "presets"


def yaml_names(folder: Traversable) -> list[str]:
    """Names of the YAML files that a folder of a package holds."""
    return sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml"))


def is_file(source: str) -> bool:
    """Whether the value of ``--config`` is a YAML file's path or address, not a name."""
    return source.endswith((".yaml", ".yml"))


def preset_names() -> list[str]:
    """Names of the packaged configurations of `glscl train`."""
    return yaml_names(_PRESETS)


def preset_text(name: str) -> str:
    """A packaged configuration as commented YAML. Raises `UserError`: no such preset."""
    if name not in preset_names():
        raise UserError(f"no preset '{name}'{did_you_mean(name, preset_names())}; see `glscl presets`")
    return (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")


def split_config(arguments: Iterable[str]) -> tuple[str | None, list[str]]:
    """The value of ``--config``, or None, and the other words.

    Raises:
        UserError: ``--config`` is given twice or without a value, or there is no such preset.
    """
    rest: list[str] = []
    sources: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            source = next(words, "") if word == "--config" else word.partition("=")[2]
            if not source or source.startswith("--"):
                raise UserError("--config needs a YAML file or a preset's name")
            sources.append(source)
        else:
            rest.append(word)
    if len(sources) > 1:
        raise UserError(f"--config is given {len(sources)} times ({', '.join(sources)}); give it once")
    if sources and not is_file(sources[0]):
        preset_text(sources[0])
    return (sources[0] if sources else None), rest
