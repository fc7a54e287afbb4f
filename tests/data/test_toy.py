"""The toy domains: real files, splits without overlap, independent attributes, motion that only time tells."""

from __future__ import annotations

import io
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from glscl.data.toy import TOY_SPLITS, render_video, toy_capacity, toy_names, toy_records, write_toy
from glscl.errors import UserError

DOMAINS = ("toy_clips", "toy_stories")  # where things happen


def combination(attributes: dict[str, str]) -> tuple[str, ...]:
    return tuple(attributes[key] for key in sorted(attributes))


def pictures(data: bytes) -> tuple[np.ndarray[Any, Any], Any]:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        facts = (stream.codec_context.name, stream.codec_context.pix_fmt, float(stream.average_rate))
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return np.stack(frames).astype(np.float32), facts


def centres(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Centre of the moving thing per frame: what differs from the background, the median over time and border."""
    back = np.median(frames[:, :3].reshape(-1, 3), axis=0)
    cover = np.abs(frames - back).sum(-1) > 60
    y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
    return np.array([(x[c].mean(), y[c].mean()) for c in cover])


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("seed", [0, 7])
def test_combinations_belong_to_one_split(domain: str, seed: int) -> None:
    seen = {
        split: {combination(r.attributes) for r in toy_records(domain, split, toy_capacity(domain, split), seed)}
        for split in TOY_SPLITS
    }
    assert all(len(seen[split]) == toy_capacity(domain, split) for split in TOY_SPLITS)
    for one, two in itertools.combinations(TOY_SPLITS, 2):
        assert not seen[one] & seen[two]
    assert toy_capacity(domain, "test") >= 200


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_two_test_videos_share_a_caption(domain: str) -> None:
    records = toy_records(domain, "test", toy_capacity(domain, "test"), 5)
    captions = [caption for record in records for caption in record.captions]
    assert len(captions) == len(set(captions))
    assert {len(record.captions) for record in records} == {4 if domain == "toy_clips" else 1}


@pytest.mark.parametrize("domain", DOMAINS)
def test_records_do_not_depend_on_the_count_but_on_the_seed(domain: str) -> None:
    assert toy_records(domain, "test", 200, 1)[:50] == toy_records(domain, "test", 50, 1)
    assert toy_records(domain, "test", 50, 1) != toy_records(domain, "test", 50, 2)
    assert toy_records(domain, "train", 50, 1) != toy_records(domain, "train", 50, 2)


@pytest.mark.parametrize("domain", DOMAINS)
def test_training_goes_round_its_combinations_with_other_videos(domain: str) -> None:
    capacity = toy_capacity(domain, "train")
    records = toy_records(domain, "train", 2 * capacity, 1)
    first, second = records[:capacity], records[capacity:]
    assert len({combination(record.attributes) for record in first}) == capacity
    assert [record.attributes for record in first] == [record.attributes for record in second]
    assert [record.captions for record in first] != [record.captions for record in second]
    few = toy_records(domain, "train", 60, 1)
    assert len({combination(record.attributes) for record in few}) == 60
    assert {record.attributes["colour"] for record in few} == {record.attributes["colour"] for record in records}


def test_training_clips_lie_beside_others_that_differ_in_motion_only() -> None:
    records = toy_records("toy_clips", "train", 400, 1)
    looks = [{k: v for k, v in r.attributes.items() if k not in ("movement", "order")} for r in records]
    assert sum(one == two for one, two in itertools.pairwise(looks)) > 250


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_test_video_has_a_twin_that_differs_in_order_only(domain: str) -> None:
    records = toy_records(domain, "test", 200, 4)
    for first, second in zip(records[::2], records[1::2], strict=True):
        differing = {key for key in first.attributes if first.attributes[key] != second.attributes[key]}
        assert differing == {"order"}
        assert first.attributes["order"].split("-") == second.attributes["order"].split("-")[::-1]


@pytest.mark.parametrize("domain", DOMAINS)
def test_attributes_are_independent_of_each_other_and_of_the_duration(domain: str) -> None:
    records = [r for split in TOY_SPLITS for r in toy_records(domain, split, toy_capacity(domain, split), 2)]
    names = list(records[0].attributes)
    for one, two in itertools.combinations(names, 2):
        pairs = Counter((r.attributes[one], r.attributes[two]) for r in records)
        assert len(set(pairs.values())) == 1, (one, two)  # the splits together are the whole product
    train = toy_records(domain, "train", toy_capacity(domain, "train"), 2)
    for one, two in itertools.combinations(names, 2):
        left, right = (Counter(r.attributes[name] for r in train) for name in (one, two))
        pairs = Counter((r.attributes[one], r.attributes[two]) for r in train)
        bias = sum(abs(pairs[a, b] - left[a] * right[b] / len(train)) for a, b in itertools.product(left, right)) / len(
            train
        )
        assert bias < 0.2, (one, two)  # what a fair draw of so few combinations leaves; a shortcut would be near 1
    spread = np.std([r.duration or 0.0 for r in train])
    for name in names:
        for value in {r.attributes[name] for r in train}:
            chosen = [r.duration or 0.0 for r in train if r.attributes[name] == value]
            assert abs(np.mean(chosen) - np.mean([r.duration or 0.0 for r in train])) < 5 * spread / len(chosen) ** 0.5


@pytest.mark.parametrize(("domain", "seconds"), [("toy_clips", (1.75, 2.25)), ("toy_stories", (6.0, 8.0))])
def test_videos_are_h264_of_the_duration_announced(domain: str, seconds: tuple[float, float]) -> None:
    for record in toy_records(domain, "dev", 3, 0):
        frames, (codec, pixels, rate) = pictures(render_video(domain, record, 0))
        assert (codec, pixels, rate) == ("h264", "yuv420p", 8.0)
        assert frames.shape[1:] == (64, 64, 3)
        assert record.duration == len(frames) / 8
        assert seconds[0] <= record.duration <= seconds[1]


def test_stills_show_the_things_of_both_domains_at_rest() -> None:
    assert toy_names()[:3] == (*DOMAINS, "toy_stills")
    records = toy_records("toy_stills", "train", 40, 6)
    grounds = {
        record.attributes.get("background") or record.attributes["ground"]
        for domain in DOMAINS
        for record in toy_records(domain, "dev", 90, 1)
    }
    assert {record.attributes["ground"] for record in toy_records("toy_stills", "train", 600, 6)} == grounds
    offset = {"left": (-16, 0), "right": (16, 0), "top": (0, -16), "bottom": (0, 16), "middle": (0, 0)}
    seen = 0
    for record in records:
        frames, (codec, *_) = pictures(render_video("toy_stills", record, 6))
        assert (codec, len(frames)) == ("h264", 4)
        assert np.abs(frames - frames[0]).mean() < 3  # nothing but what the encoder does
        if record.attributes["ground"] in ("grey", "pink") and record.attributes["colour"] in ("red", "blue"):
            expected = 32 + np.array(offset[record.attributes["place"]])
            assert np.abs(centres(frames)[0] - expected).max() < 5
            seen += 1
    assert seen >= 3


def test_splits_of_stills_share_no_combination() -> None:
    seen = [
        {combination(r.attributes) for r in toy_records("toy_stills", split, toy_capacity("toy_stills", split), 0)}
        for split in TOY_SPLITS
    ]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 6 * 3 * 6 * 5 * 2


def test_equal_seeds_give_equal_bytes_and_others_do_not() -> None:
    record = toy_records("toy_stories", "train", 1, 3)[0]
    assert render_video("toy_stories", record, 3) == render_video("toy_stories", record, 3)
    assert render_video("toy_stories", record, 3) != render_video("toy_stories", record, 4)


def test_the_picture_does_what_the_attributes_say() -> None:
    step = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    moved = 0
    for record in toy_records("toy_clips", "test", 80, 6):
        if record.attributes["change"] not in ("grows", "shrinks"):
            continue  # black on grey and white on pink hide from the crude finder
        frames, _ = pictures(render_video("toy_clips", record, 6))
        where = centres(frames)
        half = len(where) // 2
        first, second = where[half - 1] - where[0], where[-1] - where[half]
        moving, resting = (first, second) if record.attributes["order"].startswith("movement") else (second, first)
        along = float(np.dot(moving, step[record.attributes["movement"]]))
        assert along > 12
        assert along > 2.5 * float(np.abs(resting).max())
        moved += 1
    assert moved > 20


def test_a_single_frame_position_does_not_tell_the_direction() -> None:
    """Opposite movements visit the same places: their mean position over time is the same."""
    means: dict[str, list[float]] = {"left": [], "right": []}
    for record in toy_records("toy_clips", "train", 300, 6):
        if record.attributes["movement"] in means and record.attributes["change"] in ("grows", "shrinks"):
            frames, _ = pictures(render_video("toy_clips", record, 6))
            where = centres(frames)[:, 0]
            means[record.attributes["movement"]].append((where.min() + where.max()) / 2)
    assert min(map(len, means.values())) > 10
    assert abs(np.mean(means["left"]) - np.mean(means["right"])) < 2.5


def test_write_toy_makes_videos_and_annotations(tmp_path: Path) -> None:
    records = write_toy("toy_clips", "train", 6, 9, str(tmp_path / "one"), processes=1)
    assert write_toy("toy_clips", "train", 6, 9, str(tmp_path / "two"), processes=2) == records
    rows = [json.loads(line) for line in (tmp_path / "one" / "annotations.jsonl").read_text().splitlines()]
    assert [row["video_id"] for row in rows] == [record.video_id for record in records]
    assert rows[0]["captions"] == list(records[0].captions)
    assert rows[0]["attributes"] == records[0].attributes
    for record in records:
        name = f"videos/{record.video_id}.mp4"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("toy_clip", "test", 5, 0), "did you mean 'toy_clips'"),
        (("toy_clips", "tests", 5, 0), "did you mean 'test'"),
        (("toy_clips", "test", 100_000, 0), "ask for at most"),
        (("toy_clips", "train", 0, 0), "at least 1"),
    ],
)
def test_bad_requests_are_refused(arguments: tuple[str, str, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy_records(*arguments)
