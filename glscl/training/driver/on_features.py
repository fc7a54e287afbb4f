"""Checks of a run whose shard sets hold features of frozen towers in place of videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.training.config import RunConfig

if TYPE_CHECKING:
    from glscl.models.retriever import Retriever


_Named = list[tuple[str, ShardSet]]
"""Shard sets with their keys in the configuration."""


def check_features(config: RunConfig, sets: Mapping[str, Sequence[ShardSet]]) -> bool:
    """Whether a run trains on features; ``sets`` are its shard sets by their keys in the configuration.

    Raises `UserError`: sets of both kinds, features of other lengths than the run's, towers that are trained, or an
    option that needs pixels.
    """
    features, videos = _name(sets, features=True), _name(sets, features=False)
    read, seen = ([named for named in kind if named[0] != "data.test"] for kind in (features, videos))
    if read and seen:
        (key, one), (other_key, other) = read[0], seen[0]
        raise UserError(
            f"{key}: {one.uri} holds features, and {other_key}: {other.uri} videos: a run trains and validates on sets "
            f"of one kind; encode the others as well (`glscl encode`), or name the videos"
        )
    if read and config.data.augment is not None:
        raise UserError(
            f"data.augment: {config.data.augment} changes pixels, and {read[0][1].uri} holds features: set it to "
            f"null, or train on the videos"
        )
    for key, shard_set in features:
        where = f"{key}: {shard_set.uri}"
        if trained := config.model.trained_key:
            raise UserError(
                f"model.{trained}: parts of the towers are trained, and {where} holds features of frozen ones: "
                f"{'set it to towers' if trained == 'freeze' else 'leave it out'}, or name the videos"
            )
        assert shard_set.manifest.features is not None
        shard_set.manifest.features.check_run(
            where, config.model.max_words, config.model.max_frames, config.data.sample_fps
        )
    return bool(read)


def check_towers(config: RunConfig, sets: Mapping[str, Sequence[ShardSet]], model: Retriever) -> str | None:
    """Fingerprint of the run's towers if a set holds features; a `UserError` if they are not those of each set."""
    from glscl.models.fingerprint import tower_fingerprint

    with_features = _name(sets, features=True)
    if not with_features:
        return None
    fingerprint = tower_fingerprint(model.towers)
    for key, shard_set in with_features:
        assert shard_set.manifest.features is not None
        name = f"{config.model.clip}, {config.model.weights}"
        shard_set.manifest.features.check_towers(f"{key}: {shard_set.uri}", fingerprint, name)
    return fingerprint


def _name(sets: Mapping[str, Sequence[ShardSet]], *, features: bool) -> _Named:
    """Those that hold features, or those that do not."""
    named = [(key, shard_set) for key, shard_sets in sets.items() for shard_set in shard_sets]
    return [(key, shard_set) for key, shard_set in named if (shard_set.manifest.features is not None) == features]
