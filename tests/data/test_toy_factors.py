"""The factorial toy domains: one factor changes one thing, and the older domains stay what they were."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from typing import Any

import numpy as np
import pytest

from glscl.data.toy import TOY_SPLITS, render_video, toy_capacity, toy_names, toy_records
from glscl.data.toy.factorial import CAPTION_STYLES, STRUCTURES, VISUAL_STYLES
from glscl.data.toy.render import _draw
from glscl.errors import UserError

EVENTS = tuple(STRUCTURES)


def name(captions: str, pictures: str, events: str) -> str:
    return f"toy_{captions}_{pictures}_{events}"


def frames(domain: str, record: Any) -> np.ndarray[Any, Any]:
    return _draw(domain, record, random.Random(f"{record.video_id}/0/picture")).astype(np.float32)


def test_every_combination_has_a_name() -> None:
    expected = {name(*levels) for levels in itertools.product(CAPTION_STYLES, VISUAL_STYLES, EVENTS)}
    assert expected == set(toy_names()) - {"toy_clips", "toy_stories", "toy_stills"}
    assert len(expected) == 12
    with pytest.raises(UserError, match=r"'toy_long_night_on', did you mean 'toy_long_night_one'.*toy_CAPTIONS_PICTUR"):
        toy_records("toy_long_night_on", "test", 1, 0)


@pytest.mark.parametrize("events", EVENTS)
@pytest.mark.parametrize("split", TOY_SPLITS)
def test_visual_style_changes_no_scene_and_no_caption(events: str, split: str) -> None:
    for captions in CAPTION_STYLES:
        of_styles = [toy_records(name(captions, pictures, events), split, 60, 3) for pictures in VISUAL_STYLES]
        assert of_styles[0] == of_styles[1] == of_styles[2]


@pytest.mark.parametrize("events", EVENTS)
def test_visual_style_changes_colours_and_grounds_and_not_what_happens(events: str) -> None:
    records = toy_records(name("short", "plain", events), "test", 30, 0)
    seen = 0
    for record in records:
        if record.attributes.get("change", record.attributes.get("event")) in ("whitens", "blackens"):
            continue  # nothing moves, or too dark to be told from the night by a threshold
        masks = []
        for pictures in VISUAL_STYLES:
            shown = frames(name("short", pictures, events), record)
            masks.append(np.abs(shown - shown[:1]).sum(-1) > 90)
        y, x = np.mgrid[:64, :64]
        for mask in masks[1:]:
            late = (masks[0][-1], mask[-1])
            if min(part.sum() for part in late) > 30:
                assert np.hypot(*(x[late[0]].mean() - x[late[1]].mean(), y[late[0]].mean() - y[late[1]].mean())) < 2.0
                seen += 1
    assert seen > 20
    for record in records[:4]:
        plain, textured, night = (frames(name("short", pictures, events), record) for pictures in VISUAL_STYLES)
        assert plain.shape == textured.shape == night.shape
        assert min(np.abs(plain - textured).mean(), np.abs(textured - night).mean()) > 5
        assert night.mean() < 0.6 * min(plain.mean(), textured.mean())


@pytest.mark.parametrize("events", EVENTS)
def test_caption_style_changes_no_scene_and_no_picture(events: str) -> None:
    short, long = (toy_records(name(captions, "textured", events), "test", 200, 0) for captions in CAPTION_STYLES)
    for one, two in zip(short, long, strict=True):
        assert (one.video_id, one.duration, one.attributes) == (two.video_id, two.duration, two.attributes)
        assert not set(one.captions) & set(two.captions)
        assert len(one.captions) == len(two.captions) == 2
    for one, two in list(zip(short, long, strict=True))[:3]:
        rendered = {render_video(name(captions, "textured", events), one, 0) for captions in CAPTION_STYLES}
        assert rendered == {render_video(name("long", "textured", events), two, 0)}
    words = [[len(caption.split()) for record in part for caption in record.captions] for part in (short, long)]
    assert min(words[1]) > max(words[0])
    for part in (short, long):
        captions = [caption for record in part for caption in record.captions]
        assert len(captions) == len(set(captions)), "every caption tells its video from all others"


def test_captions_name_nothing_of_a_visual_style() -> None:
    of_styles = {"grey", "gray", "pink", "background", "wall", "night", "dark", "sand", "brick", "striped"}
    for captions, events in itertools.product(CAPTION_STYLES, EVENTS):
        records = toy_records(name(captions, "night", events), "train", 400, 0)
        words = {word for record in records for caption in record.captions for word in caption.split()}
        assert not words & of_styles


def test_structures_have_scenes_of_one_event_or_three() -> None:
    one, several = (toy_records(name("short", "plain", events), "test", 100, 0) for events in EVENTS)
    assert {len(str(record.attributes["event"]).split("-")) for record in one} == {1}
    assert {len(str(record.attributes["order"]).split("-")) for record in several} == {3}
    assert not {record.video_id for record in one} & {record.video_id for record in several}
    for first, second in zip(several[::2], several[1::2], strict=True):
        assert {key for key in first.attributes if first.attributes[key] != second.attributes[key]} == {"order"}
    assert max(record.duration or 0 for record in one) < min(record.duration or 0 for record in several)


@pytest.mark.parametrize("events", EVENTS)
def test_splits_share_no_combination_and_no_id(events: str) -> None:
    domain = name("long", "plain", events)
    parts = [toy_records(domain, split, toy_capacity(domain, split), 0) for split in TOY_SPLITS]
    for one, two in itertools.combinations(parts, 2):
        for key in ("attributes", "video_id"):
            seen = [{str(getattr(record, key)) for record in part} for part in (one, two)]
            assert not seen[0] & seen[1]
    assert toy_capacity(domain, "test") >= 200


@pytest.mark.parametrize(
    ("domain", "records", "pictures"),
    [
        ("toy_clips", "f324309467ddc341", "ae3fe13f4229b74f"),
        ("toy_stories", "f3bde871e4656bd4", "743d7d7651ef3ae3"),
        ("toy_stills", "6e643f4d27790041", "59085d5014db6850"),
    ],
)
def test_the_older_domains_are_what_they_were(domain: str, records: str, pictures: str) -> None:
    """Hashes of what was drawn before there were factors; of the pictures before they are encoded."""
    written, drawn = hashlib.sha256(), hashlib.sha256()
    for split in TOY_SPLITS:
        for record in toy_records(domain, split, 80, 3):
            row = [record.video_id, record.captions, record.duration, record.attributes]
            written.update(json.dumps(row).encode())
    for record in toy_records(domain, "test", 4, 3):
        drawn.update(_draw(domain, record, random.Random(f"{record.video_id}/3/picture")).tobytes())
    assert (written.hexdigest()[:16], drawn.hexdigest()[:16]) == (records, pictures)
