"""Frozen towers that turn tars of videos into tars of their features, as one of several actors or in the command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from glscl.data.clips import Sampling
from glscl.data.feature_writer import EncodedVideo, bad_video, write_features
from glscl.data.features import DTYPES, FeatureSampling
from glscl.data.gallery import Gallery, GalleryBatch
from glscl.data.limits import MAX_DECODE_S
from glscl.data.shards import ShardEntry, ShardSet, open_shard_set
from glscl.data.video import Decoder, FrameSampling
from glscl.errors import UserError
from glscl.models.caption_tokenizer import build_tokenizer
from glscl.models.options import ModelConfig
from glscl.models.towers import Towers
from glscl.options import Options
from glscl.system import storage
from glscl.system.ownership import Fence

VERSION = 1
"""Raised whenever the same towers and videos would give other files."""
_TEXTS = 256  # captions that go through the text tower at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Whose features are made of what, and how they are stored."""

    clip: str
    pretrained: str | None  # None: the weights that lie beside the architecture
    tokenizer: str | None = None
    trust_pickle: bool = False
    words: int = 32
    frames: int = 12
    rate: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_size: int = 16  # videos that go through the image tower at once
    decoder: Decoder = "pyav"
    max_decode_s: float = MAX_DECODE_S
    max_bad_fraction: float = 0.01  # share of the set's videos that may give no features

    @property
    def model(self) -> ModelConfig:
        """The same towers and words as a run's configuration has them."""
        return ModelConfig(clip=self.clip, pretrained=self.pretrained, tokenizer=self.tokenizer, max_words=self.words)


class EncodedTar(Options):
    """The note beside a finished tar, until the manifest is there."""

    job: str
    """Hash of everything that the tar depends on."""
    entry: ShardEntry
    problems: dict[str, str]
    """Videos without features, with the reason."""


@dataclass(frozen=True, slots=True)
class Job:
    """What every encoder is told."""

    source: str
    output: str
    encoding: Encoding
    pixels: bool  # whether the samples show something; else they hold frame features that others published
    towers: str  # fingerprint
    loaders: int
    fence: Fence | None


class Encoder:
    """Holds the towers and encodes tars; an actor, or an object of the command's own process."""

    def __init__(self, encoding: Encoding, use_gpu: bool) -> None:
        self.encoding = encoding
        self.device = torch.device("cuda" if use_gpu else "cpu")
        towers = Towers(
            encoding.clip, encoding.pretrained, trust_pickle=encoding.trust_pickle, tokenizer=encoding.tokenizer
        )
        self.towers = towers.to(self.device).eval()
        if encoding.words > towers.context_length:
            raise UserError(
                f"--max-words: {encoding.words} is more than the {towers.context_length} tokens that {encoding.clip} "
                f"can read"
            )
        self.tokenize = build_tokenizer(encoding.model)

    def padding(self) -> tuple[float, ...]:
        """The feature of a frame that is padding."""
        return tuple(self.towers.encode_padding().tolist())

    @torch.no_grad()
    def encode(self, job: Job, tars: range) -> list[EncodedTar]:
        """Encode consecutive tars; returns their notes."""
        shard_set = open_shard_set(job.source)
        starts = starts_of_tars(shard_set)
        sampling = self._sampling(job.pixels)
        first, last = starts[tars.start], starts[tars.stop]
        gallery = Gallery(shard_set, first, last, sampling, self.tokenize, self.encoding.batch_size)
        ready: dict[int, EncodedVideo] = {}
        notes: dict[int, EncodedTar] = {}
        for batch in gallery.batches(job.loaders):
            ready.update(self._encode(batch, shard_set))
            for tar in tars:  # loader processes work at several at once
                places = range(starts[tar], starts[tar + 1])
                if tar not in notes and all(place in ready for place in places):
                    notes[tar] = self._write(job, shard_set, tar, [ready.pop(place) for place in places])
        return [notes[tar] for tar in tars]

    def _sampling(self, pixels: bool) -> Sampling:
        """What is taken of the samples: pixels for the image tower, or features that others published."""
        how = self.encoding
        if pixels:
            return FrameSampling(how.frames, how.rate, self.towers.frame_size, how.decoder, how.max_decode_s)
        return FeatureSampling(how.frames, 0, self.towers.width)

    def _encode(self, batch: GalleryBatch, shard_set: ShardSet) -> Iterator[tuple[int, EncodedVideo]]:
        """The videos of a batch by their position in the set."""
        foreign = shard_set.manifest.is_foreign

        def key(place: int, own: str) -> str:
            return f"{place:08d}" if foreign else own

        for (place, sample), entry in zip(batch.bad, batch.quarantined, strict=True):
            yield place, bad_video(sample, key(place, sample.key), entry["reason"])
        if not batch.samples:
            return
        dtype = DTYPES[self.encoding.dtype]
        frames = self._encode_frames(batch).to("cpu", dtype)
        texts, masks = self._encode_texts(batch.text[0])
        cut = self._truncated(batch)
        replaced = {entry["key"]: int(entry["frames"].partition(" ")[0]) for entry in batch.repaired}
        for row, (place, sample) in enumerate(zip(batch.positions, batch.samples, strict=True)):
            own = batch.text_to_video == row
            real = frames[row, : int(batch.frame_mask[row].sum())]
            video = EncodedVideo(sample, key(place, sample.key), real, texts[own].to(dtype), masks[own])
            yield place, replace(video, replaced=replaced.get(sample.key, 0), truncated=cut[row])

    def _encode_frames(self, batch: GalleryBatch) -> Tensor:
        if batch.frames.is_floating_point():
            return batch.frames
        return self.towers.encode_frames(batch.frames.to(self.device), batch.frame_mask.to(self.device))

    def _encode_texts(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Sentence and token features (A, 1 + W, D) and the token mask (A, W), on the CPU."""
        texts, masks = [], []
        for ids in token_ids.split(_TEXTS):
            sentence, tokens, mask = self.towers.encode_text(ids.to(self.device))
            texts.append(torch.cat([sentence.unsqueeze(1), tokens], 1).cpu())
            masks.append(mask.bool().cpu())
        return torch.cat(texts), torch.cat(masks)

    def _truncated(self, batch: GalleryBatch) -> list[tuple[int, ...]]:
        """By video, the numbers of its captions that were cut; they are looked for only if there are any."""
        if not batch.truncated:
            return [()] * len(batch.samples)
        return [tuple(self.tokenize(sample.captions)[1].nonzero().flatten().tolist()) for sample in batch.samples]

    def _write(self, job: Job, shard_set: ShardSet, tar: int, videos: Sequence[EncodedVideo]) -> EncodedTar:
        source = shard_set.manifest.shards[tar]
        uri = storage.join(job.output, source.name)
        entry = write_features(videos, uri, shard_set.manifest.domain, job.fence)
        problems = {video.sample.video_id: video.problem for video in videos if video.problem}
        note = EncodedTar(job=hash_job(job, source), entry=entry, problems=problems)
        storage.write_json(note_address(job.output, source), note.model_dump())
        return note


def starts_of_tars(shard_set: ShardSet) -> list[int]:
    """Position of the first video of every tar, and the number of all videos."""
    starts = [0]
    for entry in shard_set.manifest.shards:
        starts.append(starts[-1] + entry.samples)
    return starts


def hash_job(job: Job, source: ShardEntry) -> str:
    """Hash of everything that a tar depends on."""
    encoding = asdict(job.encoding)
    for name in ("batch_size", "max_bad_fraction", "trust_pickle", "decoder", "max_decode_s"):
        del encoding[name]
    facts = [VERSION, job.towers, encoding, source.model_dump()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def note_address(output: str, source: ShardEntry) -> str:
    return storage.join(output, f"{source.name}.json")
