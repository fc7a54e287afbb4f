"""What the driver finds out before it starts anything, what it hands on, and how a run that cannot go on ends."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from glscl.cli import main
from glscl.data import shared_memory
from glscl.data.quarantine import Incomplete, read_quarantine
from glscl.data.shards import ShardSet
from glscl.errors import UserError, full_disk
from glscl.evaluation.metrics import measure_ranks
from glscl.evaluation.ranks import rank_targets
from glscl.evaluation.results import Test
from glscl.evaluation.saved import ModelCard
from glscl.models import ModelConfig
from glscl.training.config import run_config
from glscl.training.driver.outputs import build_results, write_results
from glscl.training.driver.preflight import CONFIG, as_begun, preflight


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "launch-test.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


@pytest.fixture
def words(clip: str, tmp_path: Path) -> Callable[..., list[str]]:
    """Options of a small run; further words win."""

    def build(*more: object) -> list[str]:
        given = {
            "storage": tmp_path / "runs",
            "name": "r",
            "model.clip": clip,
            "data.loader-workers": 0,
            "training.global-batch": 8,
            "training.epochs": 2,
        }
        base = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        return ["--config", "tiny", *base, "--data.validation", "--data.test", *map(str, more)]

    return build


def test_preflight_says_what_will_run(
    words: Callable[..., list[str]], make_shards: Callable[..., ShardSet], tmp_path: Path
) -> None:
    one = make_shards("one", captions=[2] * 16, per_shard=4)
    two = make_shards("two", captions=[1] * 16, per_shard=4)
    more = ["--data.train", one.uri, two.uri, "--training.num-workers", "2", "--training.accumulate", "2"]
    more += ["--data.virtual-streams", "4", "--data.weights", "3", "1", "--training.epochs", "3"]
    config = run_config(words(*more), "glscl train").resolved()
    ready = preflight(config)
    assert ready.train_domains == ("one", "two")
    facts = ready.facts
    assert facts["run"] == f"{tmp_path}/runs/r"
    assert "16 videos, 32 pairs, 75% of each batch" in facts["train"]
    assert "16 videos, 16 pairs, 25% of each batch" in facts["train"]
    assert facts["global batch"] == "8 pairs = 2 workers x 2 parts x 2"
    assert facts["steps"] == "18 (6 per epoch of 48 pairs; 0 pairs wait for the next epoch)"
    assert facts["validation"] == "none: last step is kept"
    assert not (tmp_path / "runs").exists()


def test_preflight_says_what_the_batch_does_to_the_official_form(
    words: Callable[..., list[str]],
    make_shards: Callable[..., ShardSet],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards = make_shards("msrvtt", captions=[2] * 16, per_shard=4)
    given = ["--data.train", shards.uri, "--data.augment", "rand-m7-n4-mstd0.5-inc1"]
    official = [*given, "--loss.inter-consistency.form", "official", "--loss.inter-consistency.margin-weight", "1"]
    facts = preflight(run_config(words(*official), "glscl train").resolved()).facts
    assert "about 6.25 at the first step at 8 pairs" in facts["note"]
    assert facts["augmentation"] == "rand-m7-n4-mstd0.5-inc1"
    quiet = preflight(run_config(words(*given), "glscl train").resolved()).facts
    assert "note" not in quiet
    other_head = preflight(run_config(words(*official, "--model.head", "xpool"), "glscl train").resolved()).facts
    assert "note" not in other_head, "the head has no concepts"
    without = preflight(run_config(words(*official, "--model.heads.glscl.no-use-local"), "glscl train").resolved())
    assert "note" not in without.facts
    assert main(["train", *words(*official), "--dry-run"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(printed) == 1
    assert "Set loss.inter_consistency.form to corrected" in printed[0]


def test_preflight_knows_a_run_that_continues(
    words: Callable[..., list[str]], make_shards: Callable[..., ShardSet]
) -> None:
    shards = make_shards(captions=[2] * 16, per_shard=4)
    config = run_config(words("--data.train", shards.uri), "glscl train").resolved()
    path = Path(config.run_directory, CONFIG)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(config.model_dump(mode="json")))
    assert preflight(config).facts["run"].endswith("/runs/r (continues)")
    changes = ["--training.log-every", "3", "--training.num-workers", "2"]
    free = run_config(words("--data.train", shards.uri, *changes), "glscl train").resolved()
    assert preflight(free).facts["run"].endswith("/runs/r (continues)")


def test_a_run_from_before_an_option_goes_on_without_it(
    words: Callable[..., list[str]], make_shards: Callable[..., ShardSet], capsys: pytest.CaptureFixture[str]
) -> None:
    """Presets have gained `data.augment`: runs that began without it would be refused as other ones."""
    shards = make_shards(captions=[2] * 16, per_shard=4)
    given = words("--data.train", shards.uri, "--data.augment", "rand-m7-n4-mstd0.5-inc1", "--seed", "5")
    config = run_config(given, "glscl train").resolved()
    assert as_begun(config) == (config, []), "a new run"
    path = Path(config.run_directory, CONFIG)
    path.parent.mkdir(parents=True)
    saved = config.model_dump(mode="json")
    path.write_text(json.dumps(saved))
    assert as_begun(config) == (config, []), "a run that knows it"
    del saved["data"]["augment"]
    del saved["model"]["heads"]["xclip"], saved["loss"]["channel_decorrelation"]
    path.write_text(json.dumps(saved))
    begun, (note,) = as_begun(config)
    assert begun == config.model_copy(update={"data": config.data.model_copy(update={"augment": None})})
    assert note.startswith("data.augment stays None, with which ")
    assert main(["train", *given, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert note in out
    assert "(continues)" in out


def test_shared_memory_that_is_too_small_is_told_before_anything_starts(
    words: Callable[..., list[str]], make_shards: Callable[..., ShardSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards(captions=[2] * 16, per_shard=4)
    held_out = make_shards("held-out", captions=[1] * 6, per_shard=3)
    more = ["--data.train", shards.uri, "--data.loader-workers", "2", "--data.prefetch", "4"]
    more += ["--training.num-workers", "2", "--data.virtual-streams", "4", "--model.max-frames", "2"]
    one = 2 * 3 * 32 * 32
    monkeypatch.setenv("RAY_ADDRESS", "local")
    for validation, needed, knob in (
        ([], 8 * 5 * one, r"data.prefetch \(4\) or training.global_batch"),
        (["--data.validation", held_out.uri], (8 * 5 + 6) * one, "or evaluation.batch_size"),
    ):
        config = run_config([*words(*more), *validation], "glscl train").resolved()
        monkeypatch.setattr(shared_memory, "free_bytes", lambda needed=needed: needed - 1)
        with pytest.raises(UserError, match=f"2 training workers need up to .* lower .*{knob}"):
            preflight(config)
        monkeypatch.setattr(shared_memory, "free_bytes", lambda needed=needed: needed)
        preflight(config)
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    preflight(config)  # the workers are elsewhere, and look there
    monkeypatch.setenv("RAY_ADDRESS", "local")
    preflight(run_config([*words(*more), "--data.loader-workers", "0"], "glscl train").resolved())


def _entry(domain: str, recall: float) -> Test:
    ranks = rank_targets(torch.randn(10, 10, generator=torch.Generator().manual_seed(0)), torch.arange(10))
    direction = measure_ranks(ranks) | {"R@1": recall}
    values = {
        "name": f"{domain}/test",
        "domain": domain,
        "split": "test",
        "relation": "in-domain" if domain == "toy" else "cross-domain",
        "shards": "/shards",
        "fingerprint": "f",
        "videos": 10,
        "texts": 10,
        "captions_per_video": 1.0,
        "max_frames": 2,
        "max_words": 8,
        "truncated_texts": 0,
        "quarantined": 0,
        "quarantine": [],
        "text_to_video": direction,
        "video_to_text": direction,
        "hubness_skewness": 0.1,
        "oracles": None,
        "attribute_accuracy": None,
        "examples": [],
    }
    return Test.model_validate(values)


def test_results_and_history(tmp_path: Path) -> None:
    card = ModelCard(
        model=ModelConfig(), sample_fps=1.0, decoder="pyav", train_domains=("toy",), step=4, seed=1, run="r",
        validation={"validation_R@1": 5.0},
    )  # fmt: skip
    rows = [
        {"step": 2, "loss": 3.0, "loss/contrastive": 2.5, "gradient_norm": 1.0},
        {"step": 4, "loss": 2.0, "loss/contrastive": 1.5},
        {"step": 4, "validation/toy/text_to_video_R@1": 5.0, "validation_R@1": 5.0},
    ]
    results = build_results(card, [_entry("toy", 12.34), _entry("other", 1.0)], rows)
    assert results.verdict == "run=r step=4 toy/test (in-domain) R@1=12.3, other/test (cross-domain) R@1=1.0"
    assert build_results(card, [], rows).verdict == "run=r step=4 no test set"
    short = {
        "part": "validation", "domain": "toy", "split": "dev", "shards": "/dev", "videos": 16, "of": 19,
        "reasons": "3 x torn",
    }  # fmt: skip
    bad = {
        "part": "validation", "domain": "toy", "split": "dev", "set": "/dev", "shard": "shard-000000.tar", "key": "0",
        "video_id": "a", "reason": "torn",
    }  # fmt: skip
    incomplete = build_results(card, [_entry("toy", 12.34)], rows, [Incomplete.model_validate(short)], [bad])
    assert incomplete.verdict.endswith("R@1=12.3; incomplete: held-out set toy/dev 16 of 19 videos")
    written = json.loads(json.dumps(incomplete.to_json()))
    assert (written["incomplete"], written["quarantine"]) == ([short], [bad])
    assert results.history == [
        {"step": 2, "loss": 3.0, "contrastive": 2.5},
        {"step": 4, "loss": 2.0, "contrastive": 1.5, "validation": {"toy/text_to_video_R@1": 5.0}},
    ]
    write_results(results, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tests"][1]["domain"] == "other"
    assert "<html" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.e2e
def test_a_run_that_cannot_go_on_ends_in_one_line(
    words: Callable[..., list[str]],
    make_shards: Callable[..., ShardSet],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two thirds of the videos are torn, which only the worker that decodes them can see."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    shards = make_shards(captions=[2] * 16, per_shard=4, bad=dict.fromkeys(range(11), b"torn"))
    assert main(["train", *words("--data.train", shards.uri, "--training.log-every", "1")]) == 2
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    last = printed.out.splitlines()[-1]
    assert last.startswith("glscl: FAILED ")
    assert "of 16 videos of training set toy/train cannot be used, more than data.max_bad_fraction (0.01): toy" in last
    listed = read_quarantine(str(tmp_path / "runs" / "r"))  # also what was found since the last row of the log
    assert {entry["video_id"] for entry in listed} <= {f"v{number:03d}" for number in range(11)}
    assert len(listed) >= int(re.findall(r"(\d+) of 16 videos", last)[0]) > 0
    assert {(entry["part"], entry["set"]) for entry in listed} == {("train", shards.uri)}
    status = json.loads((tmp_path / "runs" / "r" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "data.max_bad_fraction" in status["verdict"]
    assert not (tmp_path / "runs" / "r" / "model").exists()


@pytest.mark.e2e
def test_bad_videos_of_held_out_and_test_sets_are_listed_and_told(
    words: Callable[..., list[str]],
    make_shards: Callable[..., ShardSet],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A held-out set chooses the checkpoint: it does not shrink without a word, nor does the gallery of a test."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    train = make_shards(captions=[2] * 16, per_shard=4)
    dev = make_shards("dev", captions=[1] * 8, per_shard=4, bad={1: b"torn", 6: b"torn too"})
    test = make_shards("test", captions=[1] * 8, per_shard=4, bad={3: b"torn"})
    sets = ["--data.validation", dev.uri, "--data.test", test.uri]
    limit = ["--data.max-bad-fraction", "0.3", "--training.epochs", "1"]
    run = str(tmp_path / "runs" / "r")
    assert main(["train", *words("--data.train", train.uri, *sets, *limit)]) == 0
    out = capfd.readouterr().out
    assert re.search(r"quarantined: 2 of 8 videos of held-out set dev/train cannot be used: dev/v00[16] \(", out)
    missing = "incomplete: held-out set dev/train 6 of 8 videos, test set test/train 7 of 8 videos"
    assert missing in out.splitlines()[-1]
    parts = {(entry["part"], entry["video_id"]) for entry in read_quarantine(run)}
    assert parts == {("validation", "v001"), ("validation", "v006"), ("test", "v003")}
    results = json.loads(Path(run, "results.json").read_text())
    assert {(entry["part"], entry["video_id"]) for entry in results["quarantine"]} == parts
    assert missing in json.loads(Path(run, "status.json").read_text())["verdict"]
    assert "Missing videos" in Path(run, "report.html").read_text()


@pytest.mark.e2e
def test_a_loss_that_is_not_finite_ends_the_run_before_anything_of_it_is_saved(
    words: Callable[..., list[str]],
    make_shards: Callable[..., ShardSet],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rates as large as this one poison the parameters in a few steps, between two rows of the log."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    shards = make_shards(captions=[2] * 16, per_shard=4)
    more = ["--training.lr-towers", "1e30", "--training.precision", "fp32", "--checkpoint.every-steps", "1"]
    assert main(["train", *words("--data.train", shards.uri, *more, "--training.epochs", "4")]) == 2
    last = capfd.readouterr().out.splitlines()[-1]
    run = tmp_path / "runs" / "r"
    (file,) = run.glob("nonfinite-step_*.json")
    report = json.loads(file.read_text())
    kept = sorted(path.name for path in run.glob("step_*"))
    assert last.startswith(f"glscl: FAILED step {report['step']}: ")
    assert f"not finite, of pairs {', '.join(report['pairs'][:3])} and 5 more (all in {file.name})" in last
    assert f"Last checkpoint, from before that: {kept[-1]}" in last
    assert "training.lr_towers" in last
    assert len(report["pairs"]) == 8
    assert set(report["not_finite"]) & {"loss", "gradient_norm"}
    assert int(kept[-1].split("-")[0].removeprefix("step_")) < report["step"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (rows[-1]["step"], rows[-1]["pairs"]) == (report["step"], file.name)
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


def test_a_dry_run_fetches_nothing(words: Callable[..., list[str]], make_shards: Callable[..., ShardSet]) -> None:
    train = make_shards("one", captions=[2] * 16, per_shard=4).uri
    more = ["--data.train", train, "--model.clip", "RN50", "--model.pretrained", "openai"]
    config = run_config(words(*more), "glscl train").resolved()
    assert preflight(config, fetch=False).facts["weights"] == "openai"


@pytest.mark.parametrize("where", ["controller", "worker"])
def test_a_full_disk_is_one_line_whoever_meets_it(where: str) -> None:
    """Ray Train's controller writes files of its own, and rank 0 its log: neither says what a user can do."""
    from glscl.training.driver.launch import _explain_failure

    full = OSError(errno.ENOSPC, "No space left on device", "/runs/r/metrics.jsonl")
    error = SimpleNamespace(
        worker_failures={0: full} if where == "worker" else {},
        controller_failure=full if where == "controller" else None,
    )
    reason = _explain_failure(error, SimpleNamespace(failure=lambda: None, last_heartbeat=lambda rank: None), "/runs")
    assert isinstance(reason, UserError)
    assert str(reason).startswith("/runs/r/metrics.jsonl: No space left on device: free space there")
    assert full_disk(ValueError("other"), "/runs") is None
    assert full_disk(OSError(errno.EACCES, "denied"), "/runs") is None


def test_a_full_disk_ends_a_worker_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train would start the workers again and again on what a user has to mend."""
    from glscl.training import worker

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker, "_train", refuse)
    monkeypatch.setattr(worker.RunConfig, "model_validate", lambda values: values)
    values = {"config": {"storage": "/runs"}, "store": "", "fence": {"directory": "/runs/r", "number": 1, "token": ""}}
    with pytest.raises(UserError, match="/runs: No space left on device: free space there"):
        worker.train_worker(values)
