"""Caption style, visual style and their interaction: effects are those of the ranks, and the page says no more."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from glscl.data.toy import toy_names
from glscl.evaluation.metrics import DIRECTIONS
from glscl.runs.cell import Cell, CellResult
from glscl.study.analysis import analyse
from glscl.study.decomposition import by_scene, describe_decompositions, find_decompositions
from glscl.study.detectable import Assumed, plan_differences
from glscl.study.effects import Decomposition
from glscl.study.grid import build_cells
from glscl.study.options import StudyConfig
from glscl.study.orders import describe_order_changes, find_order_changes
from glscl.study.plan import family_size
from glscl.study.report import render_study
from glscl.study.results import StudyResults, parse_study
from glscl.study.statistics import QueryBootstrap, contrast, mean_difference
from glscl.study.tables import write_study_tables
from stress.decompositions import Setting, rates_of_coverage
from tests.study.fake import VIDEOS, finished, study

SOURCE = "toy_short_plain_one"
OTHERS = {
    "captions": "toy_long_plain_one",
    "pictures": "toy_short_night_one",
    "both": "toy_long_night_one",
}
DOMAINS = (SOURCE, *OTHERS.values())
VARIANTS = {
    name: {"group": group, "what": "w", "run": {"model": {"head": "mean_pool"}}}
    for name, group in (("glscl", "consistency"), ("xpool", "attention"), ("wti", "attention"))
}


def factorial(**changes: Any) -> StudyConfig:
    domains: dict[str, Any] = {name: {"toy": {"test": VIDEOS}} for name in DOMAINS}
    domains[SOURCE]["toy"]["train"] = 8
    values = {"domains": domains, "factors": {SOURCE: OTHERS}, "variants": VARIANTS, "resamples": 1000}
    return study(**(values | changes))


def same_scenes(cell: Cell, values: dict[str, Any]) -> None:
    """Name the videos of all four test sets alike."""
    for test in values["tests"]:
        test["per_query"]["video_ids"] = [f"scene-{number}" for number in range(VIDEOS)]


SHARES = {SOURCE: 0.9, OTHERS["captions"]: 0.6, OTHERS["pictures"]: 0.8, OTHERS["both"]: 0.2}


def hits(cell: Cell, domain: str) -> float:
    """xpool loses to other captions what glscl does not."""
    loss = 0.25 if cell.variant == "xpool" and domain in (OTHERS["captions"], OTHERS["both"]) else 0.0
    return max(0.0, SHARES[domain] - loss)


def recall_of(done: list[tuple[Cell, CellResult]], variant: str, domain: str, direction: str) -> float:
    """R@1 over all queries and seeds, counted again."""
    found = [
        rank == 1
        for cell, result in done
        if cell.variant == variant and cell.domains
        for test in result.tests
        if test.domain == domain
        for rank in getattr(test.per_query, direction).optimistic.tolist()
    ]
    return 100.0 * sum(found) / len(found)


@pytest.fixture(scope="module")
def done() -> tuple[StudyConfig, list[Cell], list[tuple[Cell, CellResult]]]:
    config = factorial()
    return config, *finished(config, hits, same_scenes)


Done = tuple[StudyConfig, list[Cell], list[tuple[Cell, CellResult]]]


def test_only_the_source_is_trained_on(done: Done) -> None:
    config, cells, _ = done
    assert {cell.training for cell in cells} == {"zero-shot", SOURCE}
    assert (config.trained, config.trainings, family_size(config)) == ([SOURCE], [SOURCE], 2 * 4)
    assert {tuple(cell.config.data.train) for cell in cells if cell.domains} == {
        (str(Path("nowhere/toy/shards").absolute() / SOURCE / "train_8"),)
    }
    assert all(len(cell.config.data.test) == 4 for cell in cells)


def test_effects_are_those_of_the_ranks(done: Done) -> None:
    found = find_decompositions(*done)
    assert len(found) == (3 + 2) * len(DIRECTIONS), "three variants, and glscl against each of the two others"
    for one in found:
        names = [(1, one.variant), *([(-1, one.minus)] if one.minus else [])]
        source, captions, pictures, both = (
            sum(sign * recall_of(done[2], name, domain, one.direction) for sign, name in names) for domain in DOMAINS
        )
        assert [one.recall[cell] for cell in ("source", "captions", "pictures", "both")] == pytest.approx(
            [source, captions, pictures, both]
        )
        expected = {
            "captions": captions - source,
            "pictures": pictures - source,
            "interaction": both - captions - pictures + source,
            "total": both - source,
        }
        effects = {factor: effect.estimate for factor, effect in one.effects.items()}
        assert effects == pytest.approx(expected)
        assert effects["total"] == pytest.approx(sum(effects[f] for f in ("captions", "pictures", "interaction")))
        assert all(effect.low <= effect.estimate <= effect.high for effect in one.effects.values())
        assert (one.paired, one.videos, one.seeds) == (True, VIDEOS, 3)
        assert one.domains == {"source": SOURCE, **OTHERS}


def test_pairing_scenes_narrows_what_scenes_share(done: Done) -> None:
    """Queries are as hard in all four test sets here, so unpaired resampling makes far more of them than there is."""

    def width(decompositions: list[Decomposition], factor: Any) -> float:
        (one,) = (d for d in decompositions if (d.variant, d.minus, d.direction) == ("glscl", None, "text_to_video"))
        return one.effects[factor].high - one.effects[factor].low

    unpaired = find_decompositions(done[0], *finished(done[0], hits))
    assert not any(one.paired for one in unpaired)
    assert {one.videos for one in unpaired} == {4 * VIDEOS}
    assert width(find_decompositions(*done), "pictures") < 0.8 * width(unpaired, "pictures")


def test_sentences_say_what_is_shown_and_for_whom(done: Done) -> None:
    results = whole(done)
    sentences = list(describe_decompositions(results, "short"))
    assert len(sentences) == 3 + 2
    assert sentences[0].startswith(
        f"Other captions alone, trained on {SOURCE}: text-to-video R@1 is shown lower by it for 3 of 3 variants, "
        f"higher for 0; from −"
    )
    xpool = next(one for one in sentences if one.startswith("glscl minus xpool"))
    assert "other captions: better for glscl, +" in xpool
    assert "other pictures: no difference shown, " in xpool
    wti = next(one for one in sentences if one.startswith("glscl minus wti"))
    assert wti.count("no difference shown") == 3
    assert list(describe_decompositions(results, "long")) == []


def whole(done: Done) -> StudyResults:
    found = {
        "decompositions": find_decompositions(*done),
        "order_changes": find_order_changes(*done),
    }
    return analyse_without_shards(done).model_copy(update=found)


def analyse_without_shards(done: Done) -> StudyResults:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glscl.study.analysis._count_training_videos", lambda *_: "8")
        return analyse(*done)


def test_the_page_and_the_table_show_every_effect(done: Done, tmp_path: Path) -> None:
    results = whole(done)
    assert parse_study(results.model_dump()).decompositions == results.decompositions
    page = render_study(results)
    assert 'id="decomposition"' in page
    assert f"Over {VIDEOS} scenes that all four test sets show, and 3 seeds as a random effect (Student's t)." in (
        page.replace("&#39;", "'")
    )
    assert page.count('<th scope="col">their interaction</th>') == 2
    assert 'id="decomposition"' not in render_study(results.model_copy(update={"decompositions": []}))
    write_study_tables(results, str(tmp_path))
    with (tmp_path / "decomposition.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results.decompositions) * 4
    first, effect = results.decompositions[0], results.decompositions[0].effects["captions"]
    assert rows[0]["effect"] == "captions"
    assert [float(rows[0][name]) for name in ("estimate", "low", "high")] == [effect.estimate, effect.low, effect.high]
    assert (rows[0]["source"], rows[0]["variant"], rows[0]["minus"]) == (SOURCE, first.variant, "")


def test_a_part_of_a_study_has_the_variants_that_are_whole(done: Done) -> None:
    config, cells, results = done
    rest = [
        (cell, result.model_copy(update={"tests": result.tests[:3]}) if cell.variant == "wti" else result)
        for cell, result in results
    ]
    found = find_decompositions(config, cells, rest)
    assert {one.variant for one in found} == {"glscl", "xpool"}
    assert {one.minus for one in found} == {None, "xpool"}


def test_captions_per_video_may_differ() -> None:
    random = np.random.default_rng(0)
    values = (random.random((3, 7)) < 0.5) * 100.0
    owners = np.array([0, 0, 0, 2, 2, 5, 5])
    scenes = by_scene(values, owners, ["c", "x", "a", "x", "x", "b"])
    assert scenes.names == ("a", "b", "c")
    assert scenes.units.shape == (3, 3)
    assert scenes.units.mean(1) == pytest.approx(values.mean(1))
    equal = by_scene(values[:, :6], np.array([0, 0, 1, 1, 2, 2]), ["a", "b", "c"])
    assert equal.units == pytest.approx(values[:, :6].reshape(3, 3, 2).mean(2))


def test_a_contrast_of_two_terms_is_their_difference() -> None:
    random = np.random.default_rng(1)
    bootstrap = QueryBootstrap(50, resamples=300)
    tables = {name: (100.0 * (random.random((3, 50)) < 0.5), True) for name in ("first", "second")}
    systems = bootstrap.systems(tables)
    difference = bootstrap.difference(systems["first"], systems["second"])
    found = contrast([("first", 1.0, systems["first"]), ("second", -1.0, systems["second"])])
    for name in ("estimate", "low", "high", "p_value", "standard_error"):
        assert getattr(found, name) == pytest.approx(getattr(difference, name)), name
    assert mean_difference([("a", systems["first"], systems["second"])]).seeds == found.seeds == (3, 3)
    with pytest.raises(ValueError, match="no cells to average"):
        contrast([])


def test_test_sets_of_the_same_scenes_are_one_sample(done: Done) -> None:
    """The mean of a comparison over them is no surer than they are: their queries are resampled together."""

    def error(results: StudyResults) -> float:
        (row,) = (
            row
            for row in results.comparisons
            if (row.second, row.scope, row.direction) == ("wti", "cross-domain mean", "text_to_video")
        )
        assert row.standard_error is not None
        return row.standard_error

    config, cells, _ = done
    noisy = [finished(config, hits, change)[1] for change in (same_scenes, lambda *_: None)]
    for results in noisy:  # glscl finds some scenes that wti does not, the same in all test sets
        for cell, result in results:
            for test in result.tests:
                if cell.variant == "glscl":
                    test.per_query.text_to_video.optimistic[:20] = 1
                    test.per_query.text_to_video.pessimistic[:20] = 1
    paired, unpaired = (error(analyse_without_shards((config, cells, results))) for results in noisy)
    assert paired > 1.3 * unpaired
    few = [
        plan_differences(one, Assumed(0.0, 40.0, "s"), dict.fromkeys(DOMAINS, VIDEOS))
        for one in (config, factorial(factors={}))
    ]
    of_mean = [dict(planned)["cross-domain mean"] for planned in few]
    assert of_mean[0] == pytest.approx(3**0.5 * of_mean[1], rel=0.05), "the other three show one set of scenes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": {OTHERS["both"]: OTHERS}}, f"factors: '{OTHERS['both']}' is none of .* trained on: {SOURCE}"),
        ({"factors": {SOURCE: {**OTHERS, "both": "toy_long_night_on"}}}, r"factors\.toy_short_plain_one\.both: 'toy_lo"
         r"ng_night_on' is none of the domains that are tested on: .*did you mean 'toy_long_night_one'"),
        ({"factors": {SOURCE: {k: v for k, v in OTHERS.items() if k != "both"}}}, r"(?s)\.both.*Field required"),
        ({"factors": {SOURCE: {**OTHERS, "both": OTHERS["captions"]}}}, "the four cells need four domains"),
        ({"factors": {SOURCE: {**OTHERS, "captions": OTHERS["both"], "both": OTHERS["captions"]}}},
         r"\.captions: toy_long_night_one differs from toy_short_plain_one in captions and pictures, and should in "),
        ({"domains": {SOURCE: {"toy": {"train": 8}}, "toy_clips": {"toy": {"test": 8}}}, "factors": {}}, None),
        ({"domains": {"toy_clips": {"toy": {"test": 8}}}, "factors": {}}, "domains: none is trained on"),
        ({"domains": {"toy_clips": {"toy": {"dev": 8}}}, "factors": {}}, "how many videos to train on is missing"),
        ({"domains": {"toy_clips": {"toy": {"test": 8, "dev": 8}}}, "factors": {}}, "it is only tested on; leave run"),
        ({"domains": {"a": {"test": "s", "run": {"seed": 1}}}, "factors": {}}, "it is only tested on; leave run"),
        ({"domains": {"a": {}}, "factors": {}}, "give either train"),
    ],
)  # fmt: skip
def test_mistakes_are_named(changes: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert factorial(**changes).trained == [SOURCE]
        return
    with pytest.raises(ValidationError, match=message):
        factorial(**changes)


def test_toy_cells_that_do_not_belong_together_are_refused() -> None:
    names = [name for name in toy_names() if name.count("_") == 3]
    domains = {name: {"toy": {"train": 8, "test": 8}} for name in names}
    others = {**OTHERS, "both": "toy_long_textured_one"}
    with pytest.raises(
        ValidationError, match=r"both: toy_long_textured_one has not the captions of toy_long_plain_one"
    ):
        factorial(domains=domains, factors={SOURCE: others})
    allowed = 0
    for captions, pictures, both in itertools.permutations(set(names) - {SOURCE}, 3):
        try:
            factorial(domains=domains, factors={SOURCE: {"captions": captions, "pictures": pictures, "both": both}})
        except ValidationError:
            continue
        allowed += 1
    assert allowed == 2, "long captions, with textured pictures or those of the night"


def test_orders_of_variants_in_two_conditions() -> None:
    other = {"model": {"max_words": 16, "max_frames": 4}}
    config = factorial(conditions={"short": {"model": {"max_words": 16, "max_frames": 2}}, "more": other})
    best = {"short": ("glscl", "xpool", "wti"), "more": ("xpool", "glscl", "wti")}

    def by_order(cell: Cell, domain: str) -> float:
        return 0.5 if not cell.domains else 0.8 - 0.25 * best[cell.condition].index(cell.variant)

    cells, done = finished(config, by_order, same_scenes)
    found = find_order_changes(config, cells, done)
    assert [one.relation for one in found] == ["in-domain", "cross-domain"]
    across = found[1]
    assert across.tau == pytest.approx(1 / 3), "two pairs agree, one does not"
    assert across.what == {"model.max_frames": "2 → 4"}
    pairs = {(pair.first, pair.second): pair for pair in across.pairs}
    swapped = pairs["glscl", "xpool"]
    assert swapped.one.estimate == pytest.approx(-swapped.other.estimate, abs=3)
    assert swapped.one.estimate > 15
    assert swapped.change.estimate == pytest.approx(swapped.other.estimate - swapped.one.estimate)
    assert (swapped.one.shown, swapped.other.shown, swapped.change.shown) == (True, True, True)
    assert pairs["glscl", "wti"].one.estimate == pytest.approx(across.recall["glscl"][0] - across.recall["wti"][0])
    results = analyse_without_shards((config, cells, done)).model_copy(update={"order_changes": found})
    (sentence,) = (one for one in describe_order_changes(results) if "cross-domain" in one)
    assert sentence.startswith(
        "short and more (model.max_frames 2 → 4), cross-domain mean: of 3 pairs of variants, 2 are shown in the same "
        "order in both, 1 in opposite orders, and for 0 no order is shown in one of the two; the difference is shown "
        "to change for 3"
    )
    assert "Does the order of heads depend on the condition?" in render_study(results)
    assert find_order_changes(factorial(), *finished(factorial(), hits, same_scenes)) == []


def test_planted_effects_are_held_by_95_per_cent_intervals() -> None:
    """Fewer simulations than ``python -m stress.decompositions`` has: 95 ± 3 of 100 is two standard errors here."""
    setting = Setting(scenes=200, seeds=3, seed_sd=0.05, cell_sd=0.05)
    for paired in (True, False):
        rates = rates_of_coverage(setting, 250, paired=paired)
        assert len(rates) == 8
        assert all(0.91 <= rate <= 0.985 for rate in rates.values()), rates


def test_cells_are_built_for_what_is_trained_alone() -> None:
    config = factorial(union=True)
    sets = {name: sets_of(name, trained=name == SOURCE) for name in DOMAINS}
    assert {cell.training for cell in build_cells(config, sets)} == {"zero-shot", SOURCE}, "a union of one is none"


def sets_of(name: str, *, trained: bool) -> Any:
    from glscl.runs.sets import Sets

    return Sets((f"{name}/train",) if trained else (), (), f"{name}/test")
