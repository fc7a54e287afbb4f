"""The run configuration: one typed tree from which YAML, flags, help, defaults and checks follow.

Precedence: defaults, then the YAML file or preset, then ``--a.b value`` flags.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml
from pydantic import BaseModel, Field, ValidationError

from glscl import storage
from glscl.data.options import DataConfig
from glscl.errors import UserError, did_you_mean
from glscl.evaluation.options import EvaluationConfig
from glscl.losses import LossConfig
from glscl.models.retriever import ModelConfig
from glscl.options import Options
from glscl.training.options import CheckpointConfig, TrainingConfig


class RunConfig(Options):
    """Everything that a training run depends on."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    """Name of the run; the same name continues from its latest complete checkpoint. Empty makes one from the time."""
    storage: str = "runs"
    """Folder or s3:// prefix in which the run directory is made."""
    seed: int = Field(default=42, ge=0)
    """Of initial weights, the order of the stream and dropout."""
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @property
    def run_directory(self) -> str:
        """Absolute path or URI of the run directory."""
        return storage.join(storage.resolve(self.storage), self.name)

    def resolved(self) -> RunConfig:
        """The same run with absolute addresses and a name: Ray workers run in another directory than the driver."""
        data = self.data.model_copy(
            update={
                part: tuple(storage.resolve(uri) for uri in getattr(self.data, part))
                for part in ("train", "validation", "test")
            }
        )
        name = self.name or datetime.now().strftime("%Y%m%d-%H%M%S")
        pretrained = self.model.pretrained
        if pretrained and not storage.is_remote(pretrained) and Path(pretrained).expanduser().exists():
            pretrained = storage.resolve(pretrained)
        model = self.model.model_copy(update={"pretrained": pretrained})
        update = {"data": data, "name": name, "model": model, "storage": storage.resolve(self.storage)}
        return self.model_copy(update=update)


def preset_names() -> list[str]:
    """Names of the packaged configurations."""
    folder = resources.files("glscl") / "presets"
    return sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """A packaged configuration as commented YAML.

    Raises:
        UserError: no such preset.
    """
    if name not in preset_names():
        raise UserError(f"no preset '{name}'{did_you_mean(name, preset_names())}; see `glscl presets`")
    return (resources.files("glscl") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")


def load_config(source: str | None) -> RunConfig:
    """Read a YAML file (local or ``s3://``) or a preset by name; None gives the defaults.

    Raises:
        UserError: missing file, bad YAML, unknown key or bad value, with the key's full name.
    """
    if source is None:
        return RunConfig()
    if source.endswith((".yaml", ".yml")):
        try:
            text, where = storage.read_bytes(source).decode("utf-8"), source
        except FileNotFoundError:
            raise UserError(f"{source}: no such file (--config)") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{source}: not UTF-8 ({error})") from None
    else:
        text, where = preset_text(source), f"preset {source}"
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of sections, got {type(values).__name__}")
    return validate(values, where)


def validate(values: dict[str, Any], where: str) -> RunConfig:
    """Check a tree of plain values.

    Raises:
        UserError: the first thing that is wrong, by its full key.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: unknown key '{key}'{did_you_mean(key, keys())}") from None
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UserError(f"{where}: {key} = {first['input']!r}: {first['msg']}{more}") from None


def keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every configuration key, dotted."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


SectionType = TypeVar("SectionType", bound=Options)


def parse_options(kind: type[SectionType], arguments: Sequence[str], program: str, default: Any = None) -> SectionType:
    """Parse ``--a.b value`` options with tyro; ``--help`` prints every key and leaves.

    Args:
        kind: class of the result.
        arguments: command-line words.
        program: what the help calls the command.
        default: values where no option is given; None takes the class's own.

    Raises:
        UserError: unknown option, or a value of the wrong type.
    """
    given = {} if default is None else {"default": default}
    if "--help" in arguments or "-h" in arguments:
        return tyro.cli(kind, args=["--help"], prog=program, **given)
    known = {name.replace("_", "-") for name in keys(kind)}
    for argument in arguments:
        match = re.match(r"^--([A-Za-z][\w.-]*)", argument)
        name = match.group(1).replace("_", "-") if match else ""
        if match and name not in known and not _is_no_flag(name, known):
            raise UserError(f"unknown option '--{match.group(1)}'{did_you_mean(name, known)}")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            return tyro.cli(kind, args=list(arguments), prog=program, **given)
    except SystemExit:
        words = " ".join(re.sub(r"[│╭╮╰╯─]+", " ", errors.getvalue()).split())
        raise UserError(f"bad option: {words.removeprefix('Parsing error').strip()}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"bad option: {'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}"
        ) from None


def _is_no_flag(name: str, known: set[str]) -> bool:
    """True for the negative form of a boolean, ``--a.no-b``."""
    head, _, last = name.rpartition(".")
    return last.startswith("no-") and ".".join(filter(None, [head, last[3:]])) in known


def to_yaml(config: RunConfig) -> str:
    """The effective configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def run_config(arguments: Sequence[str], program: str) -> RunConfig:
    """``--config FILE_OR_PRESET`` plus flags to a configuration.

    Raises:
        UserError: see `load_config` and `parse_options`.
    """
    rest = list(arguments)
    source = None
    for index, argument in enumerate(rest):
        if argument == "--config" or argument.startswith("--config="):
            if argument == "--config" and index + 1 == len(rest):
                raise UserError("--config needs a YAML file or a preset's name")
            source = rest[index + 1] if argument == "--config" else argument.partition("=")[2]
            del rest[index : index + (2 if argument == "--config" else 1)]
            break
    parsed = parse_options(RunConfig, rest, program, load_config(source))
    return validate(parsed.model_dump(), "options")
