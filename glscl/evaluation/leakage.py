"""Test videos to leave out because they, or near-duplicates of them, were trained on.

Listed videos leave with their captions, as queries and as candidates: a leaked video that stays in the gallery still
takes places from others. So the embeddings are cut down and scored anew, beside the result of the whole set.
"""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import torch

from glscl.data.records import compose_accents
from glscl.errors import UserError
from glscl.evaluation.embed import Embeddings
from glscl.evaluation.lists import read_by_domain, read_text
from glscl.system import storage

_COLUMNS = ("video_id", "video", "id")
_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov")


@dataclass(frozen=True, slots=True)
class LeakageList:
    """Videos to leave out of a domain's test sets, and the address of the file that names them."""

    uri: str
    names: tuple[str, ...]


def read_leakage_list(uri: str) -> list[str]:
    """Read names of videos: each once, in the order of the file.

    By the ending of the name: ``.json`` is a list of names, or of objects with ``video_id``, or an object with such a
    list under ``videos``. ``.csv`` and ``.tsv`` have the column ``video_id`` (or ``video``, ``id``), or no header and
    the names first. Anything else has a name at the start of every line, up to a tab; ``#`` starts a comment line. The
    last form reads the duplicate lists of papermsucode/mdmmt as they are: the test video is their first column.

    Raises:
        UserError: no such file, not of that form, or it names no video.
    """
    kind = uri.rsplit(".", 1)[-1].lower()
    if kind == "json":
        names = _names_of_json(uri, storage.read_json(uri))
    else:
        text = read_text(uri)
        try:
            names = _names_of_table(text, kind) if kind in ("csv", "tsv") else _names_of_lines(text)
        except csv.Error as error:
            raise UserError(f"{uri}: not a table ({error})") from None
    unique = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not unique:
        raise UserError(f"{uri}: names no video to leave out; expected one name per line, a table or a JSON list")
    return unique


def leakage_lists(entries: Sequence[str], domains: Collection[str]) -> dict[str, LeakageList]:
    """Read the lists that ``evaluation.leave_out`` names as ``DOMAIN=FILE``, by domain; ``domains`` has the test sets'.

    Raises `UserError`: not of that form, no test set of that domain, two lists of one domain, or no readable list.
    """
    lists = read_by_domain("leave_out", entries, domains, read_leakage_list)
    return {domain: LeakageList(uri, tuple(names)) for domain, (uri, names) in lists.items()}


def leave_out(embeddings: Embeddings, names: Iterable[str]) -> tuple[Embeddings, str]:
    """Drop videos and their captions from a whole set; also says what was left out, in a sentence or two.

    A name counts with or without the ending of a video file and ActivityNet's ``v_``, its accents composed or apart.
    ``truncated`` stays that of the whole set. Raises `UserError`: no video with a caption would remain.
    """
    listed = list(dict.fromkeys(names))
    video_ids = list(map(compose_accents, embeddings.video_ids))
    quarantined = {compose_accents(entry["video_id"]) for entry in embeddings.quarantined}
    dropped, unmatched = _match(listed, set(video_ids))
    undecodable = [name for name in unmatched if quarantined.intersection(_spellings(name))]
    keep = torch.tensor([name not in dropped for name in video_ids], dtype=torch.bool)
    keep_text = keep[embeddings.caches.text_to_video]
    if not keep_text.any():
        raise UserError(
            f"all {len(set(video_ids))} videos of the test set are on the list of videos to leave out; nothing remains"
        )
    captions = f"and their captions ({int((~keep_text).sum())})"
    note = f"{int((~keep).sum())} of {len(listed)} listed videos left out, {captions}."
    if undecodable:
        note += f" {len(undecodable)} could not be decoded and were out already."
    if unknown := [name for name in unmatched if name not in undecodable]:
        some = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
        example = embeddings.video_ids[0]
        note += f" {len(unknown)} are no videos of this set ({some}; its videos are named like {example})."
    videos, texts = keep.tolist(), keep_text.tolist()
    smaller = replace(
        embeddings,
        caches=embeddings.caches.select(keep),
        positions=list(compress(embeddings.positions, videos)),
        video_ids=list(compress(embeddings.video_ids, videos)),
        captions=list(compress(embeddings.captions, texts)),
        attributes=list(compress(embeddings.attributes, videos)),
        thumbnails=list(compress(embeddings.thumbnails, videos)),
    )
    return smaller, note


def _match(listed: Iterable[str], present: set[str]) -> tuple[set[str], list[str]]:
    """The videos that the names of a list stand for, and the names that stand for none."""
    matches = {name: next((one for one in _spellings(name) if one in present), None) for name in listed}
    return set(filter(None, matches.values())), [name for name, match in matches.items() if match is None]


def _spellings(name: str) -> list[str]:
    """Names that the same video may have in a test set, accents composed, the given one first."""
    name = compose_accents(name)
    bare = next((name[: -len(suffix)] for suffix in _SUFFIXES if name.lower().endswith(suffix)), name)
    return list(dict.fromkeys([name, bare, f"v_{bare}", bare.removeprefix("v_")]))


def _names_of_json(uri: str, value: object) -> list[str]:
    items = value.get("videos") if isinstance(value, dict) else value
    if isinstance(items, list):
        entries = [item.get("video_id") if isinstance(item, dict) else item for item in items]
        names = [entry for entry in entries if isinstance(entry, str)]
        if len(names) == len(entries):
            return names
    raise UserError(f"{uri}: expected a list of names, or of objects with 'video_id', alone or under 'videos'")


def _names_of_table(text: str, kind: str) -> list[str]:
    table = [row for row in csv.reader(io.StringIO(text), delimiter="\t" if kind == "tsv" else ",") if row]
    header = [cell.strip().lower() for cell in table[0]] if table else []
    column = next((header.index(name) for name in _COLUMNS if name in header), None)
    if column is None:
        return [row[0] for row in table]
    return [row[column] for row in table[1:] if len(row) > column]


def _names_of_lines(text: str) -> list[str]:
    return [line.split("\t", 1)[0] for line in text.splitlines() if not line.lstrip().startswith("#")]
