"""Write one tar of a shard set from videos and captions."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from glscl.data.limits import GOP, MAX_BYTES, MAX_ENCODE_S, MAX_PICTURES, VideoError
from glscl.data.records import Record
from glscl.data.shards import ShardEntry
from glscl.data.tars import ARRAY, picture_name
from glscl.system import storage
from glscl.system.ownership import Fence


@dataclass(frozen=True, slots=True)
class Encoding:
    """Whether videos are copied as they are, re-encoded once, or stored as pictures."""

    short_side: int = 0  # pixels of the re-encoded short side; 0 copies the files untouched
    rate: float = 3.0  # frames a second of the copy
    max_seconds: float = MAX_ENCODE_S  # CPU seconds that re-encoding one video may take
    gop: int = GOP  # frames from one keyframe of the copy to the next
    frames: float = 0.0  # pictures a second that are stored instead of a video; 0 stores a video
    quality: int = 90  # of these, 1 to 100
    features: bool = False  # what is stored are frame features that others published

    def __str__(self) -> str:
        if self.features:
            return "frame features as published"
        if self.frames:
            return f"short side {self.short_side}, {self.frames:g} pictures a second, quality {self.quality}"
        gop = f", keyframe every {self.gop}" if self.gop != GOP else ""
        return f"short side {self.short_side}, {self.rate:g} fps{gop}" if self.short_side else "as is"


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One tar to write."""

    items: list[tuple[int, Record, str]]  # number, record and file of each sample
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


def _read_sample(path: str, record: Record, encoding: Encoding) -> tuple[dict[str, bytes], dict[str, object], str]:
    """What `_encode` returns, of a video file or of published features."""
    if not encoding.features:
        return _encode(_read_video(path), record, encoding)
    from glscl.data.feature_files import read_published  # with torch, seconds to import

    return {ARRAY: read_published(path)}, {}, ""


def _encode(data: bytes, record: Record, encoding: Encoding) -> tuple[dict[str, bytes], dict[str, object], str]:
    """The members that show a video, what its annotation says of them, and ``3 of 250 pictures`` of it if repaired."""
    if not encoding.short_side:
        return {"mp4": data}, {}, ""
    from glscl.data.video import FrameSampling, make_copy, make_pictures  # seconds to import

    if not encoding.frames:
        copy = make_copy(data, encoding.short_side, encoding.rate, encoding.max_seconds, encoding.gop)
        return {"mp4": copy.data}, {}, f"{copy.replaced} of {copy.pictures} pictures" if copy.replaced else ""
    sampling = FrameSampling(MAX_PICTURES, encoding.frames, encoding.short_side, max_seconds=encoding.max_seconds)
    pictures = make_pictures(data, sampling, encoding.quality, record.start, record.end)
    members = {picture_name(number): jpeg for number, jpeg in enumerate(pictures.jpegs)}
    problem = f"{pictures.replaced} of {len(members)} pictures" if pictures.replaced else ""
    return members, {"frames": pictures.times.model_dump()}, problem


def write_shard(job: ShardJob) -> WrittenShard:
    """Write one tar and upload it, if any of its videos is usable."""
    import webdataset  # with torch, seconds to import

    rejected: dict[str, str] = {}
    repaired: dict[str, str] = {}
    pairs: list[int] = []
    with tempfile.NamedTemporaryFile(prefix="glscl-shard-", suffix=".tar") as file:
        with webdataset.TarWriter(file, encoder=False, mtime=0, user="glscl", group="glscl") as tar:
            for number, record, path in job.items:
                try:
                    members, facts, problem = _read_sample(path, record, job.encoding)
                except VideoError as error:
                    rejected[record.video_id] = str(error)
                    continue
                if problem:
                    repaired[record.video_id] = problem
                annotation = asdict(record) | {"domain": job.domain} | facts
                members["json"] = json.dumps(annotation, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")
                members["txt"] = record.captions[0].encode("utf-8", "replace")  # for stock WebDataset readers
                tar.write({"__key__": f"{number:08d}", **members})
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
