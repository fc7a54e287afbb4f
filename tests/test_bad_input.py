"""Bad input is one line that names file or key and knob, exit status 2, before Ray or training starts."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glscl.cli import main
from glscl.data.shards import ShardSet
from glscl.evaluation.saved import ModelCard, save_model
from glscl.models import ModelConfig, Retriever
from glscl.system import storage
from glscl.system.ownership import Claim, machine_id, start_of
from glscl.training.config import load_config, run_config

Refuse = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Run a command line that must be refused; returns what its last line says."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray is started"))

    def run(*words: str) -> str:
        status = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert status == 2, printed.out + printed.err
        assert "Traceback" not in printed.err
        last = printed.out.splitlines()[-1]
        assert printed.out.count("glscl: ") == 1
        assert last.startswith("glscl: FAILED ")
        return last.removeprefix("glscl: FAILED ")

    return run


@pytest.fixture
def shards(make_shards: Callable[..., ShardSet]) -> Path:
    """A sound set: 12 videos, 24 pairs, 4 tars."""
    return Path(make_shards(captions=[2] * 12, per_shard=3).uri)


@pytest.fixture
def train(shards: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A command line that would train; further words win."""

    def words(*more: object) -> list[str]:
        given = {"data.train": shards, "storage": tmp_path / "runs", "name": "r", "training.global-batch": 8}
        base = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        return ["train", "--config", "tiny", *base, "--data.validation", "--data.test", *map(str, more)]

    return words


# ------------------------------------------------------------------------------------------------- keys and numbers


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--model.heads.glscl.qeries", "3"],
            "'--model.heads.glscl.qeries', did you mean '--model.heads.glscl.queries'",
        ),
        (["--loss.intra_divrsity.weight", "1"], "did you mean '--loss.intra-diversity.weight'"),
        (["--model.head", "glcsl"], "glcsl.*did you mean 'glscl'"),
        (["--training.zero-stage", "4"], "zero.stage"),
        (["--training.global-batch", "9", "--training.num-workers", "2"], r"global_batch \(9\).*num_workers \(2\)"),
        (["--training.accumulate", "3"], r"training.accumulate \(3\).*8 pairs"),
        (["--data.virtual-streams", "3"], r"global_batch \(8\).*data.virtual_streams \(3\)"),
        (["--data.virtual-streams", "2", "--training.num-workers", "4"], r"virtual_streams \(2\).*num_workers"),
        (["--training.num-workers", "4", "--data.loader-workers", "2"], "too few shards: 4 for 4 workers x 2"),
        (["--training.global-batch", "32"], "has 24 pairs but takes 32 .*training.global_batch"),
        (["--data.train"], "data.train is empty"),
        (["--data.train", "gs://bucket/shards"], "gs://bucket/shards: 'gs://' is not supported.*s3://"),
        (["--storage", "gs://bucket/runs"], "gs://bucket/runs: 'gs://' is not supported"),
        (["--model.pretrained", "no_such_tag"], "model.pretrained: 'no_such_tag'"),
        (["--loss.contrastive.weight", "-1"], "loss.contrastive.weight"),
        (["--training.lr-head", "nan"], "training.lr_head = nan"),
        (["--training.lr-head", "1e999"], "training.lr_head = inf"),
        (["--seed", "9" * 6000], "4300 digits"),
        (["--\x1b[31mx", "1"], r"x1b\[31mx"),
    ],
)
def test_train(words: list[str], says: str, refused: Refuse, train: Callable[..., list[str]], tmp_path: Path) -> None:
    message = refused(*train(*words))
    assert re.search(says, message), message
    assert not (tmp_path / "runs").exists(), "nothing was started"


BILLION = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 10}]\n" for n in range(1, 30))
"""Thirty lines of YAML that stand for 10 to the 29 values."""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "loss: {contrastive: {wieght: 1}}",
            "unknown key 'loss.contrastive.wieght', did you mean 'loss.contrastive.weight'",
        ),
        (
            "model: {heads: {glscl: {tua: 3}}}",
            "unknown key 'model.heads.glscl.tua', did you mean 'model.heads.glscl.tau'",
        ),
        ("model: {head: glcsl}", "glcsl.*did you mean 'glscl'"),
        ("training: {epochs: many}", "training.epochs = 'many'"),
        (BILLION, "more than 100000 values"),
        ("a: &a [*a]", "more than 100000 values"),
        ("a: " + "[" * 1000 + "]" * 1000, "nested too deeply"),
        ("".join(" " * n + "a:\n" for n in range(2000)), "nested too deeply"),
        (f"seed: {'9' * 6000}", "not YAML .*4300 digits"),
        (f"seed: 0x{'f' * 60_000}", "seed = an enormous integer"),
        ("seed: 99999999999999999999", "seed = 99999999999999999999"),
        ("seed: 2001-99-99", "seed = '2001-99-99'"),
        ("training: {lr_head: .nan}", "training.lr_head = nan"),
        ("training: {lr_head: -.inf}", "training.lr_head = -inf"),
        ("data: {max_decode_s: .inf}", "data.max_decode_s = inf"),
        ('name: "a\x1b[31m"', "not YAML .unacceptable character"),
        ('name: "a\\e[31m"', r"name = 'a.x1b\[31m'"),
        ("name: !!python/object/apply:os.system [ls]", "not YAML .*python/object/apply"),
        ("- a\n- b", "expected a mapping"),
        ("1: 2", "Keys should be strings"),
    ],
)
def test_configuration_file(text: str, says: str, refused: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    message = refused("train", "--config", path)
    assert message.startswith(f"{path}: ")
    assert re.search(says, message), message


def test_choosing_on_the_test_set(refused: Refuse, train: Callable[..., list[str]], shards: Path) -> None:
    message = refused(*train("--data.validation", shards, "--data.test", shards))
    assert message.startswith(f"data.validation: {shards} is also in data.test")


# ----------------------------------------------------------------------------------------------------- shard sets


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def _truncate(shards: Path) -> None:
    tar = shards / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1000])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated tar": (_truncate, r"shard-000001\.tar: \d+ bytes where manifest\.json says \d+"),
    "missing tar": (lambda s: (s / "shard-000002.tar").unlink(), r"shard-000002\.tar: listed in manifest\.json but"),
    "no manifest": (lambda s: (s / "manifest.json").unlink(), r"manifest\.json: no such file.*glscl shards build"),
    "no JSON": (lambda s: (s / "manifest.json").write_text("{"), r"manifest\.json: not valid JSON"),
    "a list": (lambda s: (s / "manifest.json").write_text("[]"), r"manifest\.json: not a shard manifest"),
    "other field": (
        lambda s: _edit(s / "manifest.json", lambda m: m.update(vidoes=1)),
        r"manifest\.json: not a shard manifest \(vidoes",
    ),
    "other sum": (
        lambda s: _edit(s / "manifest.json", lambda m: m.update(pairs=25)),
        r"manifest\.json: the shards' pairs do not add up to 25",
    ),
    "of the future": (
        lambda s: _edit(s / "manifest.json", lambda m: m.update(format=99)),
        r"manifest\.json: format 99, this version reads 1",
    ),
    "empty split": (
        lambda s: _edit(s / "manifest.json", lambda m: m.update(shards=[], videos=0, pairs=0)),
        r"manifest\.json: domain 'broken' split 'train' is empty",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_shard_set(
    name: str, refused: Refuse, train: Callable[..., list[str]], make_shards: Callable[..., ShardSet], model: Path
) -> None:
    """As training set, as test set of a run and of an evaluation, and to the verifier."""
    damage, says = DAMAGES[name]
    broken = Path(make_shards("broken", captions=[2] * 12, per_shard=3).uri)
    sound = make_shards("sound", captions=[2] * 12, per_shard=3).uri
    damage(broken)
    for words in (
        train("--data.train", broken),
        train("--data.train", sound, "--data.test", broken),
        ["eval", "--run", model, "--test", sound, broken],
        ["shards", "verify", broken],
        ["shards", "info", broken],
    ):
        message = refused(*words)
        assert message.startswith(str(broken)), message
        assert re.search(says, message), message
        assert ("run `glscl shards verify" in message) == (name.endswith("tar") and words[1] != "verify"), message


def test_tar_that_changed_under_its_manifest(refused: Refuse, shards: Path) -> None:
    tar = shards / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(b"ftyp") + 40] ^= 255  # in a video, not in a header
    tar.write_bytes(data)
    assert refused("shards", "verify", shards).startswith(f"{shards}: 1 problem, first {tar}: checksum differs")


# ----------------------------------------------------------------------------------------------- evaluation options


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("toy", "leave_out 'toy': expected DOMAIN=FILE"),
        ("tyo={}/list.txt", "leave_out 'tyo={}/list.txt': no test set of domain 'tyo', did you mean 'toy'"),
        ("toy={}/gone.txt", "leave_out 'toy': {}/gone.txt: no such file"),
    ],
)
def test_leave_out(
    entry: str,
    says: str,
    refused: Refuse,
    train: Callable[..., list[str]],
    model: Path,
    make_shards: Callable[..., ShardSet],
    tmp_path: Path,
) -> None:
    """Before training starts, and before an evaluation."""
    (tmp_path / "list.txt").write_text("v000\n")
    test = make_shards(captions=[1] * 3, root=str(tmp_path / "test")).uri
    entry, says = entry.format(tmp_path), says.format(tmp_path)
    assert refused(*train("--data.test", test, "--evaluation.leave-out", entry)).startswith(says)
    assert not (tmp_path / "runs").exists(), "nothing was started"
    assert refused("eval", "--run", model, "--test", test, "--leave-out", entry).startswith(says)
    assert not (model / "eval").exists()


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("deep.json", b"[" * 100_000, "not valid JSON"),
        ("huge.json", b"9" * 5000, "not valid JSON"),
        ("other.json", b'{"videos": {"a": 1}}', "expected a list of names"),
        ("wide.csv", b"video_id\n" + b"x" * 200_000, "not a table .*field larger"),
        ("latin.txt", b"caf\xe9\n", "not UTF-8"),
        ("none.txt", b"# only a comment\n\n", "names no video"),
    ],
)
def test_leave_out_lists(
    name: str, data: bytes, says: str, refused: Refuse, model: Path, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    message = refused("eval", "--run", model, "--test", shards, "--leave-out", f"toy={tmp_path / name}")
    assert message.startswith(f"leave_out 'toy': {tmp_path / name}: "), message
    assert re.search(says, message), message


def test_query_bank(refused: Refuse, train: Callable[..., list[str]], model: Path, shards: Path) -> None:
    words = ["eval", "--run", model, "--test", shards, "--bank", shards, shards]
    assert refused(*words).startswith("--bank: only normalisations use a query bank; add --normalisations")
    message = refused(*words, "--normalisations", "--bank-videos", "1")
    assert message.startswith("bank_videos (1) is fewer than the 2 training sets")
    few = ["--data.train", shards, shards, "--evaluation.normalisations", "--evaluation.bank-videos", "1"]
    assert refused(*train(*few)).startswith("bank_videos (1) is fewer than the 2 training sets")


# ------------------------------------------------------------------------------------------------- building shards


@pytest.fixture
def annotated(tmp_path: Path, make_video: Callable[..., bytes]) -> Path:
    """A folder with ``train.jsonl`` of two videos, and the videos."""
    folder = tmp_path / "annotated"
    (folder / "videos").mkdir(parents=True)
    for name in "ab":
        (folder / "videos" / f"{name}.mp4").write_bytes(make_video())
    rows = [{"video_id": name, "caption": f"text of {name}"} for name in "ab"]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _missing(folder: Path) -> None:
    (folder / "videos" / "b.mp4").unlink()


@pytest.mark.parametrize(
    ("changes", "damage", "says"),
    [
        ({"annotations": "{}/nowhere"}, None, "{}/nowhere.*--annotations"),
        ({"videos": "{}/nowhere"}, None, "{}/nowhere.*"),
        ({"split": "tarin"}, None, "{}/tarin.jsonl: no such file, did you mean 'train'"),
        ({}, lambda folder: (folder / "train.jsonl").write_text(""), "train.*(empty|no )"),
        ({}, lambda folder: (folder / "train.jsonl").write_bytes(b'{"video_id": "\xff"}\n'), "{}/train.jsonl.*UTF-8"),
        ({}, _missing, "1 of 2 .*--allow-missing"),
        ({"output": "{}/train.jsonl/sub"}, None, "{}/train.jsonl/sub: cannot be written.*--output"),
        ({"samples-per-shard": "0"}, None, "samples_per_shard = 0"),
        ({"benchmark": "msrvtt"}, None, "msrvtt has no split 'train', did you mean 'train_9k'"),
        ({"benchmark": "msrvtt", "split": "train_9k"}, None, "{}.*no such file"),
    ],
)
def test_shards_build(
    changes: dict[str, str], damage: Callable[[Path], object] | None, says: str, refused: Refuse, annotated: Path
) -> None:
    if damage is not None:
        damage(annotated)
    given = {"benchmark": "jsonl", "annotations": "{}", "split": "train", "videos": "{}/videos", "output": "{}/out"}
    words = [word for key, value in (given | changes).items() for word in (f"--{key}", value.format(annotated))]
    message = refused("shards", "build", *words)
    assert re.search(says.format(re.escape(str(annotated))), message), message
    assert not (annotated / "out").exists()


def test_a_shard_set_is_not_overwritten(refused: Refuse, annotated: Path, shards: Path) -> None:
    words = ["--benchmark", "jsonl", "--annotations", annotated, "--split", "train", "--videos", annotated / "videos"]
    message = refused("shards", "build", *words, "--output", shards)
    assert message.startswith(f"{shards}: already holds a shard set; choose another --output or pass --overwrite")


# ------------------------------------------------------------------------------------------------ models and runs


def _card(config: ModelConfig) -> ModelCard:
    return ModelCard(
        model=config, sample_fps=1.0, decoder="pyav", train_domains=("toy",), step=1, seed=0, run="r", validation={}
    )


def _small_clip(folder: Path) -> str:
    path = folder / "bad-input-test.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A run directory with a saved model of random weights."""
    config = ModelConfig(clip=_small_clip(tmp_path), head="mean_pool")
    save_model(str(tmp_path / "trained" / "model"), _card(config), Retriever(config).state_dict())
    return tmp_path / "trained"


def _other_architecture(run: Path) -> None:
    _edit(run / "model" / "model.json", lambda card: card["model"].update(clip="glscl-tiny"))


def _more_parts(run: Path) -> None:
    _edit(run / "model" / "model.json", lambda card: card["model"].update(frame_context="transformer"))


def _fewer_parts(run: Path) -> None:
    config = ModelConfig.model_validate(json.loads((run / "model" / "model.json").read_text())["model"])
    bigger = config.model_copy(update={"frame_context": "transformer"})
    save_model(str(run / "model"), _card(config), Retriever(bigger).state_dict())


def _torn(run: Path) -> None:
    weights = run / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another architecture": (_other_architecture, r"weights\.safetensors: weights of another architecture than model"),
    "a part is missing": (_more_parts, r"weights of another architecture.*'frame_context\..*is missing"),
    "a part too many": (_fewer_parts, r"weights of another architecture.*'frame_context\..*has no place"),
    "torn weights": (_torn, r"weights\.safetensors: not a readable safetensors file \(\d+ bytes where its header says"),
    "no weights file": (lambda r: (r / "model/weights.safetensors").unlink(), r"weights\.safetensors: no such file"),
    "empty weights file": (lambda r: (r / "model/weights.safetensors").write_bytes(b""), "not a readable safetensors"),
    "weights are text": (
        lambda r: (r / "model/weights.safetensors").write_text("x" * 99),
        "not a readable safetensors",
    ),
    "no card": (lambda r: (r / "model/model.json").unlink(), "no trained model there.*--run"),
    "card is no JSON": (lambda r: (r / "model/model.json").write_text("{"), r"model/model\.json: not valid JSON"),
    "card is a list": (lambda r: (r / "model/model.json").write_text("[]"), r"model/model\.json: not a model card"),
    "unknown head": (
        lambda r: _edit(r / "model/model.json", lambda card: card["model"].update(head="newest")),
        r"model/model\.json: .*newest",
    ),
    "unknown key": (
        lambda r: _edit(r / "model/model.json", lambda card: card["model"].update(widht=3)),
        r"model/model\.json: not a model card of this version \(model\.widht",
    ),
    "card is nested": (
        lambda r: (r / "model/model.json").write_text("[" * 100_000),
        r"model/model\.json: not valid JSON",
    ),
    "card has a number of 5,000 digits": (
        lambda r: (r / "model/model.json").write_text("9" * 5000),
        r"model/model\.json: not valid JSON",
    ),
    "header of a terabyte": (
        lambda r: (r / "model/weights.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}"),
        r"weights\.safetensors: not a readable safetensors file \(a header of",
    ),
    "header is nested": (
        lambda r: (r / "model/weights.safetensors").write_bytes((99_999).to_bytes(8, "little") + b"[" * 99_999),
        r"weights\.safetensors: not a readable safetensors file",
    ),
    "header with odd offsets": (
        lambda r: (r / "model/weights.safetensors").write_bytes(
            (58).to_bytes(8, "little") + b'{"a": {"dtype": "F32", "shape": 5, "data_offsets": "ab"}} '
        ),
        r"weights\.safetensors: not a readable safetensors file",
    ),
    "clip is gone": (
        lambda r: _edit(r / "model/model.json", lambda card: card["model"].update(clip="/gone/clip.json")),
        r"model/model\.json: model\.clip: .*/gone/clip\.json",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_eval_of_a_damaged_model(name: str, refused: Refuse, model: Path, shards: Path) -> None:
    damage, says = MODELS[name]
    damage(model)
    message = refused("eval", "--run", model, "--test", shards)
    assert message.startswith(str(model)), message
    assert re.search(says, message), message


def test_eval_output_that_cannot_be_written(refused: Refuse, model: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refused("eval", "--run", model, "--test", shards, "--output", tmp_path / "file" / "sub")
    assert re.search(r"file/sub: cannot be written .*; change --output", message)


def test_storage_that_cannot_be_written(refused: Refuse, train: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refused(*train("--storage", tmp_path / "file"))
    assert re.search(r"file/r: cannot be written .*; change --storage", message)


@pytest.mark.parametrize("command", ["train", "study", "sweep", "eval", "shards build"])
def test_a_directory_that_another_command_writes(
    command: str, refused: Refuse, train: Callable[..., list[str]], model: Path, shards: Path, tmp_path: Path
) -> None:
    """Before Ray is started, and with nothing changed there."""
    where, annotated = tmp_path / "runs" / "r", tmp_path / "annotated"
    annotated.mkdir()
    (annotated / "train.jsonl").write_text('{"video_id": "v000", "captions": ["a"]}\n')
    build = ["shards", "build", "--benchmark", "jsonl", "--annotations", annotated, "--split", "train"]
    build += ["--videos", tmp_path / "videos" / "toy", "--output", where]
    words = {
        "train": train(),
        "study": ["study", "--config", "toy", "--storage", where.parent, "--name", "r"],
        "sweep": ["sweep", "--config", "toy_small", "--storage", where.parent, "--name", "r"],
        "eval": ["eval", "--run", model, "--test", shards, "--output", where],
        "shards build": build,
    }[command]
    knob = "--output" if command in ("eval", "shards build") else "--name"
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            claim = Claim("token", "glscl train", "box", machine_id(), other.pid, start_of(other.pid) or "")
            storage.write_bytes(str(where / "owner" / "00000001.json"), claim.to_bytes())
            message = refused(*words)
        finally:
            other.kill()
    assert re.fullmatch(
        rf"{where} is in use: glscl train on host box, pid {other.pid}, last heartbeat \d+ s ago\. "
        rf"Wait for its end, end it, or choose another {knob}",
        message,
    ), message
    assert [path.name for path in where.rglob("*")] == ["owner", "00000001.json"]


@pytest.mark.parametrize("kind", ["other", "torn"])
def test_pretrained_file(kind: str, refused: Refuse, train: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(Retriever(ModelConfig(clip=_small_clip(tmp_path), head="mean_pool")).towers.state_dict(), path)
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:1000])
    message = refused(*train("--model.pretrained", path))
    assert message.startswith(f"model.pretrained: '{path}' cannot be loaded into glscl-tiny")
    assert message.endswith("give weights of this architecture, or set model.clip to theirs")
    assert not (tmp_path / "runs").exists()


def test_pretrained_file_that_would_run_code(refused: Refuse, train: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    torch.save({"state_dict": {}, "extra": argparse.Namespace()}, path)
    message = refused(*train("--model.pretrained", path))
    assert message.startswith(f"model.pretrained: '{path}' holds more than tensors, so loading it may run code")
    assert message.endswith("set model.trust_pickle")


@pytest.fixture
def existing(train: Callable[..., list[str]], tmp_path: Path) -> Path:
    """The run directory of a run that was started with these words."""
    words = train()[1:]
    config = run_config(words, "glscl train").resolved()
    path = tmp_path / "runs" / "r" / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(config.model_dump(mode="json")))
    return path.parent


def test_run_directory_of_another_configuration(
    refused: Refuse, train: Callable[..., list[str]], existing: Path
) -> None:
    message = refused(*train("--model.head", "mean_pool", "--model.max-frames", "3", "--training.lr-head", "0.5"))
    assert message.startswith(f"{existing} holds a run of another configuration: ")
    assert load_config("tiny").model.max_frames == 6
    for difference in ("model.head: glscl -> mean_pool", "model.max_frames: 6 -> 3", "training.lr_head: 0.001 -> 0.5"):
        assert difference in message
    assert "--name" in message


@pytest.mark.parametrize(("text", "says"), [("{", "not valid JSON"), ("[]", "not a run configuration"), ("{}", "seed")])
def test_damaged_run_configuration(
    text: str, says: str, refused: Refuse, train: Callable[..., list[str]], existing: Path
) -> None:
    (existing / "config.json").write_text(text)
    message = refused(*train())
    assert str(existing) in message
    assert says in message


# ------------------------------------------------------------------------------------------------------------- S3


@pytest.mark.e2e
def test_bucket_that_is_not_there(
    bucket: str, refused: Refuse, train: Callable[..., list[str]], annotated: Path, model: Path, shards: Path
) -> None:
    gone = "s3://no-such-bucket"
    message = refused(*train("--data.train", f"{gone}/x"))
    assert re.match(f"{gone}/x/manifest.json: .*NoSuchBucket.*the bucket's name", message), message
    assert refused(*train("--data.test", f"{bucket}/x")).startswith(f"{bucket}/x/manifest.json: no such file")
    assert "NoSuchBucket" in refused("eval", "--run", f"{gone}/run", "--test", shards)
    build = ["--benchmark", "jsonl", "--annotations", annotated, "--split", "train", "--videos", annotated / "videos"]
    for words, knob in (
        (train("--storage", gone), "--storage"),
        (["eval", "--run", model, "--test", shards, "--output", f"{gone}/out"], "--output"),
        (["shards", "build", *build, "--output", f"{gone}/out"], "--output"),
    ):
        message = refused(*words)
        assert message.startswith(gone)
        assert re.search(rf"cannot be written \(.*bucket.*; change {knob}$|NoSuchBucket.*the bucket's name", message)


# --------------------------------------------------------------------------------------------------- the documentation


def test_the_table_of_bad_input_names_tests_that_exist() -> None:
    """docs/bad-input.md: numbered from 1 without a gap, and every test in it is defined in its file."""
    root = Path(__file__).resolve().parents[1]
    rows = re.findall(r"^\| *(\d+) \|.*$", (root / "docs" / "bad-input.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 40
    for line in (root / "docs" / "bad-input.md").read_text(encoding="utf-8").splitlines():
        if not re.match(r"\| *\d+ \|", line):
            continue
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)", line)
        assert named, line
        for file, test in named:
            assert re.search(rf"^def {test}\(", (root / file).read_text(encoding="utf-8"), re.MULTILINE), line
