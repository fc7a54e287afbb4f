"""Checkpoints: what is saved is what comes back, bit by bit, and what is damaged is not offered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file

from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet
from glscl.data.stream import PairStream, make_loader
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.evaluation.saved import ModelCard, load_model, save_model
from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever
from glscl.models.tokenizer import tokenize
from glscl.system import storage
from glscl.training.checkpoint import format as checkpoint
from glscl.training.checkpoint import transfer
from glscl.training.checkpoint.callback import RetentionCallback
from glscl.training.checkpoint.format import IncompleteCheckpointError, TrainState
from glscl.training.checkpoint.retention import ANOTHER, INDEX, RAY_REGISTER, Retention
from glscl.training.checkpoint.snapshot import take_snapshot
from glscl.training.config import RunConfig
from glscl.training.driver.launch import whole_weights
from glscl.training.engine import backward, build_engine, set_learning_rates
from glscl.training.global_batch import RankPairs, backward_global_batch
from glscl.training.options import TrainingConfig
from tests.fault_proxy import FaultProxy

WORLD = 2
PAIRS, WORDS, FRAMES, SIZE = 4, 8, 2, 16  # pairs of one rank
BEFORE, AFTER = 2, 2
CASES = [(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]


def name_of(stage: int, precision: str) -> str:
    return f"zero{stage}-{precision}"


def model_config(clip: str) -> ModelConfig:
    head = {"queries": 2, "layers": 1, "attention_heads": 2, "feedforward": 16, "dropout": 0.3}
    return ModelConfig.model_validate(
        {"clip": clip, "frame_context": "transformer", "context_layers": 1, "max_words": WORDS, "max_frames": FRAMES}
        | {"heads": {"glscl": head}}
    )


def training_config(stage: int, precision: str) -> TrainingConfig:
    rates = {"lr_towers": 1e-3, "lr_head": 1e-2}
    return TrainingConfig.model_validate({"zero_stage": stage, "precision": precision, "num_workers": WORLD, **rates})


def engine_of(clip: str, stage: int, precision: str, seed: int, world: int = WORLD) -> Any:
    torch.manual_seed(seed)
    return build_engine(Retriever(model_config(clip)), training_config(stage, precision), torch.device("cpu"), world)


def batch_of(step: int, rank: int) -> RankPairs:
    generator = torch.Generator().manual_seed(100 * step + rank)
    ids = torch.randint(1, 49000, (PAIRS, WORDS), generator=generator)
    frames = torch.randint(0, 256, (PAIRS, FRAMES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return RankPairs(ids, frames, torch.ones(PAIRS, FRAMES, dtype=torch.bool), torch.arange(PAIRS) + PAIRS * rank)


def train(engine: Any, config: TrainingConfig, steps: range, rank: int) -> None:
    engine.train()
    for step in steps:
        set_learning_rates(engine, config, step, BEFORE + AFTER)
        backward_global_batch(engine, partial(backward, engine), LossConfig(), batch_of(step, rank))
        engine.step()


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value.detach().clone()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_in(item, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{path}/{index}")


def everything(engine: Any) -> dict[str, torch.Tensor]:
    """Parameters (this rank's part under ZeRO-3), optimiser state, and where the random numbers stand."""
    parameters = {name: getattr(p, "ds_tensor", p) for name, p in engine.module.named_parameters()}
    found = dict(tensors_in({"parameters": parameters, "optimiser": engine.optimizer.state_dict()}))
    return found | {"generator": torch.get_rng_state()}


def whole(engine: Any) -> dict[str, torch.Tensor]:
    import deepspeed

    zero3 = engine.zero_optimization_stage() == 3
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())) if zero3 else nullcontext():
        return {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}


def process_group(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)


def uninterrupted(rank: int, clip: str, folder: str) -> None:
    """Train, save into a folder of this rank, train on; every case in turn."""
    process_group(rank, WORLD, f"{folder}/store-1")
    try:
        for stage, precision in CASES:
            engine = engine_of(clip, stage, precision, seed=0)
            torch.manual_seed(1000 + rank)
            config = training_config(stage, precision)
            train(engine, config, range(BEFORE), rank)
            own = Path(folder, name_of(stage, precision), f"rank-{rank}")
            own.mkdir(parents=True)
            take_snapshot(engine, str(own), TrainState(BEFORE, WORLD, stage, {"seed": 1}, ["f"]), rank).write()
            live = whole(engine)
            if rank == 0:
                torch.save(live, f"{folder}/{name_of(stage, precision)}/live.pt")
            train(engine, config, range(BEFORE, BEFORE + AFTER), rank)
            torch.save(everything(engine), f"{folder}/{name_of(stage, precision)}/end-{rank}.pt")
    finally:
        dist.destroy_process_group()


def resumed(rank: int, clip: str, folder: str) -> None:
    """Restore in a new process, from other weights and another random state, and train on."""
    process_group(rank, WORLD, f"{folder}/store-2")
    try:
        for stage, precision in CASES:
            engine = engine_of(clip, stage, precision, seed=5)
            whole_folder = f"{folder}/{name_of(stage, precision)}/whole"
            state = checkpoint.check_complete(whole_folder, rank, WORLD)
            checkpoint.restore(engine, whole_folder, state, rank)
            train(engine, training_config(stage, precision), range(state.step, BEFORE + AFTER), rank)
            torch.save(everything(engine), f"{folder}/{name_of(stage, precision)}/resumed-{rank}.pt")
    finally:
        dist.destroy_process_group()


def alone(rank: int, clip: str, folder: str) -> None:
    """Restore what two ranks saved with ZeRO 0 in one."""
    process_group(rank, 1, f"{folder}/store-3")
    try:
        for precision in ("fp32", "bf16"):
            engine = engine_of(clip, 0, precision, seed=5, world=1)
            whole_folder = f"{folder}/{name_of(0, precision)}/whole"
            checkpoint.restore(engine, whole_folder, checkpoint.check_complete(whole_folder), 0)
            torch.save(whole(engine), f"{folder}/{name_of(0, precision)}/alone.pt")
            train(engine, training_config(0, precision), range(BEFORE, BEFORE + 1), 0)
    finally:
        dist.destroy_process_group()


def start(worker: Callable[..., None], clip: str, folder: Path, world: int = WORLD) -> None:
    mp.start_processes(worker, args=(clip, str(folder)), nprocs=world, start_method="forkserver")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "checkpoint-test.json"
    vision = {"image_size": SIZE, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


@pytest.fixture(scope="module")
def runs(clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained through, with its checkpoint merged as Ray Train merges the ranks' folders."""
    folder = tmp_path_factory.mktemp("runs")
    start(uninterrupted, clip, folder)
    for case in CASES:
        for rank in range(WORLD):
            part = folder / name_of(*case)
            shutil.copytree(part / f"rank-{rank}", part / "whole", dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def continued(runs: Path, clip: str) -> Path:
    start(resumed, clip, runs)
    return runs


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_resuming_is_bit_identical(stage: int, precision: str, continued: Path) -> None:
    folder = continued / name_of(stage, precision)
    for rank in range(WORLD):
        reference, found = (torch.load(folder / f"{name}-{rank}.pt") for name in ("end", "resumed"))
        assert found.keys() == reference.keys()
        assert sum("optimiser" in name for name in reference) >= 2, "moments of the optimiser are compared"
        different = [name for name, tensor in reference.items() if not torch.equal(tensor, found[name])]
        assert different == []


def test_the_steps_after_the_checkpoint_moved_the_weights(runs: Path) -> None:
    """Otherwise bit-identity would say nothing."""
    live = torch.load(runs / "zero0-fp32" / "live.pt")
    end = torch.load(runs / "zero0-fp32" / "end-0.pt")
    same = [name for name, tensor in live.items() if torch.equal(tensor, end.get(f"/parameters/{name}", tensor))]
    assert len(same) < len(live) / 4


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_whole_weights(stage: int, precision: str, runs: Path, clip: str, tmp_path: Path) -> None:
    folder = runs / name_of(stage, precision)
    weights = whole_weights(str(folder / "whole"), stage)
    live = torch.load(folder / "live.pt")
    assert weights.keys() == live.keys()
    for name, tensor in live.items():
        assert torch.equal(weights[name].to(tensor.dtype), tensor), name
    if precision == "bf16" and stage > 0:
        assert any(not torch.equal(w.float(), w.bfloat16().float()) for w in weights.values()), "the fp32 originals"
    card = ModelCard(
        model=model_config(clip), sample_fps=1.0, decoder="pyav", train_domains=("toy",), step=BEFORE, seed=0, run="r",
        validation={},
    )  # fmt: skip
    save_model(str(tmp_path / "model"), card, weights)
    model, _ = load_model(str(tmp_path))
    assert all(torch.equal(tensor, weights[name].float()) for name, tensor in model.state_dict().items())


def test_zero_0_goes_on_with_another_number_of_workers(runs: Path, clip: str) -> None:
    start(alone, clip, runs, world=1)
    for precision in ("fp32", "bf16"):
        live, found = (torch.load(runs / name_of(0, precision) / f"{name}.pt") for name in ("live", "alone"))
        assert all(torch.equal(tensor, found[name]) for name, tensor in live.items())


@pytest.fixture
def damaged(runs: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be damaged."""
    return Path(shutil.copytree(runs / "zero2-fp32" / "whole", tmp_path / "copy"))


def test_a_good_checkpoint_is_complete(damaged: Path) -> None:
    state = checkpoint.check_complete(str(damaged))
    assert state == TrainState(BEFORE, WORLD, 2, {"seed": 1}, ["f"])


OPTIMISER = "deepspeed/zero_pp_rank_1_mp_rank_00_optim_states.pt"


@pytest.mark.parametrize(
    "name",
    [
        "state.json",
        "files-00000.json",
        "files-00001.json",
        "generators-00001.safetensors",
        "deepspeed/mp_rank_00_model_states.pt",
        OPTIMISER,
    ],
)
def test_a_missing_file_is_named(name: str, damaged: Path) -> None:
    (damaged / name).unlink()
    with pytest.raises(IncompleteCheckpointError, match=name):
        checkpoint.check_complete(str(damaged))


@pytest.mark.parametrize("name", ["state.json", "files-00000.json", OPTIMISER])
def test_a_truncated_file_is_named(name: str, damaged: Path) -> None:
    data = (damaged / name).read_bytes()
    (damaged / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(IncompleteCheckpointError, match=name):
        checkpoint.check_complete(str(damaged), process=0, processes=2)  # sizes are looked at whoever wrote the file


def test_a_flipped_byte_is_named(damaged: Path) -> None:
    data = bytearray((damaged / OPTIMISER).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / OPTIMISER).write_bytes(data)
    with pytest.raises(IncompleteCheckpointError, match=f"{OPTIMISER}: checksum differs"):
        checkpoint.check_complete(str(damaged))
    with pytest.raises(IncompleteCheckpointError, match=f"{OPTIMISER}: checksum differs"):
        checkpoint.check_complete(str(damaged), process=1, processes=2)
    checkpoint.check_complete(str(damaged), process=0, processes=2)  # rank 1 is the one that hashes its own files


def test_a_file_of_another_attempt_is_noticed(damaged: Path, runs: Path) -> None:
    shutil.copy(runs / "zero2-bf16" / "rank-0" / "generators-00000.safetensors", damaged)
    checkpoint.check_complete(str(damaged))  # the same random state, the same bytes
    shutil.copy(runs / "zero2-fp32" / "rank-1" / "files-00001.json", damaged / "files-00000.json")
    (damaged / "generators-00001.safetensors").unlink()
    with pytest.raises(IncompleteCheckpointError, match="generators-00001"):
        checkpoint.check_complete(str(damaged))


def test_dropout_differs_between_seeds_steps_and_ranks() -> None:
    masks = set()
    for seed, step, rank in product(range(3), (0, 1, 7), range(3)):
        checkpoint.seed_generators(seed, step, rank)
        masks.add(tuple(torch.nn.functional.dropout(torch.ones(64)).tolist()))
    assert len(masks) == 27
    checkpoint.seed_generators(3, 7, 2)
    assert torch.initial_seed() == 3 * 1_000_003 + 7 * 65_537 + 2, "runs that were saved by this rule go on by it"


def test_starting_to_read_does_not_move_the_random_state(make_shards: Callable[..., ShardSet]) -> None:
    """A resumed run restores its generators and then makes a new loader; an uninterrupted one never does."""
    shard_set = make_shards(captions=[2] * 8, per_shard=4)
    plan = StreamPlan([shard_set.manifest], (), 4, 2, "all", 0)
    state = torch.get_rng_state()
    for loader_workers in (0, 1):
        stream = PairStream([shard_set], plan, FrameSampling(2, 1.0, SIZE), partial(tokenize, max_words=8), 0, 1)
        assert len(next(make_loader(stream, loader_workers, prefetch=1)).names) == 4
        assert torch.equal(torch.get_rng_state(), state)


@dataclass
class Saved:
    config: dict[str, Any]

    def resume(self, changes: dict[str, Any], manifests: list[str] | None = None) -> None:
        state = TrainState(10, 2, 2, self.config, ["a", "b"])
        config = json.loads(json.dumps(self.config))
        for key, value in changes.items():
            section = config
            *path, last = key.split(".")
            for part in path:
                section = section[part]
            assert last in section, key
            section[last] = value
        checkpoint.check_resumable(state, config, manifests or ["a", "b"])


@pytest.fixture
def saved() -> Saved:
    return Saved(RunConfig.model_validate({"data": {"train": ["/x"]}}).model_dump(mode="json"))


def test_every_differing_key_is_listed(saved: Saved) -> None:
    changes = {
        "seed": 7,
        "data.train": ["/y"],
        "data.captions": "one",
        "data.virtual_streams": 4,
        "data.sample_fps": 2.5,
        "model.clip": "glscl-tiny",
        "model.heads.glscl.tau": 9.0,
        "model.pretrained": "openai",
        "loss.intra_diversity.weight": 0.5,
        "training.lr_head": 0.5,
        "training.zero_stage": 3,
        "training.precision": "fp32",
        "training.global_batch": 64,
        "training.epochs": 50,
        "training.weight_decay": 0.0,
        "training.warmup": 0.5,
        "training.clip_grad": 0.1,
    }
    with pytest.raises(UserError) as caught:
        saved.resume(changes)
    message = str(caught.value)
    assert [key for key in changes if f"{key}: " not in message] == []
    assert "training.lr_head: 0.0001 -> 0.5" in message
    assert "\n" not in message
    assert message.count(" -> ") == len(changes)


def test_logging_evaluation_retention_and_machines_are_free(saved: Saved) -> None:
    saved.resume({})
    saved.resume(
        {
            "name": "x",
            "storage": "/other",
            "data.validation": ["/v"],
            "data.test": ["/t"],
            "data.loader_workers": 0,
            "data.prefetch": 9,
            "data.cache_mb": 9,
            "data.cache_dir": "/c",
            "data.max_bad_fraction": 0.5,
            "model.grad_checkpointing": True,
            "training.accumulate": 4,
            "training.num_workers": 4,
            "training.log_every": 3,
            "training.max_failures": 0,
            "training.cpus_per_worker": 4.0,
            "checkpoint.every_steps": 5,
            "checkpoint.keep": 9,
            "evaluation.batch_size": 3,
            "evaluation.examples": 0,
        }
    )


def test_a_key_that_the_saved_configuration_lacks_is_a_difference(saved: Saved) -> None:
    current = json.loads(json.dumps(saved.config))
    del saved.config["loss"]["contrastive"]
    assert checkpoint.run_differences(saved.config, current) == [
        f"loss.contrastive: None -> {current['loss']['contrastive']}"
    ]


def test_a_head_or_term_that_came_later_and_decides_nothing_is_no_difference(saved: Saved) -> None:
    current = RunConfig.model_validate(saved.config).model_dump(mode="json")
    del saved.config["model"]["heads"]["xclip"], saved.config["loss"]["channel_decorrelation"]
    assert checkpoint.run_differences(saved.config, current) == []
    current["model"]["head"] = "xclip"
    current["loss"]["channel_decorrelation"]["weight"] = 0.001
    assert {difference.split(":")[0] for difference in checkpoint.run_differences(saved.config, current)} == {
        "model.head",
        "model.heads.xclip",
    }, "a term that the head cannot have decides nothing"
    current["model"]["head"] = "wti"
    assert {difference.split(":")[0] for difference in checkpoint.run_differences(saved.config, current)} == {
        "loss.channel_decorrelation",
        "model.head",
    }


def test_other_shards_are_refused(saved: Saved) -> None:
    with pytest.raises(UserError, match=r"data\.train: the shards differ"):
        saved.resume({}, manifests=["b", "a"])


def test_directory_names_sort_by_step_and_differ_by_attempt() -> None:
    names = [checkpoint.directory_name(step, 2, "a") for step in (9, 10, 100)]
    assert names == sorted(names)
    assert len({checkpoint.directory_name(1, world, attempt) for world in (1, 2) for attempt in "ab"}) == 4


# ------------------------------------------------------------------------------------------ what a run directory keeps


def put(run: str, step: int, attempt: str = "a", score: float | None = None, ranks: tuple[int, ...] = (0, 1)) -> str:
    """Upload what two ranks would; fewer ``ranks`` have been killed on the way."""
    name = checkpoint.directory_name(step, 2, attempt)
    metrics = {} if score is None else {checkpoint.SELECTION_METRIC: score}
    state = TrainState(step, 2, 0, {"seed": 1}, ["f"], metrics=metrics)
    for rank in ranks:
        files = {f"deepspeed/rank-{rank}": os.urandom(1000)}
        if rank == 0:
            files["state.json"] = json.dumps(asdict(state)).encode()
        listed = {name: {"bytes": len(data), "sha256": sha256(data).hexdigest()} for name, data in files.items()}
        for file, data in (files | {f"files-{rank:05d}.json": json.dumps(listed).encode()}).items():
            storage.write_bytes(storage.join(run, name, file), data)
    return name


def steps(run: str) -> list[int]:
    return sorted(int(name[5:13]) for name in storage.list_names(run) if name.startswith("step_"))


def flip(uri: str) -> None:
    data = bytearray(storage.read_bytes(uri))
    data[len(data) // 2] ^= 1
    storage.write_bytes(uri, bytes(data))


def test_the_best_and_the_newest_stay(run: str) -> None:
    retention = Retention(run, keep=2)
    for step, score in ((1, 10.0), (2, 30.0), (3, 20.0), (4, 5.0)):
        retention.register(put(run, step, score=score))
    assert steps(run) == [2, 3, 4]
    assert [found.state.step for found in retention.best()] == [2, 3, 4]
    assert Retention(run, keep=2).known() == [checkpoint.directory_name(step, 2, "a") for step in (2, 3, 4)]
    unscored = Retention(storage.join(run, "other"), keep=1)
    for step in (1, 2):
        unscored.register(put(unscored.run_directory, step))
    assert steps(unscored.run_directory) == [2]


def test_what_the_controller_has_removed_meanwhile_is_not_there(run: str) -> None:
    put(run, 1)
    driver, controller = Retention(run, keep=1), Retention(run, keep=1)
    assert [found.state.step for found in driver.prune_at_start()] == [1]
    controller.register(put(run, 2))
    assert [found.state.step for found in driver.best()] == [2]
    driver.prune_at_end()
    assert driver.known() == [checkpoint.directory_name(2, 2, "a")]


@pytest.mark.parametrize("lacks", ["deepspeed/rank-1", "files-00001.json", "state.json", "cut", "rank"])
def test_the_last_good_one_stays_whatever_comes_after(run: str, lacks: str, capsys: pytest.CaptureFixture[str]) -> None:
    retention = Retention(run, keep=1)
    good = put(run, 1)
    retention.register(good)
    bad = put(run, 2, ranks=(0,) if lacks == "rank" else (0, 1))
    if lacks == "cut":
        storage.write_bytes(storage.join(run, bad, "deepspeed/rank-1"), b"x")
    elif lacks != "rank":
        storage.remove(storage.join(run, bad, lacks))
    retention.register(bad)
    said = {"cut": "deepspeed/rank-1: 1 bytes where 1000 were saved", "rank": "files-00001.json: missing"}
    expected = f"checkpoint {bad} is incomplete after its upload ({said.get(lacks, f'{lacks}: missing')})"
    assert expected in capsys.readouterr().out
    assert steps(run) == [1, 2]
    assert [found.name for found in Retention(run, keep=1).prune_at_start()] == [good]
    assert steps(run) == [1], "never complete: removed, not merged into the next attempt's"
    put(run, 9, ranks=(0,))
    retention.register(put(run, 3))
    assert steps(run) == [3, 9], "an upload that is under way is left alone"
    retention.prune_at_end()
    assert steps(run) == [3]


def test_what_was_complete_once_is_passed_over_and_named(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    retention = Retention(run, keep=3)
    first, second, third = [put(run, step) for step in (1, 2, 3)]
    for name in (first, second, third):
        retention.register(name)
    storage.write_bytes(storage.join(run, RAY_REGISTER), b'{"checkpoint_results": [{"che')
    storage.remove_folder(storage.join(run, third))
    storage.remove(storage.join(run, second, "files-00000.json"))
    storage.write_bytes(storage.join(run, second, "files-00000.json"), b"{")
    assert [found.name for found in Retention(run, keep=3).prune_at_start()] == [first]
    out = capsys.readouterr().out
    assert f"checkpoint {third} is incomplete (state.json: missing): passed over" in out
    assert f"checkpoint {second} is incomplete (files-00000.json: unreadable (Invalid JSON" in out
    assert not storage.exists(storage.join(run, RAY_REGISTER)), "Ray Train would not start with it"
    storage.remove(storage.join(run, first, "state.json"))
    with pytest.raises(
        UserError, match=f"none of its checkpoints is complete .*{first}: state.json: missing.*{ANOTHER}"
    ):
        Retention(run, keep=3).prune_at_start()
    assert steps(run) == [1, 2], "what was complete once is the user's to remove"


def test_a_run_that_never_had_one_starts_anew(run: str) -> None:
    assert Retention(run, keep=1).prune_at_start() == []
    put(run, 1, ranks=(1,))
    assert Retention(run, keep=1).prune_at_start() == []
    assert steps(run) == []


def test_a_checkpoint_uploaded_before_the_end_but_not_registered_counts(run: str) -> None:
    Retention(run, keep=1).register(put(run, 1))
    unregistered = put(run, 2)
    assert [found.state.step for found in Retention(run, keep=1).prune_at_start()] == [2, 1]
    assert unregistered in Retention(run, keep=1).known()


def test_a_damaged_index_forgets_nothing(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = put(run, 1)
    Retention(run, keep=1).register(name)
    for text in (b"", b"[]", b'{"complete": ["../x"]}', b'{"complete": [1]}'):
        storage.write_bytes(storage.join(run, INDEX), text)
        assert [found.name for found in Retention(run, keep=1).prune_at_start()] == [name]
        assert f"{INDEX} is damaged" in capsys.readouterr().out
    storage.write_bytes(storage.join(run, INDEX), b"")
    storage.remove(storage.join(run, name, "state.json"))
    with pytest.raises(UserError, match="none of its checkpoints is complete"):
        Retention(run, keep=1).prune_at_start()


def test_a_listing_out_of_date_hides_nothing(bucket: str, proxy: FaultProxy) -> None:
    run = f"{bucket}/run"
    name = checkpoint.directory_name(1, 2, "a")
    storage.list_names(run)  # empty: what is answered from here on
    storage.wrong_sizes(storage.join(run, name), {})
    put(run, 1)
    proxy.kinds, proxy.rate = ("stale_list",), 1.0
    Retention(run, keep=1).register(name)
    assert [found.name for found in Retention(run, keep=1).prune_at_start()] == [name]
    with transfer.local_copy(storage.join(run, name)) as folder:
        assert checkpoint.check_complete(folder).step == 1
    assert proxy.injected["stale_list"]


def test_a_copy_of_what_is_not_there_names_the_file(run: str) -> None:
    name = put(run, 1)
    with transfer.local_copy(storage.join(run, name)) as folder:
        checkpoint.check_complete(folder)
    flip(storage.join(run, name, "deepspeed/rank-1"))
    with (
        pytest.raises(IncompleteCheckpointError, match="deepspeed/rank-1: checksum differs"),
        transfer.local_copy(storage.join(run, name)) as folder,
    ):
        checkpoint.check_complete(folder)
    storage.remove(storage.join(run, name, "deepspeed/rank-1"))
    with (
        pytest.raises(IncompleteCheckpointError, match="deepspeed/rank-1: missing"),
        transfer.local_copy(storage.join(run, name)) as folder,
    ):
        checkpoint.check_complete(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x"])
def test_a_list_names_files_of_its_own_folder_only(name: str, tmp_path: Path) -> None:
    folder = tmp_path / put(str(tmp_path), 1)
    (folder / "files-00001.json").write_text(json.dumps({name: {"bytes": 1, "sha256": ""}}))
    with pytest.raises(
        IncompleteCheckpointError, match=r"files-00001\.json: unreadable .*leaves the checkpoint's folder"
    ):
        checkpoint.check_files(str(folder))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"step": 1}', b'{"x": {"bytes": -1, "sha256": ""}}', b"\xff", b"null"]
)
@pytest.mark.parametrize("name", ["state.json", "files-00000.json"])
def test_an_unreadable_list_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    folder = tmp_path / put(str(tmp_path), 1)
    (folder / name).write_bytes(content)
    with pytest.raises(IncompleteCheckpointError, match=f"{name}: unreadable"):
        checkpoint.check_complete(str(folder))


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    """A file system of its own, of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        run = str(disk / "run")
        retention = Retention(run, keep=1)
        retention.register(put(run, 1))
        big = tmp_path / "big"
        big.mkdir()
        (big / "data").write_bytes(os.urandom(2 << 20))
        folder = storage.join(run, "step_00000002-w2-a")
        with pytest.raises(UserError) as caught:
            transfer.upload(str(big), folder)
        assert f"{folder}: the checkpoint could not be written (No space left on device)" in str(caught.value)
        assert "checkpoint.keep" in str(caught.value)
        assert os.listdir(folder) == []
        for write in (
            lambda path: torch.save(torch.zeros(1 << 20), path),
            lambda path: save_file({"x": torch.zeros(1 << 20)}, path),
            lambda path: Path(path).write_bytes(bytes(2 << 20)),
        ):
            scratch = tempfile.mkdtemp(dir=disk)
            with (
                pytest.raises(
                    UserError, match=rf"{scratch}: a checkpoint could not be written .*[01] MB are free.*RAY_TMPDIR"
                ),
                transfer.explained_full_disk(scratch),
            ):
                write(f"{scratch}/x")
            shutil.rmtree(scratch)
        with pytest.raises(RuntimeError, match="else"), transfer.explained_full_disk(run):
            raise RuntimeError("something else")
        assert [found.state.step for found in Retention(run, keep=1).prune_at_start()] == [1]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # torch leaves its file open


def test_what_a_user_has_to_mend_is_not_tried_again(tmp_path: Path) -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    keeper = RetentionCallback(str(tmp_path), 1)
    keeper.after_exception(None, {0: RuntimeError("a peer has gone"), 1: ValueError("x")})
    with pytest.raises(UserError, match="full"):
        keeper.after_exception(
            None, {0: RuntimeError("a peer has gone"), 1: UserExceptionWithTraceback(UserError("full"), "")}
        )
