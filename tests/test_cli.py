"""The command line as a user meets it: help, presets, the dry run, and the last line when something is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glscl import commands
from glscl.cli import main
from glscl.commands.shards_build import Build
from glscl.data.benchmarks import benchmark_names
from glscl.data.shards import ShardSet
from glscl.options.flags import wrap_help
from glscl.options.mistakes import keys_of
from glscl.options.packaged import preset_names, preset_text
from glscl.study.options import StudyConfig
from glscl.training.config import RunConfig, load_config
from tune.options import SweepConfig

COMMANDS = tuple(commands.list_commands())
Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: str) -> tuple[int, str]:
    """Exit status and standard output."""
    status = main(list(words))
    return status, capsys.readouterr().out


def refused(capsys: Capture, *words: str) -> str:
    """What the verdict says of a command line that is bad input."""
    status, out = run(capsys, *words)
    last = out.splitlines()[-1]
    assert status == 2, out
    assert last.startswith("glscl: FAILED ")
    return last.removeprefix("glscl: FAILED ")


def plain(text: str) -> str:
    """Help without the boxes and line breaks that tyro lays it out with."""
    return " ".join(re.sub(r"[│╭╮╰╯─|+]", " ", text).split())


# ------------------------------------------------------------------------------------------------------------ help


def test_module_runs_and_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "glscl", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE), command


def test_help_and_bad_spelling_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from glscl.cli import main; statuses = main(['--help']), main(['trian']), main(['shards']);"
        "print(statuses, 'torch' in sys.modules, 'ray' in sys.modules);"
        "main(['submit', '--address', 'x', '--', 'train']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-3] == "(0, 2, 2) False False"
    assert lines[-2].startswith("glscl: FAILED x: not a dashboard's address")
    assert lines[-1] == "False"  # nor does what only talks to a cluster


def imported(tmp_path: Path, *lines: str) -> set[str]:
    """Which of the slow packages command lines have imported that must be refused; all in one process."""
    code = (
        "import sys; from glscl.cli import main; statuses = [main(line.split()) for line in sys.argv[1:]];"
        f"print(set(statuses), *(name for name in {SLOW} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *lines],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        check=True,
    )
    status, *names = done.stdout.splitlines()[-1].split()
    assert status == "{2}", done.stdout
    return set(names)


SLOW = ("torch", "torchvision", "open_clip", "webdataset", "deepspeed", "ray", "ray.train", "scipy", "sklearn", "s3fs")


def test_mistakes_that_need_no_torch_do_not_wait_for_it(tmp_path: Path) -> None:
    shards = "shards build --annotations a --split s --videos v --output o"
    lines = [
        *("train --config msrvt", "train --training.epochss 3", "train --config", "eval --runn x"),
        *("eval --run nowhere --test x", "study --config toyy", "sweep --config toyy", "quickstart --nme x"),
        *("quickstart --name a/b", "shards info nowhere", "shards verify nowhere", f"{shards} --benchmark jsnl"),
        *(f"{shards} --benchmark jsonl", "toy --domain toy_clip --split dev --count 1 --output x", "doctor --worker 1"),
    ]
    assert imported(tmp_path, *lines) == set()


def test_mistakes_in_a_run_wait_for_torch_alone(tmp_path: Path) -> None:
    """Heads bring their own options, and heads are torch's; models, decoders and Ray are not needed to read them."""
    lines = ["train --training.tau 3", "train --config tiny --model.head glcsl", "train --config nowhere.yaml"]
    lines += ["study --config nowhere.yaml", "sweep --config nowhere.yaml"]
    assert imported(tmp_path, *lines) <= {"torch"}


def test_a_command_is_one_file(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ['HELP = "greet somebody"', "ORDER = 15", "def run(words, program):", "    return f'{program}: {words}'"]
    (tmp_path / "say_hello.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    commands.list_commands.cache_clear()
    try:
        _, out = run(capsys, "--help")
        assert run(capsys, "say", "hello", "you") == (0, "glscl: OK glscl say hello: ['you']\n")
        assert "did you mean 'say hello'" in refused(capsys, "say-hello")
    finally:
        commands.list_commands.cache_clear()
    names = re.findall(r"^  (\S+(?: \S+)?)  ", out, re.MULTILINE)
    assert names[:3] == ["quickstart", "say hello", "train"]


def test_a_reader_of_annotations_is_named_by_the_help() -> None:
    assert set(re.findall(r"\w+", Build.model_fields["benchmark"].description or "")) > set(benchmark_names())


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"], ["shards", "--help"]])
def test_usage(capsys: Capture, words: list[str]) -> None:
    status, out = run(capsys, *words)
    assert status == 0
    assert out.startswith("usage: glscl COMMAND")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_usage_fits_the_terminal_and_says_what_to_begin_with(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out = run(capsys)
    assert all(len(line) <= max(columns, 80) for line in out.splitlines())
    assert max(len(line) for line in out[: out.index("New here?")].splitlines()) <= columns
    assert re.search(r"^New here\? +glscl quickstart ", out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(capsys: Capture, command: str, flag: str) -> None:
    status, out = run(capsys, *command.split(), flag)
    assert status == 0
    assert f"usage: glscl {command}" in out
    assert "FAILED" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_readable_at_80_columns(capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out = run(capsys, *command.split(), "--help")
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert re.match(r"\w", out.split("\n\n")[1]), "what it does comes before its options"


def test_columns_of_a_help_text_stay_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = "Train a run, or continue it where it stopped, which takes a while.\n\n  --name NAME   " + "word " * 12
    assert wrap_help(text).splitlines() == [
        "Train a run, or continue it where it stopped, which takes a",
        "while.",
        "",
        "  --name NAME   word word word word word word word word word",
        "                word word word",
    ]


def test_train_help_explains_every_key(capsys: Capture) -> None:
    status, out = run(capsys, "train", "--help")
    assert status == 0
    assert "--config NAME|FILE.yaml" in out
    assert "--dry-run" in out
    words = plain(out)
    for key in keys_of(RunConfig):
        assert re.search(rf"--{re.escape(key.replace('_', '-'))}[ ,]", words), key
    assert "Temperature of the text-conditioned frame pooling (τ). (default: 3.0)" in words
    assert "--training.zero-stage {0,1,2,3}" in words


def test_train_help_shows_the_values_of_a_preset(capsys: Capture) -> None:
    _, out = run(capsys, "train", "--config", "lsmdc", "--help")
    assert "frame pooling (τ). (default: 5.0)" in plain(out)


# --------------------------------------------------------------------------------------------------------- presets


def test_presets_lists_each_with_its_description(capsys: Capture) -> None:
    status, out = run(capsys, "presets")
    assert status == 0
    commands = [("train", name, preset_text(name)) for name in preset_names()]
    commands += [("study", name, StudyConfig.text(name)) for name in StudyConfig.names()]
    commands += [("sweep", name, SweepConfig.text(name)) for name in SweepConfig.names()]
    for line, (command, name, text) in zip(out.splitlines(), commands, strict=True):
        words = line.split(maxsplit=4)
        assert words[:4] == ["glscl", command, "--config", name]
        assert words[4] == text.splitlines()[0].removeprefix("# ")


def test_presets_prints_one_as_it_can_be_loaded(capsys: Capture, tmp_path: Path) -> None:
    status, out = run(capsys, "presets", "msvd")
    assert status == 0
    path = tmp_path / "my.yaml"
    path.write_text(out, encoding="utf-8")
    assert load_config(str(path)) == load_config("msvd")
    status, out = run(capsys, "presets", "toy")
    assert (status, out) == (0, StudyConfig.text("toy"))
    status, out = run(capsys, "presets", "sweep", "toy")
    assert (status, out) == (0, SweepConfig.text("toy"))


def test_a_bad_sweep_is_one_line_and_starts_nothing(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(SweepConfig.text("toy_small").replace("model.heads.glscl.tau:", "model.heads.glscl.tua:"))
    status, out = run(capsys, "sweep", "--config", str(path), "--storage", str(tmp_path / "runs"))
    assert status == 2
    words = "space: unknown key 'model.heads.glscl.tua', did you mean 'model.heads.glscl.tau'?"
    assert out.splitlines() == [f"glscl: FAILED {words}"]
    assert not (tmp_path / "runs").exists()


# --------------------------------------------------------------------------------------------------------- dry run


@pytest.fixture
def shard_set(make_shards: Callable[..., ShardSet]) -> ShardSet:
    return make_shards(captions=[2] * 12, per_shard=3)


def small(shard_set: ShardSet, tmp_path: Path, *words: str) -> list[str]:
    given = ["--data.train", shard_set.uri, "--data.validation", "--data.test", "--storage", str(tmp_path / "runs")]
    return ["train", "--config", "tiny", *given, "--name", "r", "--training.global-batch", "8", *words, "--dry-run"]


def test_dry_run_prints_configuration_and_arithmetic_and_starts_nothing(
    capsys: Capture, shard_set: ShardSet, tmp_path: Path
) -> None:
    status, out = run(capsys, *small(shard_set, tmp_path, "--training.num-workers", "2", "--training.accumulate", "2"))
    assert status == 0, out
    assert "global batch: 8 pairs = 2 workers x 2 parts x 2" in out
    assert "15 (3 per epoch of 24 pairs; 0 pairs wait for the next epoch)" in out
    assert "12 videos, 24 pairs, 100% of each batch" in out
    assert out.splitlines()[-1].startswith("glscl: OK dry run")
    path = tmp_path / "effective.yaml"
    path.write_text(out[: out.index("glscl train\n")], encoding="utf-8")
    effective = load_config(str(path))
    assert effective.training.num_workers == 2
    assert effective.data.train == (shard_set.uri,)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--training.num-workers", "3"], r"training.global_batch \(8\) .* training.num_workers \(3\)"),
        (["--training.accumulate", "3"], r"training.accumulate \(3\)"),
        (["--data.virtual-streams", "3"], r"data.virtual_streams"),
        (["--data.loader-workers", "8"], "too few shards: 4"),
        (["--training.global-batch", "64"], "lower training.global_batch"),
        (["--data.train", "nowhere"], "nowhere/manifest.json: no such file"),
        (["--data.train"], "data.train is empty"),
        (["--data.weights", "1", "2"], "data.weights"),
        (["--model.clip", "ViT-B-33"], "model.clip"),
        (["--model.heads.glscl.attention-heads", "5"], "attention_heads"),
        (["--model.max-words", "78"], "model.max_words"),
        (["--loss.contrastive.weight", "0", "--model.head", "mean_pool"], "no term is on"),
    ],
)
def test_dry_run_finds_what_would_stop_the_run(
    capsys: Capture, shard_set: ShardSet, tmp_path: Path, words: list[str], says: str
) -> None:
    assert re.search(says, refused(capsys, *small(shard_set, tmp_path, *words)))


def test_choosing_on_the_test_set_is_refused(capsys: Capture, shard_set: ShardSet, tmp_path: Path) -> None:
    words = small(shard_set, tmp_path, "--data.validation", shard_set.uri, "--data.test", shard_set.uri)
    assert "is also in data.test" in refused(capsys, *words)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian", "unknown command 'trian', did you mean 'train'"),
        ("--verbose", "unknown command '--verbose'"),
        ("shards", "needs build, index, mteb, verify, info or duplicates"),
        ("shards bild", "needs build, index, mteb, verify, info or duplicates"),
        ("train --training.epoch 3", "did you mean '--training.epochs'"),
        ("train --config tinny", "did you mean 'tiny'"),
        ("train --config nowhere.yaml", "nowhere.yaml: no such file"),
        ("presets msvt", "no preset 'msvt', did you mean 'msvd'|'msrvtt'"),
        ("presets msvd tiny", "takes one name"),
        ("eval --runs x", "unknown option '--runs', did you mean '--run'"),
        ("eval --run nowhere --test x", "nowhere"),
        ("eval", "--run"),
        ("toy --domain toy_clip --split train --count 1 --output x", "did you mean 'toy_clips'"),
        ("toy --domain toy_clips --split train --count 0 --output x", "count = 0"),
        ("shards build --benchmark msrvt", "--annotations|--output"),
        (
            "shards build --benchmark msrvt --annotations a --split s --videos v --output o",
            "unknown benchmark 'msrvt', did you mean 'msrvtt'",
        ),
        ("shards info", "takes one shard set"),
        ("shards info nowhere", "nowhere/manifest.json: no such file"),
        ("shards verify nowhere", "nowhere/manifest.json: no such file"),
        ("quickstart --nam x", "did you mean '--name'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(says, refused(capsys, *line.split()))
    assert not list(tmp_path.iterdir())


def test_exit_status_reaches_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("training: {epoch: 3}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "glscl", "train", "--config", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    expected = f"glscl: FAILED {path}: unknown key 'training.epoch', did you mean 'training.epochs'?"
    assert done.stdout.splitlines() == [expected]
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------- shard commands


def test_info_and_verify(capsys: Capture, shard_set: ShardSet) -> None:
    status, out = run(capsys, "shards", "info", shard_set.uri)
    assert status == 0
    assert re.search(r"pairs.*24|24.*pairs", out)
    status, out = run(capsys, "shards", "verify", shard_set.uri)
    assert status == 0
    assert out.splitlines()[-1].startswith("glscl: OK ")

    tar = Path(shard_set.uri) / shard_set.manifest.shards[1].name
    data = bytearray(tar.read_bytes())
    data[data.index(b"ftyp") + 40] ^= 0xFF  # in a video, not in a header
    tar.write_bytes(data)
    verdict = refused(capsys, "shards", "verify", shard_set.uri)
    assert "1 problem" in verdict


def test_toy_writes_videos_and_annotations(capsys: Capture, tmp_path: Path) -> None:
    words = ["--domain", "toy_clips", "--split", "dev", "--count", "2", "--output", str(tmp_path), "--processes", "1"]
    status, out = run(capsys, "toy", *words)
    assert status == 0
    assert re.fullmatch(rf"glscl: OK {re.escape(str(tmp_path))}: 2 videos, \d+ captions", out.splitlines()[-1])
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2
    assert len((tmp_path / "annotations.jsonl").read_text(encoding="utf-8").splitlines()) == 2
