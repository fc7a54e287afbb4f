"""Checks of a run whose shard sets hold features of frozen towers in place of videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.training.config import RunConfig

if TYPE_CHECKING:
    from glscl.models.retriever import Retriever


def check_features(config: RunConfig, sets: Mapping[str, Sequence[ShardSet]]) -> bool:
    """Whether a run trains on features; ``sets`` are its shard sets by their keys in the configuration.

    Raises `UserError`: sets of both kinds, features of other lengths than the run's, or an option that needs pixels.
    """
    read = [(key, shard_set) for key in ("data.train", "data.validation") for shard_set in sets[key]]
    features = [named for named in read if named[1].manifest.features is not None]
    videos = [named for named in read if named[1].manifest.features is None]
    if features and videos:
        (key, one), (other_key, other) = features[0], videos[0]
        raise UserError(
            f"{key}: {one.uri} holds features, and {other_key}: {other.uri} videos: a run trains and validates on sets "
            f"of one kind; encode the others as well (`glscl encode`), or name the videos"
        )
    if features and config.data.augment is not None:
        raise UserError(
            f"data.augment: {config.data.augment} changes pixels, and {features[0][1].uri} holds features: set it to "
            f"null, or train on the videos"
        )
    for key, shard_sets in sets.items():
        for shard_set in shard_sets:
            if (facts := shard_set.manifest.features) is not None:
                where = f"{key}: {shard_set.uri}"
                facts.check_run(where, config.model.max_words, config.model.max_frames, config.data.sample_fps)
                if not features:
                    raise UserError(
                        f"{where} holds features of frozen towers, and this run trains its own: test on the videos, or "
                        f"train on features, too"
                    )
    return bool(features)


def check_towers(config: RunConfig, sets: Mapping[str, Sequence[ShardSet]], model: Retriever) -> str | None:
    """Fingerprint of the run's towers if a set holds features; a `UserError` if they are not those of each set."""
    from glscl.models.fingerprint import tower_fingerprint

    named = [(key, shard_set) for key, shard_sets in sets.items() for shard_set in shard_sets]
    with_features = [(key, shard_set) for key, shard_set in named if shard_set.manifest.features is not None]
    if not with_features:
        return None
    fingerprint = tower_fingerprint(model.towers)
    for key, shard_set in with_features:
        assert shard_set.manifest.features is not None
        name = f"{config.model.clip}, {config.model.pretrained}"
        shard_set.manifest.features.check_towers(f"{key}: {shard_set.uri}", fingerprint, name)
    return fingerprint
