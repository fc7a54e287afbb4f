"""An evaluation under shifts: figures of every pass with intervals, its files, its page, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from glscl.cli import main
from glscl.data.features import FeatureSampling
from glscl.data.shards import ShardSet
from glscl.data.shifts import KINDS, Shift
from glscl.errors import UserError
from glscl.evaluation.encode import encode_shards
from glscl.evaluation.encoder import Encoding
from glscl.evaluation.evaluate import evaluate_model
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.ranks import Ranks
from glscl.evaluation.saved import ModelCard, save_model
from glscl.evaluation.scoring import ScoringResult
from glscl.models import ModelConfig, Retriever
from glscl.shifts.report import render_shifts
from glscl.shifts.results import ShiftResults
from glscl.shifts.run import describe_passes, shift_model
from glscl.system.nodes import Share
from tests.reporting.html_page import HOSTILE, Page
from tests.shifts.fake import made_up
from tests.towers import write_towers

MakeShards = Callable[..., ShardSet]
ONE = Share(1, False, 1.0, 0)


class _Scored(ScoringResult):
    """Ranks without similarities."""

    def __init__(self, text: list[int], video: list[int], hubness: float) -> None:
        for name, ranks in (("text_to_video", text), ("video_to_text", video)):
            object.__setattr__(self, name, Ranks(torch.tensor(ranks), torch.tensor(ranks)))
        self._hubness = hubness

    def hubness_skewness(self) -> float:
        return self._hubness


def test_figures_of_passes_are_those_of_their_ranks() -> None:
    """Two captions a video, which are resampled together; the change is paired."""
    videos = 60
    draw = np.random.default_rng(0)
    before = (draw.random((videos, 1)) < 0.7) | (draw.random((videos, 2)) < 0.1)
    after = before & (draw.random((videos, 1)) < 0.6)
    scored = {
        shift: _Scored(np.where(hits, 1, 5).ravel().tolist(), np.where(hits[:, 0], 1, 3).tolist(), hubness)
        for shift, hits, hubness in ((None, before, 0.5), (Shift("noise", 4), after, 1.5))
    }
    owners = [video for video in range(videos) for _ in range(2)]
    plain, noisy = describe_passes(scored, owners, 4000)  # type: ignore[arg-type]
    assert (plain.shift, plain.strength, plain.value, plain.hubness_skewness) == ("", 0, None, 0.5)
    assert (noisy.shift, noisy.strength, noisy.value, noisy.hubness_skewness) == ("noise", 4, 0.26, 1.5)
    assert plain.recall["text_to_video"].estimate == pytest.approx(100 * before.mean())
    assert noisy.recall["video_to_text"].estimate == pytest.approx(100 * after[:, 0].mean())
    assert noisy.metrics["text_to_video"]["MnR"] == pytest.approx((after + 5 * ~after).mean())
    change = noisy.change["text_to_video"]
    assert change.estimate == pytest.approx(100 * (after.mean() - before.mean()))
    of_video = 100 * (after.mean(1) - before.mean(1))  # by hand: a mean over videos and its normal interval
    half = 2.0 * of_video.std(ddof=1) / videos**0.5
    assert change.low == pytest.approx(of_video.mean() - half, abs=1.5)
    assert change.high == pytest.approx(of_video.mean() + half, abs=1.5)
    own = noisy.recall["text_to_video"]
    assert own.low is not None
    assert own.high is not None
    assert own.high - own.low == pytest.approx(4.0 * 100 * after.mean(1).std(ddof=1) / videos**0.5, rel=0.1)
    assert plain.change["text_to_video"].estimate == 0.0
    again = describe_passes(scored, owners, 4000)  # type: ignore[arg-type]
    assert [one.model_dump() for one in again] == [plain.model_dump(), noisy.model_dump()]


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run directory with a model of random weights."""
    config = ModelConfig.model_validate({"clip": "glscl-tiny", "head": "mean_pool", "max_words": 8, "max_frames": 3})
    torch.manual_seed(0)
    card = ModelCard(
        model=config, sample_fps=2.0, decoder="pyav", train_domains=("toy",), step=5, seed=0, run="r", validation={}
    )
    save_model(str(tmp_path / "run" / "model"), card, Retriever(config).state_dict())
    return str(tmp_path / "run")


def test_the_command_scores_every_pass(
    run: str, make_shards: MakeShards, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [
        make_shards("toy", captions=[1, 2] * 5, per_shard=4, bad={2: b"torn"}),
        make_shards("other", captions=[1] * 6, per_shard=4),
    ]
    uris = [shard_set.uri for shard_set in sets]
    texts: list[int] = []
    plain = Retriever.forward

    def counted(self: Retriever, kind: str, *inputs: torch.Tensor) -> object:
        if kind == "text":
            texts.append(len(inputs[0]))
        return plain(self, kind, *inputs)

    monkeypatch.setattr(Retriever, "forward", counted)
    words = [
        "eval",
        "--run",
        run,
        "--test",
        *uris,
        "--workers",
        "1",
        "--loader-workers",
        "0",
        "--max-bad-fraction",
        "0.2",
    ]
    assert main([*words, "--shifts", "noise", "speed"]) == 0
    assert sum(texts) == 14 + 6, "captions are embedded once"
    out = capsys.readouterr().out
    assert "shifts: 2 kinds x 5 strengths, and the frames as they are: 11 passes over 16 videos, each decoded" in out
    folder = Path(run, "eval")
    results = ShiftResults.model_validate(json.loads((folder / "shifts.json").read_text()))
    assert [(test.name, test.relation, test.share) for test in results.tests] == [
        ("toy/train", "in-domain", "9 of 10"),
        ("other/train", "cross-domain", "6"),
    ]
    steps = [("", 0)] + [(kind, strength) for kind in ("noise", "speed") for strength in range(1, 6)]
    ordinary = evaluate_model(run, uris, EvaluationConfig(), ONE)
    for test, expected in zip(results.tests, ordinary, strict=True):
        assert [(one.shift, one.strength) for one in test.passes] == steps
        assert test.plain.metrics["text_to_video"] == expected.text_to_video
        assert test.plain.recall["video_to_text"].estimate == expected.video_to_text["R@1"]
        assert test.plain.hubness_skewness == pytest.approx(expected.hubness_skewness)
        assert len({str(one.metrics) for one in test.of_kind("noise")}) > 1
        assert test.fingerprint == expected.fingerprint
    assert [entry["video_id"] for entry in results.tests[0].quarantine] == ["v002"]
    rows = re.findall(r"^(\S+/train) +(none|noise|speed) +(\d) ", out, re.M)
    assert rows == [(name, kind or "none", str(s)) for name in ("toy/train", "other/train") for kind, s in steps]
    last = out.splitlines()[-1]
    assert re.match(
        r"glscl: OK run=r step=5 toy/train \(in-domain\) R@1=[\d.]+, at worst [\d.]+ \((noise|speed) \d\); ot", last
    )
    assert last.endswith(f"; incomplete: test set toy/train 9 of 10 videos report={folder}/shifts.html")
    assert not (folder / "results.json").exists()
    assert "Missing videos" in (folder / "shifts.html").read_text()


def test_what_cannot_be_asked_for(
    run: str, make_shards: MakeShards, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    uri = make_shards("toy", captions=[1, 1, 1]).uri
    words = ["eval", "--run", run, "--test", uri, "--shifts"]
    for more, says in (
        (["blurr"], "--shifts: no shift 'blurr', did you mean 'blur'"),
        (["all", "--frames", "single"], "--frames: not together with --shifts; ask for it in another command"),
        (["all", "--normalisations"], "--normalisations: not together with --shifts"),
        (["all", "--alphas", "0.5"], "--alphas: not together with --shifts"),
        (["all", "--leave-out", "toy=x"], "--leave-out: not together with --shifts"),
    ):
        assert main([*words, *more]) == 2
        assert f"glscl: FAILED {says}" in capsys.readouterr().out.splitlines()[-1]
    clip, weights = write_towers(tmp_path / "towers")
    features = str(tmp_path / "features")
    encode_shards(uri, features, Encoding(clip=clip, pretrained=weights, words=8, frames=2), ONE)
    assert main(["eval", "--run", run, "--test", uri, features, "--shifts", "all"]) == 2
    out = capsys.readouterr().out
    assert (
        f"glscl: FAILED --shifts: {features} holds features, and shifts corrupt pictures: name the set of videos" in out
    )
    assert "passes over" not in out
    alone = make_shards("alone", captions=[2]).uri
    with pytest.raises(UserError, match="holds one video, of which there is no interval: name another --test"):
        shift_model(run, [alone], [Shift("blur", 1)], EvaluationConfig(), ONE)
    with pytest.raises(UserError, match="shifts corrupt pictures, and this set holds features"):
        Shift("blur", 1).sampling(FeatureSampling(3, 8, 96))


def test_the_page_has_a_curve_of_every_kind() -> None:
    page = Page(render_shifts(made_up(run=HOSTILE)))
    assert page.text.count("T→V R@1") == 2 * len(KINDS)
    assert [name.split()[0] for name in page.headings[:2]] == ["toy_clips/test", "toy_stories/test"]
    for kind in KINDS:
        assert f"{kind}: hubness" in page.text
        assert KINDS[kind].what in page.text
    rows = re.findall(r'<th scope="row">(\w+)</th><td>(\d)</td>', render_shifts(made_up()))
    assert len(rows) == 2 * (1 + 5 * len(KINDS))
