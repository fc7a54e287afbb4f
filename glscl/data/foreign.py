"""Index WebDataset tars of other programs: write a manifest beside them; the tars stay as they are."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pydantic import ValidationError

from glscl.data.foreign_tars import index_foreign
from glscl.data.quarantine import LISTED
from glscl.data.records import compose_accents, list_some
from glscl.data.shards import FOREIGN, MANIFEST, Manifest, ShardEntry, count_reasons, local_file
from glscl.errors import UserError
from glscl.options.mistakes import first_mistake
from glscl.system import storage
from glscl.system.progress import Progress

VERSION = 1
_THREADS = 4


class _IndexedTar(NamedTuple):
    entry: ShardEntry
    rejected: dict[str, str]  # keys of samples that lack something, with the reason
    video_ids: list[str]
    captions: list[int]  # of every video, how many


def index_shards(
    uri: str, *, domain: str = "", split: str = "train", max_bad_fraction: float = 0.01, overwrite: bool = False
) -> tuple[Manifest, list[str]]:
    """Read the tars of a folder once and write the manifest that makes them a shard set.

    Samples (`index_foreign`) without a video or a caption are left out and listed as rejected. An empty domain takes
    the folder's name. Returned are the manifest, and notes for the user. A `UserError` names what cannot be used.
    """
    uri = storage.resolve(uri)
    where = storage.join(uri, MANIFEST)
    if storage.exists(where) and not overwrite:
        raise UserError(f"{where}: is there already; pass --overwrite to index the tars anew")
    names = [name for name in storage.list_names(uri) if name.endswith(".tar")]
    if not names:
        raise UserError(f"{uri}: no folder with *.tar files directly in it; name the folder of the tars")
    storage.check_writable(uri, "the folder of the tars, or its permissions")
    tars = []
    with (
        Progress(f"reading {uri}", len(names), "tars") as progress,
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
    ):
        for tar in pool.map(lambda name: _index(storage.join(uri, name), name), names):
            tars.append(tar)
            progress.advance()
    manifest = _describe_set(tars, domain or compose_accents(uri.rpartition("/")[2]), split)
    _check_rejected(uri, manifest, max_bad_fraction)
    storage.write_json(where, manifest.model_dump(mode="json"))
    times = Counter(manifest.video_ids)
    repeated = [video_id for video_id, count in times.items() if count > 1]
    notes = [f"{len(repeated):,} ids stand for several samples: {', '.join(repeated[:LISTED])}"] if repeated else []
    return manifest, notes


def _describe_set(tars: Sequence[_IndexedTar], domain: str, split: str) -> Manifest:
    """Build the manifest of a folder of tars; a `UserError` says that a name cannot be used."""
    rejected = {f"{tar.entry.name}/{key}": reason for tar in tars for key, reason in tar.rejected.items()}
    try:
        return Manifest(
            domain=domain,
            split=split,
            reader=FOREIGN,
            reader_version=VERSION,
            sources=(),
            encoding="as is",
            videos=sum(tar.entry.samples for tar in tars),
            pairs=sum(tar.entry.pairs for tar in tars),
            shards=tuple(tar.entry for tar in tars),
            rejected=rejected,
            video_ids=tuple(video_id for tar in tars for video_id in tar.video_ids),
            captions=tuple(count for tar in tars for count in tar.captions),
        )
    except ValidationError as error:
        first = first_mistake(error)
        raise UserError(f"--{first.key.partition('.')[0]}: {first.message}") from None


def _index(uri: str, name: str) -> _IndexedTar:
    """Read one tar: its entry of the manifest, what it cannot give, and its ids."""
    with local_file(uri) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
        try:
            index = index_foreign(file)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(f"{uri}: unusable ({error}); mend it, or move it out of the folder") from None
    counts = [len(sample.captions) for sample in index.samples]
    videos, pairs = len(counts), sum(counts)
    try:
        entry = ShardEntry(name=name, samples=videos, pairs=pairs, bytes=size, sha256=digest.hexdigest())
    except ValidationError as error:
        raise UserError(f"{uri}: {first_mistake(error).message}; rename it (letters, digits, '_', '.', '-')") from None
    return _IndexedTar(entry, index.rejected, [sample.video_id for sample in index.samples], counts)


def _check_rejected(uri: str, manifest: Manifest, limit: float) -> None:
    rejected, samples = manifest.rejected, manifest.videos + len(manifest.rejected)
    if len(rejected) > limit * samples:
        shown = list_some([f"{key} ({reason})" for key, reason in rejected.items()], LISTED, between="; ")
        raise UserError(
            f"{uri}: {len(rejected)} of {samples} samples cannot be used ({count_reasons(rejected)}), more than "
            f"--max-bad-fraction ({limit:g}): {shown}; "
            "mend them, or raise --max-bad-fraction, and the manifest lists them"
        )
