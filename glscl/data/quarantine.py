"""Lists of videos with faults: those that cannot be used, bounded set by set, and those of which some pictures fail."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from glscl.data.records import describe_share, list_some
from glscl.data.shards import Sample, ShardSet
from glscl.errors import UserError
from glscl.system import storage
from glscl.system.ownership import Fence

if TYPE_CHECKING:
    from glscl.data.video import Clip  # with what decodes, seconds to import

FILE = "quarantine.jsonl"
Part = Literal["train", "validation", "test", "bank"]
WORDS: Mapping[str, str] = {
    "train": "training set",
    "validation": "held-out set",
    "test": "test set",
    "bank": "query bank from",
}
KNOB = "data.max_bad_fraction"  # the option of a run that bounds them
LISTED = 10  # most videos that a message names
LISTED_REPAIRS = 3
Entry = dict[str, str]
"""``part`` (a key of `WORDS`), ``domain``, ``split``, ``set`` (its address), ``shard``, ``key``, ``video_id`` and
``reason``; ``part`` is known once a `Quarantine` holds the entry. A repaired video's has ``domain``, ``shard``,
``key``, ``video_id`` and ``frames`` (``3 of 12``)."""


class IncompleteSet(TypedDict):
    """A set of which videos are missing, as results list it (`glscl.evaluation.results.Incomplete`)."""

    part: Part
    domain: str
    split: str
    shards: str
    videos: int
    of: int
    reasons: str


class UnusableSetError(UserError):
    """A set without a usable video."""

    quarantined: Sequence[Entry] = ()  # its videos, each with what is wrong with it


def quarantine_entry(shard_set: ShardSet, shard: int, sample: Sample, reason: str) -> Entry:
    """Build one line of the list, for a video of the set's tar of that index."""
    manifest = shard_set.manifest
    return {
        "domain": manifest.domain,
        "split": manifest.split,
        "set": shard_set.uri,
        "shard": manifest.shards[shard].name,
        "key": sample.key,
        "video_id": sample.video_id,
        "reason": reason,
    }


class Quarantine:
    """The videos of a run's sets that cannot be used, each once per use of a set (to train, validate, test ...).

    Args:
        folder: where `FILE` is written as soon as the list grows, which is also printed; None only holds the list.
        limit: share of a set's videos that may be unusable, which the option ``knob`` holds.
        entries: known from an earlier start of the run.
        fence: of the command that owns the folder, checked before the file is written.
    """

    def __init__(
        self, folder: str | None, limit: float, knob: str, entries: Iterable[Entry] = (), fence: Fence | None = None
    ) -> None:
        self.folder, self.limit, self.knob, self._fence = folder, limit, knob, fence
        self.entries: list[Entry] = []
        self._places: set[tuple[str, ...]] = set()
        for entry in entries:
            self._add(entry)

    def _add(self, entry: Entry) -> bool:
        place = tuple(entry.get(name, "") for name in ("part", "set", "shard", "key"))
        if is_new := place not in self._places:
            self._places.add(place)
            self.entries.append(entry)
        return is_new

    def take(self, part: Part, shard_sets: Sequence[ShardSet], entries: Iterable[Entry]) -> None:
        """Add the entries of these sets that are new, print how many there are, and write the file anew."""
        new = [entry for entry in ({"part": part, **entry} for entry in entries) if self._add(entry)]
        if self.folder is None or not new:
            return
        for shard_set in shard_sets:
            if added := [entry for entry in new if entry["set"] == shard_set.uri]:
                bad = len(self.of(part, shard_set))
                print(
                    f"quarantined: {bad} of {shard_set.manifest.videos} videos of {_title(part, shard_set)} cannot be "
                    f"used{'' if bad == len(added) else f', new are {len(added)}'}: {_list(added, 3)}; all in "
                    f"{storage.join(self.folder, FILE)}",
                    flush=True,
                )
        self.write()

    def of(self, part: Part, shard_set: ShardSet) -> list[Entry]:
        """The entries of one set."""
        return [entry for entry in self.entries if entry["part"] == part and entry["set"] == shard_set.uri]

    def problem(self, part: Part, shard_sets: Iterable[ShardSet]) -> str | None:
        """Say why the run may not go on: the first set of which more than `limit` cannot be used; None if none is."""
        for shard_set in shard_sets:
            bad, videos = self.of(part, shard_set), shard_set.manifest.videos
            if len(bad) > self.limit * videos:
                where = f" (all in {storage.join(self.folder, FILE)})" if self.folder else ""
                return (
                    f"{len(bad)} of {videos} videos of {_title(part, shard_set)} cannot be used, more than {self.knob} "
                    f"({self.limit:g}): {_list(bad, LISTED)}{where}; mend or remove them, or raise {self.knob}"
                )
        return None

    def write(self) -> None:
        """Write the file anew; an empty list has no file."""
        assert self.folder is not None
        if self._fence is not None:
            self._fence.check()
        where = storage.join(self.folder, FILE)
        if self.entries:
            text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.entries)
            storage.write_bytes(where, text.encode("utf-8", "replace"))
        else:
            storage.remove(where)


def read_quarantine(folder: str) -> list[Entry]:
    """Read the list of `FILE` in a folder; empty if there is no such file."""
    where = storage.join(folder, FILE)
    if not storage.exists(where):
        return []
    return [json.loads(line) for line in storage.read_bytes(where).decode("utf-8").split("\n") if line]


def add_missing_sets(entries: Iterable[Entry], shard_sets: Sequence[ShardSet]) -> list[Entry]:
    """Complete entries of older checkpoints, which name no set because they list training sets alone."""
    missing = {
        shard_set.manifest.domain: {"part": "train", "set": shard_set.uri, "split": shard_set.manifest.split}
        for shard_set in reversed(shard_sets)
    }
    return [entry if "set" in entry else missing[entry["domain"]] | entry for entry in entries]


def find_incomplete(part: Part, shard_set: ShardSet, bad: Iterable[Entry]) -> IncompleteSet | None:
    """Describe a set of which videos are missing: ``bad`` ones, or left out when it was built; None if none is."""
    manifest = shard_set.manifest
    reasons = Counter(entry["reason"] for entry in bad)
    used = manifest.videos - reasons.total()
    reasons.update(manifest.rejected.values())
    if not reasons:
        return None
    return {
        "part": part,
        "domain": manifest.domain,
        "split": manifest.split,
        "shards": shard_set.uri,
        "videos": used,
        "of": manifest.videos + len(manifest.rejected),
        "reasons": ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5)),
    }


def merge_incomplete(runs: Iterable[Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """List the incomplete sets of several runs, each once, where it has the fewest videos; test sets come first."""
    fewest: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in (entry for sets in runs for entry in sets):
        place = (entry["part"], entry["shards"])
        if place not in fewest or entry["videos"] < fewest[place]["videos"]:
            fewest[place] = dict(entry)
    return sorted(fewest.values(), key=lambda entry: (entry["part"] != "test", entry["part"] != "validation"))


def describe_incomplete(sets: Iterable[Mapping[str, Any]]) -> str:
    """Write ``held-out set toy/dev 16 of 19 videos, ...``."""
    return ", ".join(
        f"{WORDS[one['part']]} {one['domain']}/{one['split']} {describe_share(one['videos'], one['of'])} videos"
        for one in sets
    )


def _title(part: Part, shard_set: ShardSet) -> str:
    return f"{WORDS[part]} {shard_set.manifest.domain}/{shard_set.manifest.split}"


def _list(entries: Sequence[Entry], most: int) -> str:
    names = [f"{entry['domain']}/{entry['video_id']} ({entry['reason']})" for entry in entries]
    return list_some(names, most, between="; ")


def repair_entry(domain: str, shard: str, sample: Sample, clip: Clip) -> Entry:
    """Build one line of the list of videos in which the nearest picture stands for some that do not decode."""
    frames = f"{clip.replaced} of {len(clip.frames)}"
    return {"domain": domain, "shard": shard, "key": sample.key, "video_id": sample.video_id, "frames": frames}


def describe_repairs(what: str, videos: int, entries: Sequence[Mapping[str, str]]) -> str:
    """Say in one line which of the ``videos`` of ``what`` (``test set msvd/test``) are repaired, one or more."""
    names = [f"{entry['video_id']} ({entry['frames']} frames)" for entry in entries]
    return (
        f"repaired: in {len(entries)} of {videos} videos of {what} the nearest picture stands for some that do not "
        f"decode: {list_some(names, LISTED_REPAIRS)}"
    )
