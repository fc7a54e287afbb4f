"""Held-out sets whose embeddings stay with the ranks: the ranks of one process, and what each rank receives for it."""

from __future__ import annotations

import io
import json
import pickle
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from glscl.data.activity import ActivityTable
from glscl.data.quarantine import Quarantine
from glscl.data.shards import ShardSet
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.evaluation.caches import Caches, PairCaches
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.ranks import Ranks
from glscl.evaluation.scoring import evaluate_scores
from glscl.evaluation.similarity import Scorer
from glscl.models import Retriever
from glscl.models.caption_tokenizer import build_tokenizer
from glscl.models.heads import Head, build_head, head_class
from glscl.training.collectives import gather_objects, rank, world_size
from glscl.training.config import RunConfig
from glscl.training.held_out import HeldOut
from glscl.training.rank_scoring import RankShare, rank_over_ranks
from tests.training.ranks import start

CPU = torch.device("cpu")
CAPTIONS = (1, 2, 3, 1, 0, 2, 4, 1, 1, 2, 1)
WIDTH = 16


class ThreadRanks:
    """Ranks as threads of this process, with the collectives they use; counts the bytes that each receives."""

    def __init__(self, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.received: list[Counter[str]] = [Counter() for _ in range(world)]
        self._local = threading.local()
        self._slots: list[Any] = [None] * world
        self._barrier = threading.Barrier(world, timeout=60)
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: world)
        monkeypatch.setattr(dist, "get_rank", lambda: self._local.rank)
        for name in ("broadcast", "all_reduce", "all_gather_object"):
            monkeypatch.setattr(dist, name, getattr(self, f"_{name}"))

    def run(self, worker: Callable[[int], Any]) -> list[Any]:
        """What each rank's worker returns."""
        returned: list[Any] = [None] * self.world
        errors: list[BaseException] = []

        def call(number: int) -> None:
            self._local.rank = number
            try:
                returned[number] = worker(number)
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=call, args=(number,)) for number in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        assert not errors
        return returned

    def _meet(self, value: Any, use: Callable[[list[Any]], Any]) -> Any:
        """What is made of all ranks' values before any of them goes on."""
        self._slots[self._local.rank] = value
        self._barrier.wait()
        used = use(self._slots)
        self._barrier.wait()
        return used

    def _broadcast(self, tensor: Tensor, src: int) -> None:
        if self._local.rank == src:
            self._meet(tensor, lambda _: None)
        else:
            self._meet(tensor, lambda all_: tensor.copy_(all_[src]))
            self.received[self._local.rank]["broadcast"] += tensor.nbytes

    def _all_reduce(self, tensor: Tensor, op: Any) -> None:
        reduce = {dist.ReduceOp.SUM: torch.sum, dist.ReduceOp.MAX: torch.amax}[op]
        tensor.copy_(self._meet(tensor, lambda all_: reduce(torch.stack(all_), 0)))
        self.received[self._local.rank]["all_reduce"] += 2 * tensor.nbytes * (self.world - 1) // self.world

    def _all_gather_object(self, gathered: list[Any], value: Any) -> None:
        sent = io.BytesIO()
        _WithoutTensors(sent).dump(value)
        gathered[:] = self._meet(sent.getvalue(), lambda all_: list(map(pickle.loads, all_)))
        self.received[self._local.rank]["objects"] += len(sent.getvalue())


class _WithoutTensors(pickle.Pickler):
    def reducer_override(self, value: object) -> Any:
        assert not isinstance(value, Tensor), "tensors are no objects to be gathered"
        return NotImplemented


def _whole(captions: tuple[int, ...] = CAPTIONS) -> tuple[Head, PairCaches]:
    """GLSCL with caches of random features, of half precision and with masks, two videos the same."""
    torch.manual_seed(0)
    options = head_class("glscl").Options.model_validate({"queries": 2, "layers": 1, "attention_heads": 2})
    head = build_head("glscl", WIDTH, options, (4, 3)).eval()
    texts, videos = sum(captions), len(captions)
    frames, mask = torch.randn(videos, 3, WIDTH), torch.ones(videos, 3, dtype=torch.bool)
    frames[6], mask[2, 1:] = frames[3], False
    with torch.no_grad():
        text = head.encode_text(torch.randn(texts, WIDTH), torch.randn(texts, 4, WIDTH), torch.ones(texts, 4))
        video = head.encode_video(frames, mask)
    video["frames"] = video["frames"].bfloat16()
    return head, PairCaches(Caches.of(text), Caches.of(video), captions)


def _share(whole: PairCaches, cuts: list[int], number: int) -> PairCaches:
    """The videos of one rank, in tensors of its own."""
    place = torch.arange(len(whole.video))
    part = whole.select((place >= cuts[number]) & (place < cuts[number + 1]))
    sides = (
        Caches.of({name: tensor.clone() for name, tensor in side.read(range(len(side)), CPU).items()})
        if len(side)
        else side
        for side in (part.text, part.video)
    )
    return PairCaches(*sides, part.captions)


def _rank(head: Head, caches: PairCaches, config: EvaluationConfig) -> tuple[Ranks, Ranks]:
    return rank_over_ranks(head, caches, gather_objects(RankShare.of(caches)), config, CPU)


def _expected(head: Head, whole: PairCaches, block: int = 256) -> tuple[Ranks, Ranks]:
    sides = (side.read(range(len(side)), CPU) for side in (whole.text, whole.video))
    result = evaluate_scores(head, *sides, whole.text_to_video, text_block=block, video_block=block)
    return result.text_to_video, result.video_to_text


def _plain(ranks: tuple[Ranks, Ranks]) -> list[list[int]]:
    return [tensor.tolist() for one in ranks for tensor in (one.optimistic, one.pessimistic)]


@pytest.mark.parametrize(
    "cuts", [[0, 6, 11], [0, 3, 3, 5, 11], [0, 11, 11, 11, 11], [0, 0, 0, 4, 11]], ids=lambda cuts: str(cuts)
)
@pytest.mark.parametrize("memory", [1, 2048])
def test_any_share_of_the_videos_gives_the_ranks_of_one_process(
    cuts: list[int], memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, whole = _whole()
    expected = _plain(_expected(head, whole))
    assert expected[0] != expected[1], "there is a tie"
    config = EvaluationConfig(text_block=3, video_block=2, memory_mb=memory)
    ranks = ThreadRanks(len(cuts) - 1, monkeypatch)
    found = ranks.run(lambda number: _rank(head, _share(whole, cuts, number), config))
    assert [_plain(one) for one in found] == [expected] * ranks.world


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("visits", [1, 3])
def test_a_rank_receives_each_peers_videos_once_a_visit(
    world: int, visits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts do not travel; what else does is a few numbers per text and video."""
    videos = 240
    head, whole = _whole((1,) * videos)
    cuts = [videos * number // world for number in range(world + 1)]
    config = EvaluationConfig(text_block=8, video_block=40)
    # So much that a third of a rank's texts are a group: of whole blocks, and a little of a block over.
    per_text = whole.text.layout.row_bytes + 4 * videos
    groups = -(-videos // world // visits // 8) * 8
    monkeypatch.setattr(
        "glscl.evaluation.embed.Scorer",
        lambda *scorer: Scorer(*scorer[:-1], 2 * groups * per_text if visits > 1 else 1 << 30),
    )
    ranks = ThreadRanks(world, monkeypatch)
    found = ranks.run(lambda number: _rank(head, _share(whole, cuts, number), config))
    assert [_plain(one) for one in found] == [_plain(_expected(head, whole, 8))] * world
    for number, received in enumerate(ranks.received):
        peers = videos - (cuts[number + 1] - cuts[number])
        assert received["broadcast"] == visits * peers * whole.video.layout.row_bytes
        assert received["all_reduce"] <= 2 * (16 * videos + (4 + 16) * videos + 8)
        assert received["objects"] <= 3 * videos / world + 1000


def test_held_out_scores_are_those_of_one_process(
    make_shards: Callable[..., ShardSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "rank-scoring-test.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    clip.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    shard_set = make_shards("a", captions=[1, 2, 1, 3, 1, 1, 2], bad=dict.fromkeys((5,), b"torn"))
    config = RunConfig.model_validate({
        "data": {"validation": [shard_set.uri], "loader_workers": 0},
        "model": {"clip": str(clip), "head": "mean_pool", "max_words": 8, "max_frames": 2},
    })  # fmt: skip
    torch.manual_seed(0)
    model: Any = Retriever(config.model).eval()

    class Sender:
        def report_unusable(self, part: str, entries: object) -> None: ...

    def score(_: int) -> dict[str, float]:
        quarantine = Quarantine(None, 0.5, "knob")
        parts: Any = (build_tokenizer(config.model), CPU, ActivityTable(0), quarantine, Sender())
        held_out: Any = HeldOut(config, FrameSampling(2, 1.0, 32), *parts)
        found: dict[str, float] = held_out.score(model)
        return found

    expected = score(0)
    assert 0 < expected["validation/a/text_to_video_R@5"] <= 100
    assert ThreadRanks(4, monkeypatch).run(score) == [expected] * 4


def _gloo(number: int) -> list[list[int]]:
    assert (rank(), world_size()) == (number, 2)
    head, whole = _whole()
    return _plain(_rank(head, _share(whole, [0, 4, 11], number), EvaluationConfig(text_block=3, video_block=2)))


def test_two_processes(tmp_path: Path) -> None:
    assert start(_gloo, 2, tmp_path) == [_plain(_expected(*_whole()))] * 2


def test_nan_on_one_rank_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    head, whole = _whole()
    whole.text.read(range(1), CPU)["sentence"][0] = torch.nan
    ranks = ThreadRanks(2, monkeypatch)
    with pytest.raises(UserError, match="NaN"):
        ranks.run(lambda number: _rank(head, _share(whole, [0, 4, 11], number), EvaluationConfig()))
