"""The run configuration: typed, of defaults, then the YAML file or preset, then ``--a.b value`` flags."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError

from glscl.data.options import DataConfig
from glscl.errors import UserError
from glscl.evaluation.options import EvaluationConfig
from glscl.losses import LossConfig
from glscl.losses.base import LOGIT_BIAS, registry
from glscl.models.heads.base import head_class
from glscl.models.options import ModelConfig
from glscl.options import Options
from glscl.options.differences import Values
from glscl.options.flags import parse_options
from glscl.options.mistakes import describe_mistake
from glscl.options.packaged import is_file, preset_text, split_config
from glscl.options.strict_yaml import dump_yaml, load_yaml
from glscl.system import storage
from glscl.training.options import CheckpointConfig, TrackingConfig, TrainingConfig


class RunConfig(Options):
    """Everything that a training run depends on."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    """Name of the run; the same name continues from its latest complete checkpoint. Empty makes one from the time."""
    storage: str = "runs"
    """Folder or s3:// prefix in which the run directory is made."""
    seed: int = Field(default=42, ge=0, lt=1 << 32)
    """Of initial weights, the order of the stream and dropout."""
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @property
    def run_directory(self) -> str:
        """Absolute path or URI of the run directory."""
        return storage.join(storage.resolve(self.storage), self.name)

    def resolved(self) -> Self:
        """The same run with absolute addresses and a name: Ray workers run in another directory than the driver."""
        parts = ("train", "validation", "test")
        uris = {part: tuple(storage.resolve(uri) for uri in getattr(self.data, part)) for part in parts}
        cache_dir = storage.resolve(self.data.cache_dir) if self.data.cache_dir else None
        data = self.data.model_copy(update={**uris, "cache_dir": cache_dir})
        name = self.name or datetime.now().strftime("%Y%m%d-%H%M%S")
        update = {"data": data, "name": name, "model": self.model.resolved(), "storage": storage.resolve(self.storage)}
        return self.model_copy(update=update)


def add_later_sections(saved: Values, current: Values) -> Values:
    """Saved values of a run, with those heads and loss terms of a current one that came after it and decide nothing.

    A head decides nothing where another is chosen, a term where its weight is 0 or the head does not provide what it
    needs. Where a section was saved, it stays as it was.
    """
    if not all(isinstance(values, Mapping) for values in (saved.get("model"), saved.get("loss"))):
        return saved
    model = _section(current, "model")
    head = str(model["head"])
    provided = {*head_class(head).provides, LOGIT_BIAS}
    heads = {name: options for name, options in _section(model, "heads").items() if name != head}
    terms = {
        name: options
        for name, options in _section(current, "loss").items()
        if not registry.get(name).applies(provided) or not _section({name: options}, name)["weight"]
    }
    saved_model = _section(saved, "model")
    saved_model["heads"] = heads | _section(saved_model, "heads")
    return {**saved, "model": saved_model, "loss": terms | _section(saved, "loss")}


def _section(values: Values, name: str) -> dict[str, object]:
    """A section of a configuration's plain values, empty if it is not there."""
    section = values.get(name)
    return dict(section) if isinstance(section, Mapping) else {}


def load_config(source: str | None) -> RunConfig:
    """Read a YAML file (local or ``s3://``) or a preset by name; None gives the defaults.

    Raises `UserError`: missing file, bad YAML, unknown key or bad value, with the key's full name.
    """
    if source is None:
        return RunConfig()
    where, text = (source, None) if is_file(source) else (f"preset {source}", preset_text(source))
    return validate(read_yaml(where, text), where)


def read_yaml(where: str, text: str | None = None) -> dict[str, Any]:
    """The sections of a YAML file, local or ``s3://``, or of a text that is called so in messages.

    Raises `UserError`: no such file, not UTF-8, not YAML, a key given twice, or no mapping.
    """
    if text is None:
        try:
            text = storage.read_bytes(where).decode("utf-8")
        except FileNotFoundError:
            raise UserError(f"{where}: no such file (--config)") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 ({error})") from None
    try:
        values = load_yaml(text) or {}
    except (yaml.YAMLError, ValueError) as error:  # ValueError: integers of thousands of digits
        raise UserError(f"{where}: not YAML ({error})") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply for a configuration") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of sections, got {type(values).__name__}")
    return values


def validate(values: dict[str, Any], where: str) -> RunConfig:
    """Check a tree of plain values; a `UserError` names the first thing that is wrong, by its full key."""
    try:
        return RunConfig.model_validate(values)
    except (ValidationError, UserError) as error:
        mistake = error if isinstance(error, UserError) else describe_mistake(error, RunConfig)
        raise UserError(f"{where}: {mistake}") from None


def to_yaml(config: RunConfig) -> str:
    """The effective configuration as YAML that `load_config` reads back."""
    return dump_yaml(config.model_dump(mode="json"))


def run_config(arguments: Sequence[str], program: str, about: str | None = None) -> RunConfig:
    """``--config FILE_OR_PRESET`` plus flags to a configuration (see `load_config` and `parse_options`)."""
    source, rest = split_config(arguments)
    parsed = parse_options(RunConfig, rest, program, load_config(source), about)
    return validate(parsed.model_dump(), "options")
