"""Expected recall of attribute oracles, against counting by hand and against drawing at random."""

from __future__ import annotations

import random

import pytest

from glscl.data.toy import toy_records
from glscl.evaluation.oracles import attribute_accuracy, measure_oracles

VIDEOS = [
    {"colour": "red", "motion": "left", "order": "ab"},
    {"colour": "red", "motion": "left", "order": "ba"},
    {"colour": "red", "motion": "right", "order": "ab"},
    {"colour": "blue", "motion": "right", "order": "ab"},
]


def test_expected_recall_by_hand() -> None:
    # colour: three reds find theirs in 1 of 3 draws, the blue always: (3 * 1/3 + 1) / 4
    oracles = measure_oracles(VIDEOS)
    assert oracles.single == {"colour": 50, "motion": 50, "order": 50}
    assert oracles.pair == {"colour+motion": 75, "colour+order": 75, "motion+order": 75}


def test_expected_recall_is_that_of_random_draws() -> None:
    videos = [record.attributes for record in toy_records("toy_clips", "test", 60, 3)]
    draw = random.Random(0)
    hits = 0
    rounds = 400
    for _ in range(rounds):
        for index, video in enumerate(videos):
            same = [k for k, other in enumerate(videos) if other["movement"] == video["movement"]]
            hits += draw.choice(same) == index
    assert 100 * hits / (rounds * len(videos)) == pytest.approx(measure_oracles(videos).single["movement"], abs=1)


def test_accuracy_of_first_matches() -> None:
    table = attribute_accuracy(VIDEOS, [0, 1, 2, 3, 3], [0, 0, 3, 3, 1])
    assert table["colour"].accuracy == pytest.approx(100 * 3 / 5)
    assert table["order"].accuracy == pytest.approx(100 * 3 / 5)
    assert table["colour"].chance == pytest.approx(100 * (3 * 3 / 4 + 2 * 1 / 4) / 5)
    # motion and order known: videos 2 and 3 cannot be told apart, 0 and 1 can
    assert table["colour"].ignoring == pytest.approx(100 * (1 + 1 + 3 * 0.5) / 5)


def test_perfect_matches_are_all_right() -> None:
    videos = [record.attributes for record in toy_records("toy_stories", "test", 50, 1)]
    table = attribute_accuracy(videos, range(50), range(50))
    assert all(row.accuracy == 100 and row.chance < 70 for row in table.values())


def test_no_attributes_no_oracles() -> None:
    assert measure_oracles([{}, {}]).single == {}
    assert measure_oracles([]).pair == {}


def test_unequal_lists_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="2 texts with 1"):
        attribute_accuracy(VIDEOS, [0, 1], [0])
    with pytest.raises(ValueError, match="video 1"):
        measure_oracles([{"colour": "red"}, {"shape": "disc"}])
