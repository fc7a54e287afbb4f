"""The packaged configurations: complete, sound in their arithmetic, and true to what they say about their data."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import open_clip
import pytest

from glscl.cli import main
from glscl.data.benchmarks import find_benchmark, read
from glscl.data.plan import StreamPlan
from glscl.data.shards import Manifest, ShardEntry
from glscl.data.toy import toy_capacity
from glscl.errors import UserError
from glscl.losses import applicable_terms, term_names
from glscl.models.retriever import Retriever
from glscl.options.mistakes import keys_of
from glscl.options.packaged import preset_names, preset_text
from glscl.training.config import RunConfig, load_config, run_config, to_yaml, validate
from glscl.training.driver.preflight import note_on_loss

PUBLISHED = ("activitynet", "didemo", "lsmdc", "msrvtt", "msvd", "vatex")
CPU = ("quickstart", "tiny")
# (videos, pairs) of the training split
TRAIN = {
    "activitynet": (10_009, 10_009),
    "didemo": (8_392, 8_392),
    "lsmdc": (101_000, 101_000),
    "msrvtt": (9_000, 180_000),
    "msvd": (1_200, 48_774),
    "quickstart": (800, 3_200),
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


THEIRS = "rand-m7-n4-mstd0.5-inc1"
# What the authors' scripts set (zchoi/GLSCL @06979f8, train_*.sh; where one sets nothing, main_retrieval.py's default).
# None: nothing was published for this data set, and the preset says whose number it takes.
COMMON: dict[str, Any] = {
    "seed": 42,
    "model.clip": "ViT-B-32-quickgelu",
    "model.pretrained": "openai",
    "model.frame_context": "transformer",  # agg_module seqTransf
    "model.context_layers": 4,
    "model.head": "glscl",
    "model.heads.glscl.layers": 3,
    "model.heads.glscl.attention_heads": 8,
    "model.heads.glscl.feedforward": 2048,  # nn.TransformerDecoderLayer's defaults
    "model.heads.glscl.dropout": 0.1,
    "model.heads.glscl.local_weight": 0.5,  # loss2_weight
    "model.heads.glscl.mask_padding": False,
    "model.heads.glscl.use_global": True,
    "model.heads.glscl.use_local": True,
    "loss.contrastive.weight": 1.0,
    "loss.inter_consistency.weight": 1.0,
    "loss.inter_consistency.form": "official",
    "loss.inter_consistency.target": 0.75,
    "loss.intra_diversity.form": "official",
    "loss.intra_diversity.margin": 0.1,
    "training.accumulate": 1,
    "training.max_steps": None,
    "training.lr_head": 1e-4,
    "training.lr_towers": 1e-4 * 1e-3,  # lr x coef_lr
    "training.weight_decay": 0.2,
    "training.betas": (0.9, 0.98),
    "training.eps": 1e-6,
    "training.warmup": 0.1,
    "training.clip_grad": 1.0,
    "data.captions": "all",
    "data.sample_fps": 1.0,
}
COLUMNS = (
    *("training.epochs", "training.global_batch", "training.num_workers", "model.max_words", "model.max_frames"),
    *("model.heads.glscl.queries", "model.heads.glscl.tau", "loss.inter_consistency.margin_weight"),
    *("loss.intra_diversity.weight", "data.augment"),
)
TABLE: dict[str, tuple[Any, ...]] = {
    # epochs, batch, GPUs, words, frames, K, tau, beta, alpha, augmentation
    "msrvtt": (5, 128, 4, 32, 12, 8, 3.0, 0.02, 1e-4, THEIRS),  # the README's beta is .005
    "msvd": (5, 128, None, 32, 12, 8, 3.0, 0.005, 1e-4, THEIRS),
    "lsmdc": (5, 128, None, 32, 12, 8, 5.0, 0.005, 1e-2, THEIRS),  # tau, beta, alpha: argparse defaults
    "didemo": (5, 32, 4, 64, 64, 8, 3.0, 0.005, 1e-4, None),
    "activitynet": (10, 64, 8, 64, 64, 12, 3.0, 0.005, 1e-4, None),
    # GLSCL was not trained on VATEX: GLCCL's epochs, batch, GPUs and lengths (its README), GLSCL's numbers for MSVD.
    "vatex": (5, 128, 4, 32, 12, 8, 3.0, 0.005, 1e-4, None),
}
# Ours: no published training depends on them, or the authors have no such thing.
OURS = {
    *("name", "storage", "data.train", "data.validation", "data.test", "data.weights", "data.virtual_streams"),
    *(
        "data.loader_workers",
        "data.prefetch",
        "data.cache_mb",
        "data.decoder",
        "data.max_decode_s",
        "data.max_bad_fraction",
        "data.max_videos",
        "data.max_pairs",
    ),
    *("data.stall_timeout_s", "data.cache_dir", "model.trust_pickle", "model.position_std", "model.logit_scale"),
    *("model.tokenizer", "model.logit_bias", "loss.sigmoid.weight", "loss.sigmoid.tiled_above"),
    *("model.grad_checkpointing", "training.precision", "training.zero_stage", "training.use_gpu"),
    "loss.contrastive.tiled_above",
    *("model.freeze", "model.unfreeze_blocks", "training.head_first"),
    *("training.cpus_per_worker", "training.wait_for_nodes_s", "training.restart_cost_s", "training.log_every"),
    *("training.max_failures", "training.hang_timeout_s", "training.tf32", "training.compile"),
}


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_are_the_published_ones(name: str) -> None:
    config = load_config(name)
    for key, value in COMMON.items():
        found = _at(config, key)
        if key == "model.heads.glscl.feedforward" and found is None:
            found = 4 * 512  # four times the feature width
        assert found == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key
    for key, value in zip(COLUMNS, TABLE[name], strict=True):
        if value is not None or key == "data.augment":
            assert _at(config, key) == value, key


def test_no_key_of_a_published_preset_is_left_out_of_the_table() -> None:
    """A key that is new must say whether the authors have it."""
    glscls = ("contrastive", "inter_consistency", "intra_diversity")
    of_others = [f"loss.{name}." for name in term_names() if name not in glscls]
    sections = ("evaluation.", "checkpoint.", "tracking.", "model.adapters.", *of_others)
    for key in keys_of(RunConfig):
        if key.startswith("model.heads.") and not key.startswith("model.heads.glscl."):
            continue
        assert key in COMMON or key in COLUMNS or key in OURS or key.startswith(sections), key


def test_the_table_is_that_of_the_notes(shared: Path) -> None:
    """../shared/design/METHODS.md, section 1.3, read from the authors' scripts by somebody else."""
    notes = (shared / "design" / "METHODS.md").read_text(encoding="utf-8")
    section = notes.split("### 1.3 ")[1].split("###")[0]
    common = section.split("| set |")[0]
    for stated, key in (
        (r"lr (\S+),", "training.lr_head"),
        (r"CLIP lr (\S+)\)", "training.lr_towers"),
        (r"warmup_cosine (\S+),", "training.warmup"),
        (r"wd (\S+),", "training.weight_decay"),
        (r"clip (\S+),", "training.clip_grad"),
        (r"seed (\d+)", "seed"),
        (r"L=(\d+)", "model.heads.glscl.layers"),
        (r"ξ=(\S+),", "model.heads.glscl.local_weight"),
        (r"margin (\S+),", "loss.intra_diversity.margin"),
    ):
        match = re.search(stated, common)
        assert match, stated
        assert float(match[1]) == pytest.approx(COMMON[key]), key
    alpha = re.search(r"α=(\S+)\.\s", common)
    assert alpha
    rows = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[0] not in ("set", "---"):
            rows[re.sub(r"\W", "", cells[0]).lower()] = cells[1:]
    assert rows.keys() == TABLE.keys() - {"vatex"}

    def number(cell: str) -> float:
        found = re.match(r"\d*\.?\d+", cell)
        assert found, cell
        return float(found[0])

    for name, (epochs, batch, gpus, lengths, queries, tau, beta) in rows.items():
        published = dict(zip(COLUMNS, TABLE[name], strict=True))
        own_alpha = re.search(r"α (\S+?)\*", beta)
        words, frames = lengths.split("/")
        assert list(published.values())[:9] == [
            *(number(epochs), number(batch), None if gpus == "–" else number(gpus), number(words), number(frames)),
            *(number(queries), number(tau), number(beta), float(own_alpha[1] if own_alpha else alpha[1])),
        ], name
    augmented = notes.split("### 1.7 ")[1].split("\n2. ")[0]
    assert f"`{THEIRS}`: on MSR-VTT, LSMDC and MSVD only" in augmented


def test_every_command_of_the_recipes_is_free_of_notes() -> None:
    """What the docs and cluster files tell people to start, at whatever batch, does not drown the contrastive loss."""
    root = Path(__file__).resolve().parents[1]
    files = [
        root / "README.md",
        root / "ray_config.yaml",
        *(root / "docs").glob("*.md"),
        *(root / "cluster").rglob("*.*"),
    ]
    found = 0
    for path in files:
        if path.suffix not in (".md", ".yaml"):
            continue
        text = re.sub(r"\s*\\\n\s*", " ", path.read_text(encoding="utf-8"))  # continued lines
        text = re.sub(r"\n\s+(?=--)", " ", text)  # folded YAML
        for command in re.findall(r"(?:glscl|--) train (--config \w+[^\n`'#]*)", text):
            if "log-sum-exp" in command or "my.yaml" in command:  # the plug-in of docs/heads.md; the reader's own file
                continue
            words = [word for word in command.split() if word not in ("...", "--dry-run")]
            config = run_config(words, "glscl train")
            domain = words[words.index("--config") + 1]
            assert note_on_loss(config, [domain]) is None, f"{path.name}: {command}"
            found += config.training.global_batch != load_config(domain).training.global_batch
    assert found >= 2  # the cluster's guide, KubeRay's job


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
    assert re.fullmatch(r"# \S.{20,118}", first)
    assert first.endswith("; not yet run on the real data") == (name in PUBLISHED)
    if name in PUBLISHED:
        header = preset_text(name).split("\n\n")[0]
        assert "Nobody has run this preset on the real data yet. docs/fidelity.md" in header


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
        splits = find_benchmark(options["--benchmark"]).splits
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
