"""Write one tar of a feature shard set: the samples of a tar of videos, in their order, with features for videos."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor

from glscl.data.feature_facts import FeatureNote
from glscl.data.shards import ShardEntry
from glscl.data.tars import FEATURES, Sample
from glscl.system import storage
from glscl.system.ownership import Fence


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """A sample with what the towers gave for it."""

    sample: Sample
    key: str
    frames: Tensor  # (N, D)
    texts: Tensor  # (C, 1 + W, D)
    token_mask: Tensor  # (C, W) bool
    replaced: int = 0
    truncated: tuple[int, ...] = ()
    problem: str = ""  # why there are no features; the tensors are not looked at

    def members(self, domain: str) -> dict[str, bytes]:
        """The members of the tar, by extension."""
        sample, problem = self.sample, self.problem
        if not problem and not (self.frames.isfinite().all() and self.texts.isfinite().all()):
            problem = "features that are not finite"
        count = 0 if problem else len(self.frames)
        note = FeatureNote(problem=problem, frames=count, replaced=self.replaced, truncated=self.truncated)
        annotation = {
            "video_id": sample.video_id,
            "captions": sample.captions,
            "start": sample.start,
            "end": sample.end,
            "attributes": sample.attributes,
            "domain": domain,
            "features": note.model_dump(),
        }
        text = json.dumps(annotation, ensure_ascii=False, sort_keys=True)
        members = {
            "json": text.encode("utf-8", "replace"),
            "txt": sample.captions[0].encode("utf-8", "replace"),  # for stock WebDataset readers
        }
        if not problem:
            tensors = {"frames": self.frames, "texts": self.texts, "token_mask": self.token_mask}
            members[FEATURES] = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        return members


def bad_video(sample: Sample, key: str, reason: str) -> EncodedVideo:
    """A sample that keeps its place, and the reason why it has no features."""
    none = torch.zeros(0)
    return EncodedVideo(sample, key, none, none, none, problem=reason)


def write_features(videos: Iterable[EncodedVideo], uri: str, domain: str, fence: Fence | None) -> ShardEntry:
    """Write one tar and upload it; returns its entry of the manifest. The fence is checked before it is uploaded."""
    import webdataset

    samples = pairs = 0
    with tempfile.NamedTemporaryFile(prefix="glscl-shard-", suffix=".tar") as file:
        with webdataset.TarWriter(file, encoder=False, mtime=0, user="glscl", group="glscl") as tar:
            for video in videos:
                tar.write({"__key__": video.key, **video.members(domain)})
                samples, pairs = samples + 1, pairs + len(video.sample.captions)
        file.flush()
        with open(file.name, "rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        if fence is not None:
            fence.check()
        storage.upload(file.name, uri)
        size, name = os.path.getsize(file.name), uri.rsplit("/", 1)[1]
    return ShardEntry(name=name, samples=samples, pairs=pairs, bytes=size, sha256=digest)
