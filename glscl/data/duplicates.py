"""Captions that describe several videos of a set word for word, found and written as a list of relevant videos."""

import json
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from glscl.data.shards import Shard, ShardSet
from glscl.errors import UserError
from glscl.system.progress import Progress


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What was found: the relevant videos, its own first, of every caption that describes another video, too."""

    relevant: dict[tuple[str, int], tuple[str, ...]]
    """Video and number of the caption, from 0 -> videos."""
    groups: int  # different texts
    captions: int  # of the whole set


def find_duplicates(shard_set: ShardSet) -> Duplicates:
    """Find the captions of a set that describe more than one of its videos.

    Captions are the same if they are but for case, accents composed or apart, space, and a full stop at their end.
    """
    videos: dict[str, dict[str, None]] = {}
    named: list[tuple[str, int, str]] = []
    for video_id, captions in _read_captions(shard_set):
        for number, caption in enumerate(captions):
            text = normalise(caption)
            videos.setdefault(text, {})[video_id] = None
            named.append((video_id, number, text))
    relevant = {
        (video_id, number): (video_id, *(other for other in videos[text] if other != video_id))
        for video_id, number, text in named
        if len(videos[text]) > 1
    }
    return Duplicates(relevant, sum(len(some) > 1 for some in videos.values()), len(named))


def normalise(caption: str) -> str:
    """A caption without what does not make it another one."""
    return " ".join(unicodedata.normalize("NFC", caption).casefold().split()).removesuffix(".").rstrip()


def format_qrels(duplicates: Duplicates, *, json_lines: bool) -> str:
    """Write the relevant videos as TREC's lines ``QUERY 0 VIDEO 1``, or as JSON lines.

    Raises `UserError`: an id has a space, which TREC's lines cannot hold.
    """
    lines = []
    for (video_id, number), videos in duplicates.relevant.items():
        query = f"{video_id}#{number}"
        for video in videos:
            if json_lines:
                lines.append(json.dumps({"query": query, "doc": video, "rel": 1}, ensure_ascii=False))
                continue
            if spaced := next((name for name in (query, video) if len(name.split()) != 1), None):
                raise UserError(f"video '{spaced}': a name with a space needs JSON lines; name the file .jsonl")
            lines.append(f"{query} 0 {video} 1")
    return "".join(f"{line}\n" for line in lines)


def _read_captions(shard_set: ShardSet) -> Iterator[tuple[str, tuple[str, ...]]]:
    tars = len(shard_set.manifest.shards)
    with Progress(f"reading {shard_set.uri}", tars, "tars") as progress:
        for index in range(tars):
            with closing(Shard(shard_set, index)) as shard:
                for sample in shard.samples:
                    yield sample.video_id, tuple(sample.captions)
            progress.advance()
