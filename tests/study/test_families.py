"""What a study can show is known before it starts, and what is certain is shown: in every packaged study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.runs.sets import Sets, locate_sets
from glscl.study.options import StudyConfig
from glscl.study.plan import CONFIG, check_families, describe_family, family_size, plan_study
from glscl.study.statistics import (
    LEVEL,
    QueryBootstrap,
    enough_queries,
    enough_resamples,
    holm,
    mean_difference,
    seed_errors,
)
from tests.study.fake import study


def check(config: StudyConfig) -> None:
    check_families(config, locate_sets(config))


def test_a_family_is_every_pair_after_every_training_on_every_test() -> None:
    assert family_size(StudyConfig.load("benchmarks")) == 11 * 7 * 6 == 462
    assert family_size(StudyConfig.load("toy")) == 15 * 3 * 2
    assert family_size(StudyConfig.load("toy_small")) == 4
    assert family_size(study(union=True)) == 6
    domains = {"toy_clips": {"toy": {"train": 8, "test": 40}}, "toy_stories": {"toy": {"train": 8}}}
    assert family_size(study(domains=domains, union=False)) == 2
    only = {"toy_clips": {"toy": {"train": 8, "test": 40}}}
    assert family_size(study(domains=only, union=True)) == 1  # one domain has no union


def test_what_a_family_needs() -> None:
    assert [enough_resamples(size) for size in (1, 4, 462)] == [28, 72, 416]
    assert [enough_queries(size) for size in (1, 4, 462)] == [6, 8, 15]
    assert seed_errors(462, 3) == pytest.approx(15.2, abs=0.05)
    assert seed_errors(1, 2) == pytest.approx(4.303, abs=0.001)


def test_a_family_that_cannot_show_anything_is_refused(tmp_path: Path) -> None:
    few = {"toy_clips": {"toy": {"train": 8, "test": 7}}, "toy_stories": {"toy": {"train": 8, "test": 8}}}
    with pytest.raises(UserError, match=r"domains\.toy_clips: 4 single cells .* test set of 7 videos .* 8 or more"):
        check(study(domains=few))
    few["toy_clips"]["toy"]["test"] = 8
    check(study(domains=few))
    wide = {f"d{n}": {"toy": {"train": 8, "test": 40}} for n in range(22)}
    assert family_size(study(domains=wide)) == 484
    with pytest.raises(UserError, match=r"resamples: 484 .* 200 resamples are too few .* at least 421"):
        check(study(domains=wide))
    check(study(domains=wide, resamples=421, seeds=[1, 2]))
    wide["d22"] = wide["d0"]
    with pytest.raises(UserError, match=r"seeds: 529 .* with 2 seeds .* 103 standard errors .*: give 3 seeds or more"):
        check(study(domains=wide, resamples=1000, seeds=[1, 2]))
    check(study(domains=wide, resamples=1000, seeds=[1, 2, 3]))
    check(study(domains=wide, resamples=1000, seeds=[1]))  # says of every claim that it is of one training
    with pytest.raises(UserError, match="resamples"):
        plan_study(study(domains=wide, storage=str(tmp_path)))  # `glscl study --dry-run`
    check(study(comparisons=(), variants={"one": {"group": "pooling", "what": "w", "run": {}}}, resamples=100))


def test_test_sets_are_counted_and_compared_where_they_are(
    make_shards: Callable[..., ShardSet], tmp_path: Path
) -> None:
    train, test = (make_shards("one", captions=(1,) * n, per_shard=9, root=str(tmp_path / f"{n}")) for n in (5, 4))
    domains: dict[str, Any] = {"one": {"train": [train.uri], "test": test.uri}}
    config = study(domains=domains, storage=str(tmp_path), seeds=[1])
    with pytest.raises(UserError, match=r"domains\.one: 1 single cells .* test set of 4 videos"):
        plan_study(config)
    check_families(config, {"one": Sets((train.uri,), (), str(tmp_path / "later"))})
    test = make_shards("one", captions=(1,) * 9, per_shard=9, root=str(tmp_path / "test"))
    domains["one"]["test"] = test.uri
    with pytest.raises(
        UserError, match=r"domains\.one\.test: \S+ shares 5 videos of 9 with domains\.one\.train: .*list"
    ):
        plan_study(study(domains=domains, storage=str(tmp_path), seeds=[1]))
    leaks = tmp_path / "leaks.txt"
    leaks.write_text("v000\n")
    listed = [{"test": "one", "train": "one", "list": str(leaks)}]
    plan_study(study(domains=domains, storage=str(tmp_path), seeds=[1], leave_out=listed))
    domains["one"]["train"] = [str(tmp_path / "later")]  # nothing to compare with yet
    plan_study(study(domains=domains, storage=str(tmp_path), seeds=[1]))


def test_describes_what_is_needed() -> None:
    assert describe_family(StudyConfig.load("benchmarks")) == (
        "462 comparisons of single cells; shown from 3.9 standard errors on where queries make them up, 15.2 where "
        "seeds do"
    )
    assert describe_family(StudyConfig.load("toy_small")).endswith("; one seed: every claim is of one training")
    assert "one seed" not in describe_family(study(seeds=[1, 2]))
    assert describe_family(study(variants={"one": {"group": "pooling", "what": "w", "run": {}}})).startswith("none")


def test_errors_that_seeds_need_are_quantiles_of_students_t() -> None:
    """Two-sided, from the tables: t(0.975, 4) and t(0.995, 2)."""
    assert seed_errors(1, 3) == pytest.approx(2.776, abs=1e-3)
    assert seed_errors(5, 2) == pytest.approx(9.925, abs=1e-3)


@pytest.mark.parametrize("name", StudyConfig.names())
def test_packaged_studies_show_a_certain_large_difference(name: str) -> None:
    """20 points and more in every cell, at the packaged seeds, resamples, queries and family."""
    config = StudyConfig.load(name)
    check(config)
    size, seeds = family_size(config), len(config.seeds)
    queries = min((domain.toy.test for domain in config.domains.values() if domain.toy), default=670)  # MSVD's test
    random = np.random.default_rng(0)
    bootstrap = QueryBootstrap(queries, resamples=config.resamples)
    pairs = []
    for _ in range(6):
        strength = random.standard_normal(queries)
        gain = 0.6 if queries > 100 else 2.0  # 16 queries: three of four more
        first, second = (
            100.0 * (strength + shift + 0.2 * random.standard_normal((seeds, queries)) > 0.5) for shift in (gain, 0.0)
        )
        systems = bootstrap.systems({"first": (first, True), "second": (second, True)})
        pairs.append((systems["first"], systems["second"]))
    cells = [bootstrap.difference(first, second) for first, second in pairs]
    assert min(cell.estimate for cell in cells) > 15
    # All other cells show nothing: the hardest that Holm's correction can be.
    family = {n: cell.p_value or 0.0 for n, cell in enumerate(cells)} | {
        -n: 1.0 for n in range(1, size - len(cells) + 1)
    }
    adjusted = holm(family)
    assert all(adjusted[n] <= 1 - LEVEL and cell.excludes_null for n, cell in enumerate(cells)), adjusted
    mean = mean_difference([(str(n), *pair) for n, pair in enumerate(pairs[:2])])
    assert holm({n: mean.p_value or 0.0 if n == 0 else 1.0 for n in range(len(config.pairs) * 2)})[0] <= 1 - LEVEL


def test_a_study_that_was_begun_goes_on(tmp_path: Path) -> None:
    few = {"toy_clips": {"toy": {"train": 8, "test": 7}}, "toy_stories": {"toy": {"train": 8, "test": 8}}}
    weak = study(domains=few, storage=str(tmp_path))
    with pytest.raises(UserError, match="7 videos"):
        plan_study(weak)
    Path(weak.directory).mkdir()
    Path(weak.directory, CONFIG).write_text("")
    plan_study(weak)
