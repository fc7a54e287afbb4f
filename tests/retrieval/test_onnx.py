"""ONNX graphs score real clips as torch does, for every head, and a graph that does not is not written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import glscl
from glscl.cli import main
from glscl.data.clips import stack_clips
from glscl.data.video import load_clip
from glscl.errors import UserError
from glscl.evaluation.saved import load_model, load_tokenizer
from glscl.models import head_names
from glscl.retrieval import onnx
from glscl.retrieval.onnx import FACTS, SCORED, OnnxFacts, export_onnx
from tests.retrieval.test_model import LENGTHS, TEXTS, write_run

onnxruntime = pytest.importorskip("onnxruntime")


WITHOUT_SCORES = ("tmass",)
"""Heads whose score torch's exporter does not put into a graph."""


MOST_UNLIKE = ("agc", "tcmgc", "tmass", "uatvr", "xpool")
"""Heads whose graphs have little in common with one another's; exporting a head compares it with torch anyhow."""


def _run(folder: Path, file: str, **given: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
    known = [put.name for put in session.get_inputs()]
    names = [put.name for put in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: given[name] for name in known}), strict=True))


def score_with_onnx(folder: Path, ids: Tensor, frames: Tensor, mask: Tensor) -> np.ndarray[Any, Any]:
    """Similarities (A, B) by the graphs alone, as their page says."""
    text = _run(folder, "text.onnx", token_ids=ids.numpy())
    video = _run(folder, "video.onnx", frames=frames.numpy(), frame_mask=mask.numpy())
    filled = {name: values[np.arange(SCORED[1]) % len(frames)] for name, values in video.items()}
    rows = []
    for row in range(len(ids)):
        one = {name: values[row : row + 1] for name, values in text.items()}
        rows.append(_run(folder, "score.onnx", **one, **filled)["similarity"][:, : len(frames)])
    return np.concatenate(rows)


def _check(run: str, folder: Path, make_video: Callable[..., bytes]) -> None:
    clips = [make_video(times, seed) for seed, times in enumerate(LENGTHS.values())]
    expected = glscl.load(run, "cpu").score(TEXTS, clips)
    sampling = load_model(run)[1].sampling(32)
    frames, mask = stack_clips([load_clip(clip, sampling) for clip in clips], sampling)  # type: ignore[arg-type]
    assert not mask.all()
    found = score_with_onnx(folder, load_tokenizer(run)(TEXTS)[0], frames, mask)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4)
    assert expected.std() > 1e-3


def test_graphs_of_a_run_score_as_torch_does(
    tmp_path: Path, make_video: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = write_run(tmp_path), tmp_path / "onnx"
    assert main(["export", "--run", run, "--output", str(folder), "--to", "onnx"]) == 0
    assert "score.onnx within" in capsys.readouterr().out.splitlines()[-1]
    facts = OnnxFacts.model_validate_json((folder / FACTS).read_text())
    assert facts.text.inputs == {"token_ids": ["texts", 8]}
    assert facts.video.inputs == {"frames": ["videos", 3, 3, 32, 32], "frame_mask": ["videos", 3]}
    assert facts.score is not None
    assert facts.score.outputs == {"similarity": list(SCORED)}
    assert {"text.onnx", "video.onnx", "score.onnx", "preprocessing.json", "record.json", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    assert "`score.onnx`" in (folder / "README.md").read_text()
    _check(run, folder, make_video)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(head, marks=pytest.mark.slow if head in MOST_UNLIKE else pytest.mark.exhaustive)
        for head in sorted({*head_names()} - {"glscl"})
    ],
)
def test_every_head(head: str, tmp_path: Path, make_video: Callable[..., bytes]) -> None:
    run = write_run(tmp_path, head=head)
    _, facts = export_onnx(run, str(tmp_path / "onnx"))
    if head in WITHOUT_SCORES:
        assert facts.why_no_score.startswith("score.onnx: cannot be exported")
        assert not (tmp_path / "onnx" / "score.onnx").exists()
        return
    assert facts.score is not None, facts.why_no_score
    _check(run, tmp_path / "onnx", make_video)


def test_a_graph_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the towers ends the command; one of the scores is left out, with the reason."""
    model, _ = load_model(write_run(tmp_path, head="mean_pool", frame_context="none"))
    ids = torch.ones(2, 8, dtype=torch.int64)
    monkeypatch.setattr(onnx._Score, "forward", lambda self, *caches: caches[0] @ caches[1].T + 0.01)
    facts = onnx.write_graphs(model, ids, str(tmp_path))
    assert facts.score is None
    assert facts.why_no_score.startswith("score.onnx: onnxruntime and torch differ by 1.0e-02, more than 0.0001")
    monkeypatch.setattr(
        onnx._Text, "forward", lambda self, ids: tuple(v + 0.1 for v in model.encode_text(ids).values())
    )
    with pytest.raises(UserError, match=r"text\.onnx: onnxruntime and torch differ by"):
        onnx.write_graphs(model, ids, str(tmp_path))
    monkeypatch.setattr(onnx._Text, "forward", lambda self, ids: (ids[:, :1].float(),))
    with pytest.raises(UserError, match=r"text\.onnx: onnxruntime and torch differ by inf"):
        onnx.write_graphs(model, ids, str(tmp_path))

    def fail(self: object, ids: Tensor) -> Tensor:
        raise RuntimeError("of an operator\nthat ONNX has not")

    monkeypatch.setattr(onnx._Text, "forward", fail)
    with pytest.raises(UserError, match=r"text\.onnx: cannot be exported \(\w+: .*that ONNX has not") as raised:
        onnx.write_graphs(model, ids, str(tmp_path))
    assert "\n" not in str(raised.value)


def test_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UserError, match=r"needs the packages no_such_package; pip install 'glscl\[onnx\]'"):
        export_onnx(str(tmp_path), str(tmp_path / "out"))
