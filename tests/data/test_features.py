"""Shards of features: the order, substitutes and quarantine of the videos, what others published, and bad input."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load, save, save_file
from torch import Tensor

from glscl.data.build import BuildOptions
from glscl.data.build import Encoding as Storing
from glscl.data.clips import Sampling
from glscl.data.feature_addresses import locate_features
from glscl.data.feature_files import read_published
from glscl.data.features import FeatureSampling
from glscl.data.feed import CudaCopies, Feed
from glscl.data.foreign import index_shards
from glscl.data.gallery import Gallery, GalleryBatch
from glscl.data.limits import VideoError
from glscl.data.prepare import Source, prepare
from glscl.data.shards import Shard, ShardSet, open_shard_set
from glscl.data.stream import Batch, PairStream, make_loader
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.evaluation.encode import encode_shards
from glscl.evaluation.encoder import Encoding
from glscl.models.tokenizer import tokenize
from glscl.system import storage
from glscl.system.nodes import Share
from tests.data.test_feed import CPU, FakeCuda, LateCopies
from tests.data.test_pictures import make_tar, rewritten
from tests.data.test_stream import joined, kept, plan_of, same
from tests.towers import write_towers
from tests.training.ranks import FRAMES, SIZE, WORDS

MakeShards = Callable[..., ShardSet]
HERE = Share(1, False, 1.0, 0)
TOKENS = partial(tokenize, max_words=WORDS)
CAPTIONS = (1, 2, 3, 2, 1, 2, 1, 4)


@pytest.fixture
def encoding(tmp_path: Path) -> Encoding:
    clip, weights = write_towers(tmp_path / "towers")
    return Encoding(
        clip=clip, pretrained=weights, words=WORDS, frames=FRAMES, rate=2.0, dtype="float32", max_bad_fraction=1.0
    )


@pytest.fixture
def videos(make_shards: MakeShards, make_video: Callable[..., bytes]) -> ShardSet:
    short = {n: make_video((0.0, 0.4), seed=n) for n in (3, 5)}
    return make_shards(captions=CAPTIONS, per_shard=2, bad=short | {2: b"no video"})


@pytest.fixture
def features(videos: ShardSet, encoding: Encoding, tmp_path: Path) -> ShardSet:
    encode_shards(videos.uri, str(tmp_path / "features"), encoding, HERE)
    return open_shard_set(str(tmp_path / "features"))


def sampling_of(shard_set: ShardSet) -> Sampling:
    facts = shard_set.manifest.features
    return FeatureSampling.of([facts]) if facts else FrameSampling(FRAMES, 2.0, SIZE)


def run(shard_set: ShardSet, steps: int, ranks: int = 1, workers: int = 0, start: int = 0) -> list[Batch]:
    plan = plan_of([shard_set], global_batch=8, virtual_streams=4)
    streams = [PairStream([shard_set], plan, sampling_of(shard_set), TOKENS, r, ranks, start) for r in range(ranks)]
    parts = [[kept(batch) for batch in islice(make_loader(one, workers, 2), steps)] for one in streams]
    return [joined(batch) for batch in zip(*parts, strict=True)]


def gallery(shard_set: ShardSet) -> GalleryBatch:
    (batch,) = Gallery(shard_set, 0, shard_set.manifest.videos, sampling_of(shard_set), TOKENS, 99).batches(0)
    return batch


def test_the_pairs_of_the_videos_in_every_world_and_after_a_resume(videos: ShardSet, features: ShardSet) -> None:
    pixels, reference = run(videos, 6), run(features, 6)
    for one, other in zip(pixels, reference, strict=True):
        assert other.names == one.names
        assert torch.equal(other.video_ids, one.video_ids)
        assert torch.equal(other.frame_mask, one.frame_mask)
        assert [e["video_id"] for e in other.quarantined] == [e["video_id"] for e in one.quarantined]
    assert [entry["reason"] for batch in reference for entry in batch.quarantined] == [
        entry["reason"] for batch in pixels for entry in batch.quarantined
    ]
    assert any(batch.quarantined for batch in reference)
    for ranks, workers in ((2, 0), (1, 2), (4, 1)):
        assert all(map(same, run(features, 3, ranks, workers), reference)), (ranks, workers)
        assert all(map(same, run(features, 3, ranks, workers, start=3), reference[3:])), (ranks, workers)


def test_a_batch_holds_the_features_of_its_captions(features: ShardSet) -> None:
    whole = gallery(features)
    texts, mask = whole.text
    rows = {f"toy/{sample.video_id}": row for row, sample in enumerate(whole.samples)}
    padding = torch.tensor(features.manifest.features.padding)  # type: ignore[union-attr]
    assert padding.shape == (16,)
    for batch in run(features, 3):
        for row, name in enumerate(batch.names):
            video, _, caption = name.partition("#")
            text = int((whole.text_to_video == rows[video]).nonzero()[int(caption)])
            assert torch.equal(batch.text[0][row], texts[text])
            assert torch.equal(batch.text[1][row], mask[text])
            assert torch.equal(batch.frames[row], whole.frames[rows[video]])
            assert (batch.frames[row][~batch.frame_mask[row]] == padding).all()
    assert not whole.frame_mask.all()


def test_batches_on_a_gpu_are_those_of_the_stream(features: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both pages are pinned where they lie; the copies are of the batch that they are asked for."""
    plan = plan_of([features], global_batch=8, virtual_streams=4)
    late = Feed(PairStream([features], plan, sampling_of(features), TOKENS, 0, 1), 2, 1, CPU, LateCopies())
    assert all(map(same, [next(late) for _ in range(4)], run(features, 4)))
    cuda = FakeCuda(monkeypatch)
    stream = PairStream([features], plan, sampling_of(features), TOKENS, 0, 1)
    feed = Feed(stream, 0, 1, CPU, CudaCopies(CPU))
    for batch in run(features, 2):
        assert same(next(feed), batch)
    pages = [page.untyped_storage() for page in stream.pages[0]]
    pins = [entry for entry in cuda.log if isinstance(entry, tuple)]
    assert pins == [("pin", page.data_ptr(), page.nbytes()) for page in pages]


def test_stored_as_bf16_and_read_beside_fp32(
    videos: ShardSet, features: ShardSet, encoding: Encoding, tmp_path: Path
) -> None:
    encode_shards(videos.uri, str(tmp_path / "half"), replace(encoding, dtype="bfloat16"), HERE)
    half = open_shard_set(str(tmp_path / "half"))
    both = [one.manifest.features for one in (half, features) if one.manifest.features]
    assert FeatureSampling.of(both[:1]).dtype == torch.bfloat16
    assert FeatureSampling.of(both).dtype == torch.float32
    assert torch.equal(gallery(half).frames, gallery(features).frames.bfloat16())
    stream = PairStream(
        [half], plan_of([half], global_batch=8, virtual_streams=4), FeatureSampling.of(both), TOKENS, 0, 1
    )
    assert next(make_loader(stream, 0, 1)).frames.dtype == torch.float32


# ------------------------------------------------------------------------------------------------ what others published


def published(features: ShardSet) -> dict[str, Tensor]:
    """Frame features by video, as others publish them: the towers' own."""
    whole = gallery(features)
    rows = zip(whole.samples, whole.frames, whole.frame_mask, strict=True)
    return {sample.video_id: frames[mask] for sample, frames, mask in rows}


def npy(array: Any) -> bytes:
    data = io.BytesIO()
    np.save(data, np.asarray(array))
    return data.getvalue()


def write_folder(arrays: dict[str, Tensor], folder: Path) -> str:
    for name, array in arrays.items():
        (folder / "deep").mkdir(parents=True, exist_ok=True)
        (folder / "deep" / f"{name}.npy").write_bytes(npy(array))
    return str(folder)


def write_hdf5(arrays: dict[str, Tensor], folder: Path) -> str:
    folder.mkdir()
    with h5py.File(folder / "clip.h5", "w") as file:
        for number, (name, array) in enumerate(arrays.items()):
            file[f"{name}/features" if number % 2 else name] = array.numpy()
    return str(folder / "clip.h5")


def write_safetensors(arrays: dict[str, Tensor], folder: Path) -> str:
    folder.mkdir()
    save_file(arrays, folder / "clip.safetensors")
    return str(folder / "clip.safetensors")


def encoded(source: str, output: Path, encoding: Encoding) -> ShardSet:
    encode_shards(source, str(output), encoding, HERE)
    return open_shard_set(str(output))


def as_ours(found: ShardSet, features: ShardSet) -> None:
    """The same features for the same videos and captions, whatever order they are in."""

    def by_video(shard_set: ShardSet) -> dict[str, tuple[Tensor, ...]]:
        whole = gallery(shard_set)
        return {
            sample.video_id: (
                whole.frames[row],
                whole.frame_mask[row],
                *(tensor[whole.text_to_video == row] for tensor in whole.text),
            )
            for row, sample in enumerate(whole.samples)
        }

    theirs, ours = by_video(found), by_video(features)
    assert theirs.keys() == ours.keys()
    for name, tensors in theirs.items():
        for one, other in zip(tensors, ours[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("write", [write_folder, write_hdf5, write_safetensors])
def test_published_by_video(features: ShardSet, encoding: Encoding, tmp_path: Path, write: Callable[..., str]) -> None:
    rows = [
        {"video_id": sample.video_id, "captions": sample.captions}
        for index in range(len(features.manifest.shards))
        for sample in Shard(features, index).samples
        if sample.video_id != "v002"
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = write(published(features), tmp_path / "theirs")
    source = Source(
        benchmark="jsonl", annotations=str(tmp_path), split="train", videos="", domain="toy", features=where
    )
    how = BuildOptions(samples_per_shard=3, encoding=Storing(features=True), workers=0)
    prepare(source, str(tmp_path / "arrays"), how)
    with pytest.raises(UserError, match="holds features of frames without those of captions; run `glscl encode"):
        run(open_shard_set(str(tmp_path / "arrays")), 1)
    found = encoded(str(tmp_path / "arrays"), tmp_path / "found", encoding)
    assert found.manifest.features.rate is None  # type: ignore[union-attr]
    as_ours(found, features)


def test_tars_of_clip_video_encode(features: ShardSet, encoding: Encoding, tmp_path: Path) -> None:
    """Its writer's layout: arrays in fp16 or fp32, one caption in .txt, the rest in .json."""
    captions = {s.video_id: s.captions for n in range(4) for s in Shard(features, n).samples}
    arrays = published(features)
    folder = tmp_path / "theirs"
    folder.mkdir()
    for number, names in enumerate((sorted(arrays)[:4], sorted(arrays)[4:])):
        members: dict[str, bytes] = {}
        for name in names:
            members[f"{name}.npy"] = npy(arrays[name])
            members[f"{name}.txt"] = captions[name][0].encode()
            members[f"{name}.json"] = json.dumps({"videoid": name, "duration": 2.0}).encode()
        (folder / f"{number:05d}_clip_embeddings.tar").write_bytes(make_tar(members))
    index_shards(str(folder), domain="toy")
    found = encoded(str(folder), tmp_path / "found", encoding)
    theirs, ours = gallery(found), gallery(features)
    firsts = [int((ours.text_to_video == row).nonzero()[0]) for row in range(len(ours.samples))]
    order = {sample.video_id: row for row, sample in enumerate(ours.samples)}
    for row, sample in enumerate(theirs.samples):
        one = order[sample.video_id]
        assert torch.equal(theirs.frames[row][theirs.frame_mask[row]], ours.frames[one][ours.frame_mask[one]])
        torch.testing.assert_close(theirs.text[0][row], ours.text[0][firsts[one]], rtol=1e-5, atol=1e-6)
    assert found.manifest.reader == "features"


def test_more_frames_than_are_kept_are_taken_in_the_middle_of_equal_parts(encoding: Encoding, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    numbers = np.arange(10, dtype=np.float16)[:, None].repeat(16, 1)
    samples = {"0.npy": npy(numbers), "0.txt": b"many", "1.npy": npy(numbers[4]), "1.txt": b"one"}
    (folder / "a.tar").write_bytes(make_tar(samples))
    index_shards(str(folder))
    whole = gallery(encoded(str(folder), tmp_path / "found", encoding))
    assert whole.frames[0, :, 0].tolist() == [1, 5, 8]
    assert whole.frames[1, :1, 0].tolist() == [4]
    assert whole.frame_mask.sum(1).tolist() == [3, 1]


# ----------------------------------------------------------------------------------------------------------- bad input


def changed(data: bytes, **tensors: Tensor | None) -> bytes:
    """A file of features with tensors replaced; None leaves one out."""
    return save({name: tensor for name, tensor in (load(data) | tensors).items() if tensor is not None})


def not_finite(data: bytes) -> bytes:
    frames = load(data)["frames"].clone()
    frames[-1, 3] = float("nan")
    return changed(data, frames=frames)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "NaN": (not_finite, "features that are not finite"),
    "cut short": (lambda data: data[:-5], "features cut short"),
    "cut in the frames": (lambda data: data[:400], "features cut short"),
    "no header": (lambda data: b"\0" * len(data), "no safetensors file of features"),
    "endless header": (lambda data: b"\xff" * len(data), "no safetensors file of features"),
    "nothing": (lambda data: b"", "features cut short"),
    "another type": (
        lambda data: changed(data, frames=load(data)["frames"].half()),
        r"features of another type (frames F16 where F32 is expected)",
    ),
    "bf16 among fp32": (
        lambda data: changed(data, texts=load(data)["texts"].bfloat16()),
        "features of another type (texts BF16 where F32 is expected)",
    ),
    "another width": (
        lambda data: changed(data, frames=load(data)["frames"][:, :8].contiguous()),
        "features of another shape (frames [3, 8] where [3, 16] is expected)",
    ),
    "fewer frames": (
        lambda data: changed(data, frames=load(data)["frames"][:2].contiguous()),
        "features of another shape (frames [2, 16] where [3, 16] is expected)",
    ),
    "fewer captions": (
        lambda data: changed(data, texts=load(data)["texts"][:0].contiguous()),
        "features of another shape (texts [0, 9, 16] where [1, 9, 16] is expected)",
    ),
    "no mask": (lambda data: changed(data, token_mask=None), "no safetensors file of features"),
}


def test_damaged_features_are_quarantined(features: ShardSet) -> None:
    """Each kind of damage to one video: the reason, in an evaluation and in training, where another stands for it."""
    tar = Path(features.shard_uri(0))
    sound, manifest = tar.read_bytes(), Path(features.uri, "manifest.json").read_bytes()
    victim = Shard(features, 0).samples[0]
    for name, (damage, reason) in DAMAGES.items():
        tar.write_bytes(sound)
        Path(features.uri, "manifest.json").write_bytes(manifest)
        member = f"{victim.key}.safetensors"
        damaged = rewritten(features, lambda n, data, m=member, d=damage: d(data) if n == m else data)
        reasons = {entry["video_id"]: entry["reason"] for entry in gallery(damaged).quarantined}
        assert reasons.pop(victim.video_id) == reason, name
        assert list(reasons) == ["v002"]
        batches = run(damaged, 4)
        listed = {entry["video_id"]: entry["reason"] for batch in batches for entry in batch.quarantined}
        assert listed[victim.video_id] == reason, name
        assert all(batch.frames.isfinite().all() and batch.text[0].isfinite().all() for batch in batches)
        names = {name.split("#")[0] for batch in batches for name in batch.names}
        assert f"toy/{victim.video_id}" not in names


def test_arrays_that_are_none(encoding: Encoding, tmp_path: Path) -> None:
    """Each is quarantined with its reason; what is in a header is never believed."""
    sound = npy(np.ones((2, 16), np.float32))
    files = {
        "sound": (sound, ""),
        "integers": (npy(np.ones((2, 16), np.int64)), "an array of int64, not of floating-point numbers"),
        "pickle": (npy(np.array([{"a": 1}], object)), "no .npy array (ValueError)"),
        "cube": (npy(np.ones((2, 4, 16))), "an array of shape [2, 4, 16] where frames x width is expected"),
        "empty": (npy(np.ones((0, 16))), "an array of shape [0, 16] where frames x width is expected"),
        "wide": (npy(np.ones((2, 8))), "features of width 8 where the towers' is 16"),
        "short": (sound[:-4], "no .npy array (ValueError)"),
        "huge": (sound.replace(b"(2, 16)", b"(2000000000, 1600)"), "no .npy array (ValueError)"),
        "text": (b"features", "no .npy array (ValueError)"),
        "nothing": (b"", "no .npy array (ValueError)"),
        "infinite": (npy(np.full((2, 16), np.inf)), "features that are not finite"),
    }
    folder = tmp_path / "theirs"
    folder.mkdir()
    members = {name: data for key, (array, _) in files.items() for name, data in both(key, array).items()}
    (folder / "a.tar").write_bytes(make_tar(members))
    index_shards(str(folder))
    found = gallery(encoded(str(folder), tmp_path / "found", encoding))
    assert [sample.video_id for sample in found.samples] == ["sound"]
    reasons = {entry["video_id"]: entry["reason"] for entry in found.quarantined}
    assert reasons == {key: reason for key, (_, reason) in files.items() if reason}


def both(key: str, array: bytes) -> dict[str, bytes]:
    return {f"{key}.npy": array, f"{key}.txt": key.encode()}


def test_an_hdf5_file_that_names_others(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["found"] = np.ones((2, 16), np.float32)
    raw = tmp_path / "secret.bin"
    raw.write_bytes(b"\x3f" * 128)
    where = tmp_path / "features.h5"
    with h5py.File(where, "w") as file:
        file["sound"] = np.ones((2, 16), np.float32)
        file["soft"] = h5py.SoftLink("/sound")
        file["external"] = h5py.ExternalLink(str(secret), "/found")
        file.create_group("inner")["external"] = h5py.ExternalLink(str(secret), "/found")
        file.create_dataset("raw", (2, 16), "f4", external=[(str(raw), 0, 128)])
        layout = h5py.VirtualLayout((2, 16), "f4")
        layout[:] = h5py.VirtualSource(str(secret), "found", (2, 16))
        file.create_virtual_dataset("virtual", layout)
        file.create_group("two").update(one=np.ones(16), other=np.ones(16))
    ids = ["sound", "soft", "external", "inner", "raw", "virtual", "two", "missing.mp4"]
    located, missing = locate_features(ids, str(where))
    assert missing == ["missing.mp4"]
    reasons = {}
    for name, address in located.items():
        try:
            assert len(read_published(address)) == 128 + 128
        except VideoError as error:
            reasons[name] = str(error)
    link, other = "a link where an array is expected", "no array in the file itself"
    assert reasons == {
        **dict.fromkeys(("soft", "external", "inner"), link),
        **dict.fromkeys(("raw", "virtual"), other),
        "two": "2 arrays where one is expected",
    }


def test_folders_and_files_that_cannot_be_read(tmp_path: Path, bucket: str) -> None:
    def refused(where: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            locate_features(["v"], where)

    refused(str(tmp_path / "none"), "no such folder; --features names a folder of .npy files")
    refused(str(tmp_path / "none.h5"), "no such file; --features names")
    refused(f"{bucket}/features.h5", "a file of features is read where it lies: copy it")
    for name in ("torn.h5", "torn.safetensors"):
        (tmp_path / name).write_bytes(b"torn")
        refused(str(tmp_path / name), r"torn\..*: not a readable (HDF5|safetensors) file")
    for folder in ("one", "two"):
        (tmp_path / "twice" / folder).mkdir(parents=True)
        (tmp_path / "twice" / folder / "v.npy").write_bytes(b"")
    refused(str(tmp_path / "twice"), r"several arrays of one name \(one/v.npy, two/v.npy\)")
    storage.write_bytes(f"{bucket}/arrays/deep/v.npy", npy(np.ones(16)))
    located, _ = locate_features(["v.mp4"], f"{bucket}/arrays")
    assert located == {"v.mp4": f"{bucket}/arrays/deep/v.npy"}
    assert read_published(located["v.mp4"]) == npy(np.ones((1, 16), np.float32))
