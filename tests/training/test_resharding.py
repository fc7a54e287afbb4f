"""Resuming on another number of workers: the losses and the pairs are those of the run that was never disturbed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from glscl.data.plan import StreamPlan
from glscl.data.shards import Manifest, ShardEntry
from glscl.errors import RunStoppedError
from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever
from glscl.training.checkpoint import format as checkpoint
from glscl.training.checkpoint import resharding, safe_load
from glscl.training.checkpoint.format import TAG, TrainState
from glscl.training.checkpoint.snapshot import take_snapshot
from glscl.training.driver.launch import whole_weights
from glscl.training.engine import backward, build_engine, set_learning_rates
from glscl.training.global_batch import RankPairs, backward_global_batch
from glscl.training.options import TrainingConfig
from tests.training.ranks import ADAPTERS

GLOBAL_BATCH, STREAMS, WORDS, FRAMES, SIZE = 8, 4, 8, 2, 16
SHARDS, PER_SHARD = 4, 7
BEFORE, AFTER, SEED = 3, 20, 3
TOLERANCE = 1e-5
WORLDS = (1, 2, 4)
Case = tuple[int, str]
Move = tuple[Case, int, int]
MOVES: list[Move] = [
    *(((2, "fp32"), *move) for move in ((1, 2), (2, 1), (2, 4), (4, 2))),
    *(((stage, "fp32"), *move) for stage in (0, 3) for move in ((2, 1), (2, 4))),
    *(((1, "fp32"), *move) for move in ((1, 2), (4, 2))),
    ((2, "bf16"), 2, 1),
    ((3, "bf16"), 2, 1),
    ((0, "adapters"), 2, 1),
    ((1, "adapters"), 2, 4),
    ((2, "adapters"), 4, 2),
    ((3, "adapters"), 2, 1),
]
"""ZeRO stage, and precision or, in fp32, a model whose towers are frozen and have adapters; the numbers of ranks before
and after."""
REST: list[Move] = [
    ((stage, "fp32"), *move)
    for stage in (0, 1, 3)
    for move in ((1, 2), (2, 1), (2, 4), (4, 2))
    if ((stage, "fp32"), *move) not in MOVES
]
"""The other moves of the whole table, for `make test-exhaustive`."""


def name_of(case: Case) -> str:
    stage, precision = case
    return f"zero{stage}-{precision}"


def cases_of(world: int, moves: list[Move]) -> list[Case]:
    """What so many ranks train and save."""
    return list(dict.fromkeys(case for case, old, _ in moves if old == world))


def training_config(case: Case) -> TrainingConfig:
    rates = {"lr_towers": 1e-3, "lr_head": 3e-3, "warmup": 0.4}
    precision = "fp32" if case[1] == "adapters" else case[1]
    return TrainingConfig.model_validate({"zero_stage": case[0], "precision": precision, **rates})


def engine_of(clip: str, case: Case, seed: int) -> Any:
    """An engine whose four groups of parameters differ in learning rate, weight decay or both; no dropout.

    The head has so few biases that one rank of four holds none of them.
    """
    model = {"clip": clip, "head": "wti", "max_words": WORDS, "max_frames": FRAMES}
    frozen = {"freeze": "towers", "adapters": ADAPTERS} if case[1] == "adapters" else {}
    torch.manual_seed(0 if frozen else seed)
    retriever = Retriever(ModelConfig.model_validate(model | frozen))
    torch.manual_seed(seed)
    if frozen:  # what is trained differs from seed to seed all the same
        for parameter in retriever.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    retriever.register_buffer("statistics", torch.rand(3))  # as batch norms of some image towers have
    return build_engine(retriever, training_config(case), torch.device("cpu"), dist.get_world_size())


def plan() -> StreamPlan:
    entries = tuple(
        ShardEntry(name=f"shard-{n:06d}.tar", samples=PER_SHARD, pairs=PER_SHARD, bytes=1, sha256="")
        for n in range(SHARDS)
    )
    manifest = Manifest(
        domain="d", split="train", reader="test", reader_version=1, sources=(), encoding="as is",
        videos=SHARDS * PER_SHARD, pairs=SHARDS * PER_SHARD, shards=entries,
    )  # fmt: skip
    return StreamPlan([manifest], (), GLOBAL_BATCH, STREAMS, "all", SEED)


def batch_of(order: StreamPlan, step: int, rank: int) -> RankPairs:
    """This rank's pairs of a global batch, made up from their numbers."""
    owned = order.owned(rank, dist.get_world_size(), 0, 1)
    slots = [slot for stream in owned for slot in order.slots(step, stream)]
    pairs = [slot.shard * PER_SHARD + order.pair_in_shard(slot) for slot in slots]
    ids, frames = [], []
    for pair in pairs:
        generator = torch.Generator().manual_seed(pair)
        ids.append(torch.randint(1, 49000, (WORDS,), generator=generator))
        frames.append(torch.randint(0, 256, (FRAMES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8))
    mask = torch.ones(len(pairs), FRAMES, dtype=torch.bool)
    return RankPairs((torch.stack(ids),), torch.stack(frames), mask, torch.tensor(pairs))


def train(engine: Any, config: TrainingConfig, steps: range, rank: int) -> dict[str, Any]:
    """Losses of the global batches, and the pairs in them."""
    engine.train()
    order, losses, pairs = plan(), [], []
    for step in steps:
        set_learning_rates(engine, config, step, BEFORE + AFTER)
        batch = batch_of(order, step, rank)
        loss = backward_global_batch(engine, partial(backward, engine), LossConfig(), batch)["total"].double()
        engine.step()
        dist.all_reduce(loss)
        losses.append(loss.item() / dist.get_world_size())
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, batch.video_ids.tolist())
        pairs.append([pair for part in parts for pair in part])
    return {"losses": losses, "pairs": pairs}


def weights(engine: Any) -> dict[str, torch.Tensor]:
    import deepspeed

    zero3 = engine.zero_optimization_stage() == 3
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())) if zero3 else nullcontext():
        return {name: tensor.detach().clone() for name, tensor in engine.module.state_dict().items()}


def process_group(rank: int, world: int, folder: str, store: str) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/{store}", rank=rank, world_size=world)


def undisturbed(rank: int, world: int, clip: str, folder: str, moves: list[Move]) -> None:
    """Train every case, save, and train on."""
    process_group(rank, world, folder, f"store-{world}")
    try:
        for case in cases_of(world, moves):
            engine = engine_of(clip, case, seed=0)
            train(engine, training_config(case), range(BEFORE), rank)
            own = Path(folder, name_of(case), f"{world}", f"rank-{rank}")
            own.mkdir(parents=True)
            frozen = "fingerprint" if case[1] == "adapters" else None
            state = TrainState(BEFORE, world, case[0], {"seed": SEED}, ["f"], frozen=frozen)
            take_snapshot(engine, str(own), state, rank).write()
            saved = weights(engine)
            result = train(engine, training_config(case), range(BEFORE, BEFORE + AFTER), rank)
            if rank == 0:
                torch.save(result | {"saved": saved}, own.parent / "undisturbed.pt")
    finally:
        dist.destroy_process_group()


def resumed(rank: int, world: int, clip: str, folder: str, moves: list[Move]) -> None:
    """Load what other numbers of ranks saved, from other weights, and train on."""
    process_group(rank, world, folder, f"resumed-{world}")
    try:
        for case, saved_by in [(case, old) for case, old, new in moves if new == world]:
            engine = engine_of(clip, case, seed=5)
            parts = Path(folder, name_of(case), f"{saved_by}")
            state = checkpoint.check_complete(str(parts / "whole"), rank, world)
            if state.zero_stage > 0 and state.world_size != world:
                with resharding.resharded(str(parts / "whole"), "c", state, 0, leads=rank == 0) as converted:
                    resharding.load(engine, converted)
                checkpoint.restore_generators(str(parts / "whole"), state, rank)
            else:
                checkpoint.restore(engine, str(parts / "whole"), state, rank)
            drawn = torch.rand(1).item()
            loaded = weights(engine)
            result = train(engine, training_config(case), range(state.step, BEFORE + AFTER), rank)
            torch.save(result | {"saved": loaded, "drawn": drawn}, parts / f"resumed-{world}-{rank}.pt")
    finally:
        dist.destroy_process_group()


def start(worker: Callable[..., None], world: int, clip: str, folder: Path, *arguments: Any) -> None:
    mp.start_processes(worker, args=(world, clip, str(folder), *arguments), nprocs=world, start_method="forkserver")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "universal-test.json"
    vision = {"image_size": SIZE, "patch_size": 8, "width": 8, "head_width": 4, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


def save_all(clip: str, folder: Path, moves: list[Move]) -> Path:
    """Every case trained through by every number of ranks, the ranks' folders merged as Ray Train merges them."""
    for world in WORLDS:
        start(undisturbed, world, clip, folder, moves)
        for case in cases_of(world, moves):
            parts = folder / name_of(case) / f"{world}"
            for rank in range(world):
                shutil.copytree(parts / f"rank-{rank}", parts / "whole", dirs_exist_ok=True)
    return folder


def move_all(clip: str, folder: Path, moves: list[Move]) -> Path:
    for world in WORLDS:
        start(resumed, world, clip, folder, moves)
    return folder


@pytest.fixture(scope="module")
def saved(clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_all(clip, tmp_path_factory.mktemp("runs"), MOVES)


@pytest.fixture(scope="module")
def moved(saved: Path, clip: str) -> Path:
    return move_all(clip, saved, MOVES)


@pytest.fixture(scope="module")
def moved_rest(clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return move_all(clip, save_all(clip, tmp_path_factory.mktemp("rest"), REST), REST)


@pytest.mark.parametrize(
    ("case", "old", "new", "runs"),
    [
        *(pytest.param(*move, "moved", id=str(move)) for move in MOVES),
        *(pytest.param(*move, "moved_rest", id=str(move), marks=pytest.mark.exhaustive) for move in REST),
    ],
)
def test_the_run_goes_on_as_if_undisturbed(
    case: Case, old: int, new: int, runs: str, request: pytest.FixtureRequest
) -> None:
    parts = request.getfixturevalue(runs) / name_of(case) / f"{old}"
    expected, found = (torch.load(parts / f"{name}.pt") for name in ("undisturbed", f"resumed-{new}-0"))
    assert all(torch.equal(tensor, found["saved"][name]) for name, tensor in expected["saved"].items())
    assert found["pairs"] == expected["pairs"]
    assert len(found["losses"]) == AFTER
    if case[1] != "bf16":
        assert found["losses"] == pytest.approx(expected["losses"], rel=TOLERANCE)
    else:  # its rounding makes any two runs differ by per cents after 20 steps; the second loss has seen the moments
        assert found["losses"][:2] == pytest.approx(expected["losses"][:2], rel=1e-3)
    assert abs(expected["losses"][-1] / expected["losses"][0] - 1) > 100 * TOLERANCE, "the steps moved the weights"


def test_generators_start_from_seed_step_and_rank(moved: Path) -> None:
    drawn = set()
    for case, old, new in MOVES:
        for rank in range(new):
            found = torch.load(moved / name_of(case) / f"{old}" / f"resumed-{new}-{rank}.pt")["drawn"]
            checkpoint.seed_generators(SEED, BEFORE, rank)
            assert found == torch.rand(1).item()
            drawn.add(found)
    assert len(drawn) == max(WORLDS)


def test_nothing_is_left_behind(moved: Path) -> None:
    assert [path for path in moved.iterdir() if path.name.startswith("convert-")] == []


class Evil:
    """Unpickled, it makes a folder; as well it could remove one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def poison(whole: Path, name: str, harm: Path, **how: Any) -> None:
    """Put code into a file of a checkpoint, and make the lists of files agree with it."""
    file = whole / TAG / name
    torch.save(torch.load(file, weights_only=False) | {"extra": Evil(harm)}, file, **how)
    for listed in whole.glob("files-*.json"):
        files = json.loads(listed.read_text())
        for entry in {f"{TAG}/{name}"} & files.keys():
            files[entry] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        listed.write_text(json.dumps(files))
    checkpoint.check_complete(str(whole))


def stopped(rank: int, world: int, clip: str, folder: str) -> None:
    """What every rank says of a checkpoint that cannot be converted, by the one process that tries."""
    process_group(rank, world, folder, "store")
    found = {}
    try:
        for name in ("torn", "large", "evil"):
            whole = f"{folder}/{name}"
            state = checkpoint.read_state(whole)
            with pytest.MonkeyPatch.context() as patch:
                if name == "large":
                    patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
                with pytest.raises(RunStoppedError) as caught:
                    resharding.resharded(whole, f"step_{name}", state, 0, leads=rank == 1).__enter__()
            found[name] = str(caught.value)
        engine = engine_of(clip, (2, "fp32"), seed=0)
        for name in ("evil-resumed", "evil-old-format"):
            with pytest.raises(RunStoppedError, match=f"{name} is refused|not readable") as caught:
                checkpoint.restore(engine, f"{folder}/{name}", checkpoint.read_state(f"{folder}/{name}"), rank)
            found[name] = str(caught.value)
        Path(folder, f"said-{rank}.json").write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


def test_a_checkpoint_that_cannot_be_loaded_is_named_on_every_rank(saved: Path, clip: str, tmp_path: Path) -> None:
    """Torn, too large to convert, or with a pickle that would run code: on conversion, on resume, as the best model."""
    for name in ("torn", "large", "evil"):
        shutil.copytree(saved / "zero2-fp32" / "4" / "whole", tmp_path / name)
    for name in ("evil-resumed", "evil-old-format"):
        shutil.copytree(saved / "zero2-fp32" / "2" / "whole", tmp_path / name)
    harm = tmp_path / "harm"
    model, optimiser = "mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    poison(tmp_path / "evil", optimiser, harm)
    poison(tmp_path / "evil-resumed", model, harm)
    poison(tmp_path / "evil-old-format", model, harm, _use_new_zipfile_serialization=False)
    file = tmp_path / "torn" / TAG / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:1000])
    start(stopped, 2, clip, tmp_path)
    first, second = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for name in ("torn", "large", "evil"):
        assert first[name].startswith(f"checkpoint step_{name} of 4 workers could not be converted for 2 (")
        assert first[name].endswith("resume with --training.num-workers 4")
    assert f"{optimiser} asks for posix.mkdir, which could run code" in first["evil"]
    assert f"{model} asks for posix.mkdir, which could run code" in first["evil-resumed"]
    assert f"{model} is not readable" in first["evil-old-format"]
    assert "GB are free" in first["large"]
    for stage in (0, 2, 3):
        whole = tmp_path / f"best-{stage}"
        shutil.copytree(saved / f"zero{stage}-fp32" / "2" / "whole", whole)
        whole_weights(str(whole), stage)
        poison(whole, model if stage < 3 else f"zero_pp_rank_0_{model}", harm)
        with pytest.raises(RunStoppedError, match=r"best-. is refused: .*asks for posix\.mkdir, which could run code"):
            whole_weights(str(whole), stage)
    assert not harm.exists()
    assert safe_load.SWITCH not in os.environ
    assert [path for path in tmp_path.iterdir() if path.name.startswith("convert-")] == []
