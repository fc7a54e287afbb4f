"""The moment that is found is when it happens."""

from __future__ import annotations

import io
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from glscl.data.toy import event_times, render_video, toy_records
from glscl.data.toy.words import CLIP_EVENTS
from glscl.data.video import FrameSampling, load_clip
from glscl.index import open_index
from glscl.index.build import BuildSettings, build_index
from glscl.index.moment import find_moment
from tests.index.moments import overlap, small_towers, train_run

COLOURS = {"red": (210, 40, 40), "green": (40, 160, 60), "blue": (50, 70, 220), "yellow": (230, 205, 40)}
GOOD = 0.5
"""A moment is right where its overlap with the event, intersection over union, is as much."""


def _scenes(order: list[tuple[str, float]], draw: np.random.Generator) -> bytes:
    """A video, eight pictures a second, that shows one colour after another, each for so many seconds."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        stream: Any = out.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 8)
        stream.options = {"preset": "ultrafast", "threads": "1", "g": "8"}
        number = 0
        for colour, seconds in order:
            for _ in range(round(seconds * 8)):
                picture = np.array(COLOURS[colour]) + draw.normal(0, 12, (32, 32, 3))
                frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
                frame.pts, number = number, number + 1
                out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return target.getvalue()


@pytest.mark.parametrize("head", ["glscl", "mean_pool", "wti"])
def test_scenes(head: str, tmp_path: Path) -> None:
    """Videos show four colours one after the other; each is found in at least nine of ten videos."""
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    pictures = torch.tensor([COLOURS[colour] for colour in COLOURS]).float()
    noise = torch.from_numpy(draw.normal(0, 15, (400, 4, 3, 32, 32))).float()
    frames = (pictures.repeat(100, 1)[:, None, :, None, None] + noise).clamp(0, 255).to(torch.uint8)
    words = ["a {} picture", "everything is {}", "something {}"]
    texts = [words[row % 3].format(colour) for row, colour in enumerate([*COLOURS] * 100)]
    heads = {"glscl": {"queries": 2, "layers": 1, "attention_heads": 2}}
    values = {"clip": small_towers(tmp_path), "max_words": 8, "max_frames": 4, "head": head, "heads": heads}
    run = train_run(tmp_path, frames, texts, steps=60, batch=32, sample_fps=4.0, values=values)
    library = tmp_path / "library"
    library.mkdir()
    expected: list[tuple[str, str, tuple[float, float]]] = []
    for number in range(8):
        order = [(str(colour), float(draw.integers(16, 28)) / 8) for colour in draw.permutation([*COLOURS])]
        (library / f"{number}.mp4").write_bytes(_scenes(order, draw))
        ends = np.cumsum([seconds for _, seconds in order])
        expected += [
            (f"{number}.mp4", colour, (end - seconds, end)) for (colour, seconds), end in zip(order, ends, strict=True)
        ]
    output = str(tmp_path / "library.index")
    build_index(str(library), output, run, BuildSettings(segment_s=1.5, stride_s=0.5))
    index = open_index(output, "cpu")
    found = {colour: {one.id: one for one in index.search(f"a {colour} picture", 8)} for colour in COLOURS}
    shares = [overlap((found[c][name].start, found[c][name].end), when) for name, c, when in expected]
    assert np.mean([share >= GOOD for share in shares]) >= 0.9, sorted(shares)
    one = found["red"]["0.mp4"]
    if head == "mean_pool":
        assert not one.weights
    else:
        assert sum(one.weights) == pytest.approx(1)
        assert len(one.weights) == len(one.times)


@pytest.mark.slow
def test_events_of_the_toy_domain(tmp_path: Path) -> None:
    """Three events follow each other in each video; the one that a text tells is found in nine of ten, by its motion.

    The model is trained on the events of other videos of that domain, cut out, with what happens in each.
    """
    domain, seed, size, count = "toy_short_plain_several", 0, 64, 6
    sampling = FrameSampling(count, 8.0, size)
    draw = random.Random(0)

    def tell(attributes: dict[str, object], event: str) -> str:
        return f"a {attributes['colour']} {attributes['shape']} {draw.choice(CLIP_EVENTS[event])[0]}"

    clips, texts = [], []
    for record in toy_records(domain, "train", 500, seed):
        data = render_video(domain, record, seed)
        for event, start, end in event_times(record, seed):
            clips.append(load_clip(data, sampling, start, end + 1 / 8).frames)
            texts.append(tell(record.attributes, event))
    values = {
        "clip": "glscl-tiny",
        "pretrained": None,
        "frame_context": "transformer",
        "context_layers": 2,
        "position_std": 0.4,
        "max_words": 16,
        "max_frames": count,
        "head": "glscl",
        "heads": {
            "glscl": {"tau": 5.0, "queries": 4, "layers": 1, "attention_heads": 4, "feedforward": 256, "dropout": 0.0}
        },
    }
    run = train_run(tmp_path, torch.stack(clips), texts, steps=500, batch=64, sample_fps=8.0, values=values)
    library = tmp_path / "library"
    library.mkdir()
    expected = []
    for record in toy_records(domain, "test", 40, seed):
        (library / f"{record.video_id}.mp4").write_bytes(render_video(domain, record, seed))
        expected += [
            (f"{record.video_id}.mp4", tell(record.attributes, event), (start, end))
            for event, start, end in event_times(record, seed)
        ]
    output = str(tmp_path / "library.index")
    build_index(str(library), output, run, BuildSettings(segment_s=1.25, stride_s=0.25))
    index = open_index(output, "cpu")
    shares = []
    for name, text, when in expected:
        one = index.search(text, 1, where={"id": name})[0]
        shares.append(overlap((one.start, one.end), when))
    right = float(np.mean([share >= GOOD for share in shares]))
    print(f"{100 * right:.1f} % of {len(shares)} moments are right, mean overlap {np.mean(shares):.2f}")
    assert right >= 0.9


def test_a_long_event_joins_segments_and_a_short_one_is_cut() -> None:
    segments = [(float(start), start + 2.0) for start in range(6)]
    assert find_moment(segments, [0, 0.1, 0.92, 1.0, 0.95, 0.1], [4.0], []) == (2.0, 6.0)
    times, weights = [3.25, 3.75, 4.25, 4.75], [0.05, 0.4, 0.5, 0.05]
    assert find_moment(segments, [0, 0, 0, 1.0, 0.3, 0], times, weights) == (3.5, 4.5)
    assert find_moment([(0.0, 4.0)], [1.0], [0.5, 1.5, 2.5, 3.5], []) == (0.0, 4.0)
    assert find_moment(segments, [0, 0, 0, 1.0, 0.5, 0], [4.0], []) == (4.0, 5.0)
    fine = [(start / 2, start / 2 + 2.0) for start in range(6)]
    start, end = find_moment(fine, [0, 0, 0.8, 1.0, 0.8, 0], times, weights)
    assert (start, end) == (pytest.approx(1.5), pytest.approx(3.5))
    assert find_moment(fine, [0, 0, 0.5, 1.0, 0.9, 0], times, weights)[0] > 1.6
