"""Write one tar of a shard set from videos and captions."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from glscl.data.limits import MAX_BYTES, MAX_ENCODE_S, VideoError
from glscl.data.records import Record
from glscl.data.shards import ShardEntry
from glscl.system import storage
from glscl.system.ownership import Fence


@dataclass(frozen=True, slots=True)
class Encoding:
    """Whether videos are copied as they are or re-encoded once."""

    short_side: int = 0  # pixels of the re-encoded short side; 0 copies the files untouched
    rate: float = 3.0  # frames a second of the copy
    max_seconds: float = MAX_ENCODE_S  # CPU seconds that re-encoding one video may take

    def __str__(self) -> str:
        return f"short side {self.short_side}, {self.rate:g} fps" if self.short_side else "as is"


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One tar to write."""

    items: list[tuple[int, Record, str]]  # number, record and video file of each sample
    uri: str
    domain: str
    encoding: Encoding
    fence: Fence | None  # checked before the tar is uploaded


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """What became of one job."""

    entry: ShardEntry | None  # of the manifest; None if no video was readable
    rejected: dict[str, str]  # videos that could not be used, with the reason
    repaired: dict[str, str]  # videos of which some pictures do not decode, with ``3 of 250 pictures``

    def kept(self, job: ShardJob) -> Iterator[Record]:
        """Records of the job that are in the tar, in its order."""
        return (record for _, record, _ in job.items if record.video_id not in self.rejected)


def _read_video(path: str) -> bytes:
    try:
        if storage.size(path) > MAX_BYTES:
            raise VideoError(f"more than {MAX_BYTES >> 30} GiB")
        data = storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise VideoError(f"unreadable file ({type(error).__name__})") from None
    if not data:
        raise VideoError("empty file")
    return data


def write_shard(job: ShardJob) -> WrittenShard:
    """Write one tar and upload it, if any of its videos is usable."""
    import webdataset  # with torch and what decodes, seconds to import

    from glscl.data.video import make_copy

    encoding = job.encoding
    rejected: dict[str, str] = {}
    repaired: dict[str, str] = {}
    pairs: list[int] = []
    with tempfile.NamedTemporaryFile(prefix="glscl-shard-", suffix=".tar") as file:
        with webdataset.TarWriter(file, encoder=False, mtime=0, user="glscl", group="glscl") as tar:
            for number, record, path in job.items:
                try:
                    data = _read_video(path)
                    if encoding.short_side:
                        copy = make_copy(data, encoding.short_side, encoding.rate, encoding.max_seconds)
                        data = copy.data
                        if copy.replaced:
                            repaired[record.video_id] = f"{copy.replaced} of {copy.pictures} pictures"
                except VideoError as error:
                    rejected[record.video_id] = str(error)
                    continue
                annotation = asdict(record) | {"domain": job.domain}
                tar.write(
                    {
                        "__key__": f"{number:08d}",
                        "json": json.dumps(annotation, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace"),
                        "mp4": data,
                        "txt": record.captions[0].encode("utf-8", "replace"),  # for stock WebDataset readers
                    }
                )
                pairs.append(len(record.captions))
        file.flush()
        if not pairs:
            return WrittenShard(None, rejected, repaired)
        with open(file.name, "rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        name, size = job.uri.rsplit("/", 1)[1], os.path.getsize(file.name)
        entry = ShardEntry(name=name, samples=len(pairs), pairs=sum(pairs), bytes=size, sha256=digest)
        if job.fence is not None:
            job.fence.check()
        storage.upload(file.name, job.uri)
    return WrittenShard(entry, rejected, repaired)
