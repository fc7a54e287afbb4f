"""The packaged configurations: complete, sound in their arithmetic, and true to what they say about their data."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import open_clip
import pytest

from glscl.cli import main
from glscl.config import load_config, to_yaml, validate
from glscl.data.benchmarks import benchmark, read
from glscl.data.plan import StreamPlan
from glscl.data.shards import Manifest, ShardEntry
from glscl.data.toy import toy_capacity
from glscl.errors import UserError
from glscl.losses import applicable_terms
from glscl.models.retriever import Retriever
from glscl.packaged import preset_names, preset_text

PUBLISHED = ("activitynet", "didemo", "lsmdc", "msrvtt", "msvd", "vatex")
CPU = ("quickstart", "tiny")
# (videos, pairs) of the training split
TRAIN = {
    "activitynet": (10_009, 10_009),
    "didemo": (8_392, 8_392),
    "lsmdc": (101_000, 101_000),
    "msrvtt": (9_000, 180_000),
    "msvd": (1_200, 48_774),
    "quickstart": (400, 1_600),
    "tiny": (400, 1_600),
    "vatex": (25_991, 259_910),
}
BUILD = re.compile(r"^ *# +(glscl shards build .*)$", re.MULTILINE)


def _options(command: str) -> dict[str, str]:
    words = command.split()[3:]
    assert all(word.startswith("--") for word in words[::2]), command
    return dict(zip(words[::2], words[1::2], strict=True))


def _builds(name: str) -> dict[str, dict[str, str]]:
    """The options of every ``glscl shards build`` that a preset's comments give, by what it writes."""
    return {options["--output"]: options for options in map(_options, BUILD.findall(preset_text(name)))}


def _manifest(name: str, per_shard: int) -> Manifest:
    videos, pairs = TRAIN[name]
    count = -(-videos // per_shard)
    cuts = [(videos * i // count, pairs * i // count) for i in range(count + 1)]
    shards = tuple(
        ShardEntry(name=f"shard-{i:06d}.tar", samples=b[0] - a[0], pairs=b[1] - a[1], bytes=1, sha256="")
        for i, (a, b) in enumerate(pairwise(cuts))
    )
    return Manifest(
        domain=name,
        split="train",
        reader=name,
        reader_version=1,
        sources=(),
        encoding="as is",
        videos=videos,
        pairs=pairs,
        shards=shards,
    )


def test_presets_are_these() -> None:
    assert preset_names() == sorted(PUBLISHED + CPU)


@pytest.mark.parametrize("name", PUBLISHED + CPU)
def test_preset_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    path = tmp_path / "copy.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(str(path)) == config


@pytest.mark.parametrize("name", PUBLISHED + CPU)
def test_preset_starts_with_its_description(name: str) -> None:
    first = preset_text(name).splitlines()[0]
    assert re.fullmatch(r"# \S.{20,110}", first)


@pytest.mark.parametrize("name", PUBLISHED + CPU)
def test_batches_work_out_on_the_real_sizes(name: str) -> None:
    config = load_config(name)
    training = config.training
    builds = _builds(name)
    per_shard = int(builds.get(config.data.train[0], {}).get("--samples-per-shard", 100 if name in PUBLISHED else 25))
    plan = StreamPlan(
        [_manifest(name, per_shard)],
        config.data.weights,
        training.global_batch,
        config.data.virtual_streams,
        config.data.captions,
        config.seed,
    )
    plan.check_world(training.most_workers, config.data.loaders)
    assert training.global_batch % (training.most_workers * training.accumulate) == 0
    assert training.cpus > config.data.loaders or not training.on_gpu
    said = re.search(r"([\d,]+) steps\s+an\s+epoch", preset_text(name).replace("\n#", ""))
    if said and name != "lsmdc":
        assert int(said[1].replace(",", "")) == plan.steps_per_epoch


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_exist_in_open_clip(name: str) -> None:
    model = load_config(name).model
    assert model.pretrained is not None
    assert (model.clip, model.pretrained) in open_clip.list_pretrained()


@pytest.mark.parametrize("name", [*PUBLISHED, "tiny"])
def test_every_shard_set_has_its_build_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_config(name).data
    builds = _builds(name)
    assert {*data.train, *data.validation, *data.test} <= builds.keys()
    assert main(["shards", "build", "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    for options in builds.values():
        assert options.keys() <= known
        splits = benchmark(options["--benchmark"]).splits
        assert options["--split"] in splits or not splits


@pytest.mark.parametrize("name", PUBLISHED + CPU)
def test_no_test_split_is_used_for_choosing(name: str) -> None:
    data = load_config(name).data
    assert not {*data.train, *data.validation} & {*data.test}
    assert not [uri for uri in data.validation if "test" in uri or uri.endswith(("val_1", "val_2"))]
    assert data.test


@pytest.mark.parametrize("name", CPU)
def test_cpu_presets_build_and_have_their_toy_videos(name: str) -> None:
    config = load_config(name)
    model = Retriever(config.model)
    assert applicable_terms(config.loss, model.head)[0] == ("contrastive", "inter_consistency", "intra_diversity")
    for domain, split, count in re.findall(r"glscl toy --domain (\w+) --split (\w+) --count (\d+)", preset_text(name)):
        assert int(count) <= toy_capacity(domain, split)


@pytest.mark.parametrize(
    ("name", "folder", "parts"),
    [
        ("msvd", "MSVD", ("train", "val", "test")),
        ("didemo", "DiDeMo", ("val", "test")),
        ("activitynet", "ActivityNet", ("train", "val_1")),
        ("msrvtt", "MSRVTT", ("train_9k", "test_1k_a")),
        ("msrvtt", "MSRVTT", ("train_full", "val_full", "test_1k_a")),
    ],
)
def test_splits_of_a_preset_share_no_video(shared: Path, name: str, folder: str, parts: tuple[str, ...]) -> None:
    videos = [{record.video_id for record in _read(shared, name, folder, part)} for part in parts]
    assert sum(map(len, videos)) == len(set().union(*videos))


def test_training_sizes_are_those_of_the_annotation_files(shared: Path) -> None:
    for name, folder, part in (
        ("msvd", "MSVD", "train"),
        ("activitynet", "ActivityNet", "train"),
        ("msrvtt", "MSRVTT", "train_9k"),
    ):
        records = _read(shared, name, folder, part)
        assert (len(records), sum(len(record.captions) for record in records)) == TRAIN[name]


def test_msrvtt_has_no_official_held_out_part_beside_9k(shared: Path) -> None:
    """Why that preset's validation is empty."""
    held_out = {record.video_id for record in _read(shared, "msrvtt", "MSRVTT", "val_full")}
    assert held_out <= {record.video_id for record in _read(shared, "msrvtt", "MSRVTT", "train_9k")}
    assert held_out <= {record.video_id for record in _read(shared, "msrvtt", "MSRVTT", "train_7k")}
    assert load_config("msrvtt").data.validation == ()


def _read(shared: Path, name: str, folder: str, part: str) -> list:  # type: ignore[type-arg]
    return read(name, str(shared / "annotations" / folder), part).records


def test_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'msrvt', did you mean 'msrvtt'"):
        preset_text("msrvt")


def test_a_preset_with_a_misspelt_key_would_be_found() -> None:
    with pytest.raises(UserError, match=r"unknown key 'model.heads.glscl.quries', did you mean 'model.heads.glscl.que"):
        validate({"model": {"heads": {"glscl": {"quries": 8}}}}, "here")
