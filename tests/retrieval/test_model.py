"""A model in Python gives the numbers of an evaluation, whatever its videos are given as, and refuses in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import glscl
from glscl.data.gallery import Gallery
from glscl.data.shards import ShardSet
from glscl.data.video.budget import Budget
from glscl.data.video.index import read_index
from glscl.data.video.source import open_video
from glscl.errors import UserError
from glscl.evaluation.embed import embed, make_scorer
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.saved import ModelCard, load_model, load_tokenizer, save_model
from glscl.evaluation.similarity import similarity_rows
from glscl.models import ModelConfig, Retriever

TEXTS = ["a red square moves up", "a dog runs on a beach", "v001 text 0"]
LENGTHS = {"v000": (0.0, 0.5, 1.0, 1.5), "v001": (0.0,), "v002": tuple(n / 4 for n in range(16))}


def write_run(folder: Path, **more: Any) -> str:
    """A run directory with a small model of random weights."""
    clip = folder / "retrieval-test.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    clip.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    head = {"glscl": {"queries": 2, "layers": 1, "attention_heads": 2}}
    values = {"clip": str(clip), "frame_context": "transformer", "context_layers": 1, "max_words": 8, "max_frames": 3}
    config = ModelConfig.model_validate(values | {"heads": head} | more)
    torch.manual_seed(1)
    model = Retriever(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    card = ModelCard(
        model=config, sample_fps=2.0, decoder="pyav", train_domains=("toy",), step=7, seed=3, run="r", validation={}
    )
    save_model(str(folder / "run" / "model"), card, model.state_dict())
    return str(folder / "run")


@pytest.fixture
def run(tmp_path: Path) -> str:
    return write_run(tmp_path)


@pytest.fixture
def files(tmp_path: Path, make_video: Callable[..., bytes]) -> list[str]:
    """Files of three lengths: two of fewer frames than the model's, one of more."""
    paths = []
    for seed, (name, times) in enumerate(LENGTHS.items()):
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(make_video(times, seed))
        paths.append(str(path))
    return paths


def _decoded(path: str) -> tuple[np.ndarray[Any, Any], list[float]]:
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), [float(frame.time) for frame in frames]


def _end(path: str) -> float:
    """The second at which a file says that its last picture ends."""
    budget = Budget(60)
    with open_video(Path(path).read_bytes(), budget) as container:
        return read_index(container, budget).duration


def _evaluated(run: str, shard_set: ShardSet) -> tuple[torch.Tensor, list[str], list[str]]:
    """Similarities as an evaluation ranks them, the captions and the ids of the videos."""
    model, card = load_model(run)
    gallery = Gallery(shard_set, 0, shard_set.manifest.videos, card.sampling(32), load_tokenizer(run), batch_size=4)
    found = embed(model, gallery, 0, torch.device("cpu"))
    with torch.no_grad():
        scorer = make_scorer(
            model.score, found.caches.text, found.caches.video, EvaluationConfig(), torch.device("cpu")
        )
        return similarity_rows(scorer, range(len(found.captions))), found.captions, found.video_ids


@pytest.mark.parametrize("head", ["glscl", "mean_pool", "xpool"])
def test_scores_are_those_of_an_evaluation(
    head: str, tmp_path: Path, make_shards: Callable[..., ShardSet], make_video: Callable[..., bytes]
) -> None:
    """Also with other batches, in loader processes, and where a text is longer than the model's words."""
    run = write_run(tmp_path, head=head)
    long = ("red " * 30, "blue")
    bad = {1: make_video((0.0,), 1), 2: make_video(LENGTHS["v002"], 2)}
    shard_set = make_shards(captions=(2, 1, 3), bad=bad, texts={0: long})
    expected, captions, ids = _evaluated(run, shard_set)
    model = glscl.load(run, device="cpu")
    texts = model.encode_text(captions, batch_size=4)
    assert [caption for caption, cut in zip(captions, texts.truncated, strict=True) if cut] == [long[0]]
    videos = model.encode_video(
        [tmp_path / "videos" / "toy" / f"{name}.mp4" for name in ids], batch_size=2, loader_workers=1
    )
    found = model.score(texts, videos)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert found.std() > 1e-3
    assert videos.names[1] == str(tmp_path / "videos" / "toy" / f"{ids[1]}.mp4")
    order = expected[3].argsort(descending=True).tolist()
    matches = model.search(captions[3], videos, k=2)
    assert [match.number for match in matches] == order[:2]
    assert [match.name for match in matches] == [videos.names[number] for number in order[:2]]
    assert matches[0].score == pytest.approx(float(expected[3].max()), abs=1e-6)


def test_a_video_is_the_same_however_it_is_given(run: str, files: list[str]) -> None:
    """As a path, bytes, pictures with times or a rate, another library's decoder: the same frames are taken of it."""
    model = glscl.load(run)
    expected = model.score(TEXTS, files)
    assert torch.equal(model.score(TEXTS, [Path(path).read_bytes() for path in files]), expected)
    one_by_one = torch.cat([model.score(TEXTS, path) for path in files], 1)
    torch.testing.assert_close(one_by_one, expected, rtol=1e-6, atol=1e-6)
    decoded = [_decoded(path) for path in files]
    ends = [_end(path) for path in files]
    by_times = [glscl.Frames(p, times=times, until=end) for (p, times), end in zip(decoded, ends, strict=True)]
    assert torch.equal(model.score(TEXTS, by_times), expected)
    until = model.score(TEXTS, glscl.Moment(files[2], end=3.7))
    turned = np.ascontiguousarray(decoded[2][0][..., ::-1])[..., ::-1]  # as of a library with blue first
    for pictures in (decoded[2][0], torch.from_numpy(decoded[2][0]), turned):
        assert torch.equal(model.score(TEXTS, [glscl.Moment(glscl.Frames(pictures, fps=4), end=3.7)]), until)

    class Decoder:
        metadata = SimpleNamespace(begin_stream_seconds=0.0, end_stream_seconds=4.0)

        def get_frames_played_at(self, seconds: list[float]) -> SimpleNamespace:
            chosen = decoded[2][0][[int(4 * second) for second in seconds]]
            return SimpleNamespace(data=torch.from_numpy(chosen).permute(0, 3, 1, 2))

    assert torch.equal(model.score(TEXTS, glscl.Moment(Decoder(), end=3.7)), until)


def test_a_moment_is_what_lies_between_two_seconds(run: str, files: list[str]) -> None:
    model = glscl.load(run)
    pictures, times = _decoded(files[2])
    whole = model.score(TEXTS, files[2])
    part = model.score(TEXTS, glscl.Moment(files[2], 1.0, 2.0))
    assert not torch.allclose(part, whole)
    cut = glscl.Frames(pictures[4:8], times=[time - 1.0 for time in times[4:8]])
    torch.testing.assert_close(model.score(TEXTS, cut), part, rtol=1e-6, atol=1e-6)
    of_frames = glscl.Moment(glscl.Frames(pictures, times=times), 1.0, 2.0)
    assert torch.equal(model.score(TEXTS, of_frames), part)


def test_features_of_frames_in_place_of_a_video(run: str, files: list[str], tmp_path: Path) -> None:
    """Arrays and files of them, padded with the feature of padding, score as the videos do."""
    model = glscl.load(run)
    expected = model.score(TEXTS, files)
    towers, sampling = model.retriever.towers, model.card.sampling(32)
    features = []
    for path in files:
        from glscl.data.video import load_frames

        frames = load_frames(Path(path).read_bytes(), sampling)[None]  # type: ignore[arg-type]
        with torch.no_grad():
            features.append(towers.encode_frames(frames, torch.ones(1, frames.shape[1]))[0])
    torch.testing.assert_close(model.score(TEXTS, features), expected, rtol=1e-5, atol=1e-5)
    np.save(tmp_path / "a.npy", features[0].numpy())
    save_file({"frames": features[2]}, tmp_path / "c.safetensors")
    mixed = [tmp_path / "a.npy", files[1], tmp_path / "c.safetensors"]
    torch.testing.assert_close(model.score(TEXTS, mixed), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"video 0 cannot be used: features of width 7 where the towers' is 32"):
        model.encode_video([np.zeros((2, 7), np.float32)])


def test_nothing_to_encode(run: str, files: list[str]) -> None:
    model = glscl.load(run)
    assert model.score([], files).shape == (0, 3)
    assert model.score(TEXTS, []).shape == (3, 0)
    assert model.search("a dog", []) == []
    assert len(model.search("a dog", files, k=50)) == 3


def test_mistakes_are_one_line(run: str, files: list[str], tmp_path: Path) -> None:
    model = glscl.load(run)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    gray = np.zeros((2, 8, 8, 1), np.uint8)
    colour = np.zeros((2, 8, 8, 3), np.uint8)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: glscl.load(tmp_path / "nowhere"), r"nowhere: no trained model there"),
        (lambda: glscl.load(run, "cuda:99"), r"device 'cuda:99' cannot be used here"),
        (lambda: glscl.load(run, "gpu"), r"device 'gpu' cannot be used here"),
        (lambda: model.encode_video([files[0], broken]), r"video 1 \(.*broken\.mp4\) cannot be decoded: .+"),
        (lambda: model.encode_video([files[0], b""]), r"video 1 cannot be decoded: empty file"),
        (lambda: model.encode_video([tmp_path / "gone.mp4"]), r"video 0 \(.*gone\.mp4\): no such file"),
        (lambda: model.encode_video([files[0], 3]), r"video 1: a int is no video: give a path"),  # type: ignore[list-item]
        (lambda: model.encode_video([colour]), r"video 0: an array of pictures needs their times"),
        (lambda: glscl.Frames(gray, fps=1), r"uint8 of shape T x H x W x 3, not uint8 of 2 x 8 x 8 x 1"),
        (lambda: glscl.Frames(colour / 255, fps=1), r"not float64 of 2 x 8 x 8 x 3"),
        (lambda: glscl.Frames(colour), r"frames need either fps"),
        (lambda: glscl.Frames(colour, fps=0), r"fps is 0"),
        (lambda: glscl.Frames(colour, times=[0.0]), r"1 times for 2 pictures"),
        (lambda: glscl.Frames(colour, times=[1.0, 0.5]), r"each later than the one before"),
        (lambda: glscl.Frames(colour, times=[0.0, 1.0], until=0.5), r"until is 0\.5"),
        (lambda: glscl.Moment(files[0], 2.0, 1.0), r"the first not after the last"),
        (lambda: model.encode_text(["a", 3]), r"texts are strings; int is none"),  # type: ignore[list-item]
        (lambda: model.encode_text(["a"], batch_size=0), r"batch_size is 0"),
        (lambda: model.search("a", files, k=0), r"k is 0"),
    ]
    for call, says in cases:
        with pytest.raises(UserError, match=says) as raised:
            call()
        assert "\n" not in str(raised.value)


@pytest.mark.e2e
def test_a_run_on_s3(bucket: str, run: str, files: list[str]) -> None:
    from glscl.system import storage

    for path in Path(run, "model").iterdir():
        storage.upload(str(path), f"{bucket}/runs/first/model/{path.name}")
    storage.upload(files[0], f"{bucket}/videos/a.mp4")
    remote = glscl.load(f"{bucket}/runs/first").score(TEXTS, [f"{bucket}/videos/a.mp4"])
    assert torch.equal(remote, glscl.load(run).score(TEXTS, files[0]))


def test_neither_ray_nor_deepspeed_is_imported(run: str, files: list[str]) -> None:
    """Nor anything heavy by `import glscl` alone."""
    script = f"""
import sys, json, glscl
before = [name for name in ("torch", "numpy", "pydantic", "ray", "open_clip") if name in sys.modules]
model = glscl.load({run!r})
model.search("a dog", model.encode_video({files!r}))
print(json.dumps([before, [name for name in ("ray", "deepspeed", "pandas", "matplotlib") if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [[], []]


def test_names_of_the_package() -> None:
    assert {"load", "RetrievalModel", "Frames", "Moment"} <= set(dir(glscl))
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = glscl.laod  # type: ignore[attr-defined]
