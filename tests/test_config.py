"""The run configuration: YAML and flags to one typed tree, and the messages about mistakes."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from glscl.errors import UserError
from glscl.evaluation.options import EvaluationConfig
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.options.mistakes import keys_of
from glscl.options.strict_yaml import dump_yaml, load_yaml
from glscl.training.config import RunConfig, load_config, read_yaml, run_config, to_yaml, validate
from glscl.training.options import TrackingConfig
from stress.fuzz import mutate


def parse(*words: str) -> RunConfig:
    return run_config(words, "glscl train")


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


# ------------------------------------------------------------------------------------------------------------ YAML


def test_nothing_given_is_the_defaults() -> None:
    assert parse() == RunConfig() == load_config(None)


def test_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# only a comment\n")) == RunConfig()


def test_yaml_reaches_every_kind_of_value(tmp_path: Path) -> None:
    config = load_config(
        write(
            tmp_path,
            """
            data: {train: [a, s3://b/c], weights: [0.25, 0.75], cache_dir: null}
            model: {grad_checkpointing: true, heads: {glscl: {tau: 5, feedforward: 64}}}
            training: {lr_head: 1e-4, zero_stage: 3, max_steps: null, betas: [0.8, 0.99]}
            """,
        )
    )
    assert config.data.train == ("a", "s3://b/c")
    assert config.data.weights == (0.25, 0.75)
    assert config.model.grad_checkpointing is True
    assert config.model.heads.glscl.tau == 5.0  # type: ignore[attr-defined]
    assert config.model.heads.glscl.feedforward == 64  # type: ignore[attr-defined]
    assert config.training.lr_head == 1e-4  # YAML reads 1e-4 as text
    assert config.training.zero_stage == 3
    assert config.training.max_steps is None
    assert config.training.betas == (0.8, 0.99)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trainig: {}", "unknown key 'trainig'"),
        ("training: {epoch: 3}", "unknown key 'training.epoch', did you mean 'training.epochs'"),
        ("loss: {temprature: 1}", "unknown key 'loss.temprature'"),
        (
            "loss: {inter_consistency: {margin_wight: 1}}",
            "unknown key 'loss.inter_consistency.margin_wight', did you mean 'loss.inter_consistency.margin_weight'",
        ),
        ("model: {heads: {glscl: {quries: 9}}}", "did you mean 'model.heads.glscl.queries'"),
        ("tau: 4", "unknown key 'tau', did you mean 'model.heads.\\w+.tau'"),
        ("training: {epochs: many}", "training.epochs = 'many'"),
        ("training: {epochs: 0}", "training.epochs = 0"),
        ("training: {epochs: 1.5}", "training.epochs = 1.5"),
        ("training: {zero_stage: 4}", "training.zero_stage = 4"),
        ("training: {lr_head: .nan}", "training.lr_head = nan"),
        ("training: {lr_head: .inf}", "training.lr_head = inf"),
        ("training: {betas: [0.9]}", "training.betas"),
        ("training: 3", "training = 3"),
        ("training:", "training = None"),
        ("data: {train: shards/a}", "data.train = 'shards/a'"),
        ("data: {train: [1]}", "data.train.0 = 1"),
        ("data: {captions: every}", "data.captions = 'every'"),
        ("name: a b", "name = 'a b'"),
        ("model: {head: glcsl}", "'glcsl', did you mean 'glscl'"),
        ("training: {epochs: 0, global_batch: 1}", r"\(1 more\)"),
        ("seed: 1\nseed: 2", "'seed' is given twice"),
        ("training: {epochs: 1, epochs: 2}", "'epochs' is given twice"),
        ("a: [1", "not YAML"),
        ("- a\n- b", "expected a mapping of sections, got list"),
        ("just text", "expected a mapping of sections, got str"),
        (b"name: \xff\xfe", "not UTF-8"),
        ("name: !!python/object/apply:os.system [true]", "not YAML"),
        ("1: 2", "1 = 1: Keys should be strings"),
    ],
)
def test_mistakes_in_yaml_are_named_with_file_and_key(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=says) as raised:
        load_config(path)
    assert str(raised.value).startswith(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training: {epochs: 010}", "training.epochs", 10),  # YAML 1.1: 8
        ("training: {epochs: 0o10}", "training.epochs", 8),
        ("training: {epochs: 0x10}", "training.epochs", 16),
        ("training: {epochs: +7}", "training.epochs", 7),
        ("training: {lr_head: 1e-4}", "training.lr_head", 1e-4),
        ("training: {lr_head: 010.5}", "training.lr_head", 10.5),
        ("training: {lr_head: 5.}", "training.lr_head", 5.0),
        ("training: {max_steps: ~}", "training.max_steps", None),
        ("training: {max_steps: }", "training.max_steps", None),
        ("training: {use_gpu: on}", "training.use_gpu", True),  # a text that says so, for a key that wants it
        ("training: {use_gpu: FALSE}", "training.use_gpu", False),
        ("name: on", "name", "on"),  # YAML 1.1: true
        ("name: 2026-01-01", "name", "2026-01-01"),  # YAML 1.1: a date
        ("name: '010'", "name", "010"),
        ("data: {train: [no, y]}", "data.train", ("no", "y")),
        ("evaluation: {leave_out: [a=1:30]}", "evaluation.leave_out", ("a=1:30",)),
    ],
)
def test_yaml_means_what_version_1_2_says(tmp_path: Path, text: str, key: str, value: Any) -> None:
    current: Any = load_config(write(tmp_path, text))
    for name in key.split("."):
        current = getattr(current, name)
    assert current == value
    assert type(current) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("training: {epochs: on}", "training.epochs = 'on'"),  # YAML 1.1 and pydantic: 1
        ("training: {epochs: 1:30}", "training.epochs = '1:30'"),  # YAML 1.1: 90
        ("training: {lr_head: 1:30.5}", "training.lr_head = '1:30.5'"),
        ("training: {epochs: 0b11}", "training.epochs = '0b11'"),
        ("training: {epochs: 2026-01-01}", "training.epochs = '2026-01-01'"),
        ("training: {epochs: !!int 1:30}", "not YAML"),
        ("training: {lr_head: !!float 1:30}", "not YAML"),
        ("training: {epochs: true}", "training.epochs = True: Value error, give a number"),
        ("training: {max_steps: false}", "training.max_steps = False: Value error, give a number"),
        ("training: {lr_head: true}", "training.lr_head = True: Value error, give a number"),
        ("training: {betas: [true, 0.9]}", "training.betas = .*give a number"),
        ("data: {weights: [true]}", "data.weights = .*give a number"),
        ("name: 010", "name = 10"),
        ("on: 1", "unknown key 'on'"),  # YAML 1.1: a key that is true
    ],
)
def test_what_only_yaml_1_1_takes_for_a_number_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_config(write(tmp_path, text))


def test_flags_and_files_take_a_number_alike(tmp_path: Path) -> None:
    for text in ("010", "7", "1_0"):
        from_file = load_config(write(tmp_path, f"training: {{epochs: {text}}}")).training.epochs
        assert parse("--training.epochs", text).training.epochs == from_file == int(text)
    for text in ("on", "1:30", "true", "0b11"):
        with pytest.raises(UserError, match=r"--training\.epochs"):
            parse("--training.epochs", text)


@pytest.mark.parametrize("text", ["010", "on", "1e5", "1:30", "0o7", "0x1", "2026-01-01", "~", ".5", "null", "+1", "="])
def test_what_is_written_is_read_as_text_by_every_reader(text: str) -> None:
    written = dump_yaml({text: [text]})
    assert load_yaml(written) == {text: [text]} == yaml.safe_load(written)


def test_a_long_wrong_value_is_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load_config(write(tmp_path, f"training: {{epochs: {'x' * 5000}}}"))
    assert len(str(raised.value)) < 500


def test_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere/run.yaml: no such file \(--config\)"):
        load_config("nowhere/run.yaml")


def test_yaml_anchors_are_merged(tmp_path: Path) -> None:
    text = "checkpoint: &c {keep: 5}\nevaluation: {examples: 3}\n"
    assert load_config(write(tmp_path, text)).checkpoint.keep == 5
    with pytest.raises(UserError, match=r"unknown key 'evaluation.keep', did you mean 'checkpoint.keep'"):
        load_config(write(tmp_path, "checkpoint: &c {keep: 5}\nevaluation: {<<: *c}\n"))


# ----------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--model.heads.glscl.tau", "5"], "model.heads.glscl.tau", 5.0),
        (["--model.heads.glscl.no-mask-padding"], "model.heads.glscl.mask_padding", False),
        (["--loss.inter-consistency.form", "corrected"], "loss.inter_consistency.form", "corrected"),
        (["--training.lr-head=1e-3"], "training.lr_head", 1e-3),
        (["--training.lr_head", "1e-3"], "training.lr_head", 1e-3),
        (["--training.zero-stage", "2"], "training.zero_stage", 2),
        (["--training.use-gpu"], "training.use_gpu", True),
        (["--training.betas", "0.8", "0.9"], "training.betas", (0.8, 0.9)),
        (["--training.max-steps", "7"], "training.max_steps", 7),
        (["--training.max-steps", "None"], "training.max_steps", None),
        (["--data.train", "a", "b"], "data.train", ("a", "b")),
        (["--data.train", "--seed", "1"], "data.train", ()),
        (["--data.weights", "0.25", "0.75"], "data.weights", (0.25, 0.75)),
        (["--data.cache-dir", "/x"], "data.cache_dir", "/x"),
        (["--name=v1.2_a-b"], "name", "v1.2_a-b"),
    ],
)
def test_flag_sets_its_key_only(words: list[str], key: str, value: object) -> None:
    config = parse(*words)
    current: Any = config
    for name in key.split("."):
        current = getattr(current, name)
    assert current == value
    assert type(current) is type(value)
    expected = RunConfig().model_dump()
    section = expected
    *path, last = key.split(".")
    for name in path:
        section = section[name]
    section[last] = value
    if "--seed" in words:
        expected["seed"] = 1
    assert config.model_dump() == expected


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "training: {epochs: 7, global_batch: 64, max_steps: 9}\ndata: {train: [a, b]}\n")
    config = parse("--config", path, "--training.epochs", "2", "--data.train", "c", "--training.max-steps", "None")
    assert (config.training.epochs, config.training.global_batch, config.training.max_steps) == (2, 64, None)
    assert config.data.train == ("c",)
    assert config.training.warmup == RunConfig().training.warmup


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("joined", [False, True])
def test_config_may_stand_anywhere(place: int, joined: bool) -> None:
    words = ["--training.epochs", "2"]
    words[place:place] = ["--config=tiny"] if joined else ["--config", "tiny"]
    config = parse(*words)
    assert config.training.epochs == 2
    assert config.model.clip == "glscl-tiny"


def test_a_switch_that_a_preset_sets_can_be_unset() -> None:
    assert parse("--config", "msrvtt").training.use_gpu
    assert not parse("--config", "msrvtt", "--training.no-use-gpu").training.use_gpu


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--training.epoch", "3"], "unknown option '--training.epoch', did you mean '--training.epochs'"),
        (["--model.heads.glscl.quries", "9"], "did you mean '--model.heads.glscl.queries'"),
        (["--lr-head", "1"], "did you mean '--training.lr-head'"),
        (["--tau", "1"], "did you mean '--model.heads.\\w+.tau'"),
        (["--zzzzzz", "1"], "unknown option '--zzzzzz'$"),
        (["--training.epochs", "many"], "--training.epochs: .*'many'"),
        (["--training.epochs", "0"], r"training.epochs = 0: .*greater than or equal to 1$"),
        (["--model.heads.glscl.tau", "-1"], r"model.heads.glscl.tau = -1.0: .*greater than 0$"),
        (["--seed", "-3"], "seed = -3"),
        (["--name", "a b"], "name = 'a b'"),
        (["--training.lr-head", "inf"], "training.lr_head = inf"),
        (["--training.zero-stage", "5"], "'5' .*--training.zero-stage.*'0', '1', '2', '3'"),
        (["--data.captions", "every"], "'every' .*--data.captions.*'all', 'one'"),
        (["--training.betas", "0.9"], "--training.betas.*2 values"),
        (["--evaluation.normalisations", "true"], "true .*--a.no-b"),
        (["--data.no-train"], "--data.no-train"),
        (["--seed"], "--seed"),
        (["stray"], "stray"),
        (["-x"], "-x"),
        (["--model.head", "glcsl"], "'glcsl', did you mean 'glscl'"),
        (["--config"], "--config needs"),
        (["--config="], "--config needs"),
        (["--config", "--seed", "1"], "--config needs"),
        (["--config", "tiny", "--config", "msvd"], "--config is given 2 times"),
        (["--config", "tinny"], "did you mean 'tiny'"),
    ],
)
def test_mistakes_in_flags_are_named_in_one_line(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        parse(*words)
    message = str(raised.value)
    assert len(message) < 300
    assert "───" not in message
    assert "---" not in message
    assert "errors.pydantic.dev" not in message


def test_required_option_of_a_command_is_asked_for() -> None:
    class Command(Options):
        """A command."""

        run: str
        """Run directory."""

    assert parse_options(Command, ["--run", "x"], "glscl x").run == "x"
    with pytest.raises(UserError, match="--run"):
        parse_options(Command, [], "glscl x")


def test_every_key_has_help() -> None:
    def fields(model: type[BaseModel]) -> list[tuple[str, str | None, Any]]:
        return [(f"{model.__name__}.{name}", f.description, f.annotation) for name, f in model.model_fields.items()]

    todo, missing = [RunConfig], []
    while todo:
        for name, text, kind in fields(todo.pop()):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                todo.append(kind)  # type: ignore[arg-type]
            elif not text:
                missing.append(name)
    assert not missing


# ------------------------------------------------------------------------------------------------------ round trips


def _values(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Any subset of a section's keys with values that its fields accept."""
    known = {name: _value(model, name) for name in model.model_fields}
    return st.fixed_dictionaries({}, optional={name: how for name, how in known.items() if how is not None})


def _value(model: type[BaseModel], name: str) -> st.SearchStrategy[Any] | None:
    field = model.model_fields[name]
    if name in ("name", "head"):
        return st.from_regex(r"[A-Za-z0-9._-]{0,12}", fullmatch=True) if name == "name" else st.just("mean_pool")
    if name == "augment":
        return st.sampled_from([None, "rand-m7-n4-mstd0.5-inc1", "rand-n2"])
    if name == "max_pairs":  # or max_videos, not both
        return st.none()
    if name == "lora_targets":
        return st.sampled_from([None, "value", "query,key,value,output,mlp"])
    if (model, name) == (EvaluationConfig, "frames"):  # each once
        return st.sampled_from([None, [], ["single"], ["reversed", "shuffled"]])
    if (model, name) == (TrackingConfig, "to"):  # each once
        return st.sampled_from([[], ["wandb"], ["trackio", "mlflow"]])
    if (model, name) == (TrackingConfig, "project"):
        return st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True)
    low = next(
        (getattr(m, "ge", getattr(m, "gt", None)) for m in field.metadata if hasattr(m, "ge") or hasattr(m, "gt")), None
    )
    high = next(
        (getattr(m, "le", getattr(m, "lt", None)) for m in field.metadata if hasattr(m, "le") or hasattr(m, "lt")), None
    )
    return _of_kind(field.annotation, low, high)


def _of_kind(kind: Any, low: float | None, high: float | None) -> st.SearchStrategy[Any] | None:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _values(kind)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        inner = [_of_kind(argument, low, high) for argument in get_args(kind) if argument is not ...]
        assert all(argument is not None for argument in inner)
        return st.lists(inner[0], max_size=3) if ... in get_args(kind) else st.tuples(*inner).map(list)  # type: ignore[arg-type]
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(int(low or 0), min(10**6, int(high or 10**6)))
    if kind is float:
        floats = st.floats(
            low, high, allow_nan=False, allow_infinity=False, exclude_min=low == 0, exclude_max=high == 1
        )
        return floats.filter(lambda value: value > 0 or low is None)
    if kind is str:
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    arguments = get_args(kind)
    if tuple[int, int] in arguments:  # of workers
        sizes = st.integers(1, 10**6)
        return sizes | st.lists(sizes, min_size=2, max_size=2, unique=True).map(sorted) | st.just("auto")
    if Literal["auto"] in arguments:
        other, *limits = get_args(arguments[0]) or (arguments[0],)
        least = next((getattr(m, "ge", getattr(m, "gt", None)) for limit in limits for m in limit.metadata), None)
        return st.just("auto") | _of_kind(other, least, None)  # type: ignore[operator]
    assert type(None) in arguments, kind
    return st.none() | _of_kind(next(a for a in arguments if a is not type(None)), low, high)  # type: ignore[operator]


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(_values(RunConfig))
def test_any_valid_override_survives_yaml(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    config = validate(values, "generated")
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(str(path)) == config


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=12) | st.sampled_from([f"--{key}" for key in keys_of(RunConfig)]), max_size=6))
def test_any_words_give_a_configuration_or_one_line(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        return
    message = ""
    try:
        parse(*words)
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_resolved_configuration_has_absolute_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").touch()
    config = parse("--data.train", "a", "s3://b/c", "--model.pretrained", "weights.pt", "--storage", "runs").resolved()
    assert config.data.train == (str(tmp_path / "a"), "s3://b/c")
    assert config.model.pretrained == str(tmp_path / "weights.pt")
    assert config.run_directory == f"{tmp_path}/runs/{config.name}"
    assert config.name
    assert parse("--model.pretrained", "openai").resolved().model.pretrained == "openai"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_mutants_of_a_file_are_read_or_refused(seed: int) -> None:
    text = b"seed: 3\nmodel: {head: xpool, max_frames: 6}\ntraining:\n  lr_head: 1e-4\n  epochs: 2\nname: &a x\n"
    mutant = mutate(text, text, random.Random(seed)).decode("utf-8", "replace")
    with contextlib.suppress(UserError):
        validate(read_yaml("run.yaml", mutant), "run.yaml")
