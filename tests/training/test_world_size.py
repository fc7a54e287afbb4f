"""Loss and every parameter's gradient are those of one process, at any number of ranks and chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss

from glscl.errors import UserError
from glscl.losses import LossConfig, term_names
from glscl.models import Retriever, head_names
from glscl.training import global_batch as global_batch_module
from glscl.training.collectives import world_size
from glscl.training.global_batch import backward_global_batch, step_loss
from tests.training.ranks import (
    CASES,
    TOLERANCE,
    Result,
    build_model,
    check,
    global_batch,
    mean,
    start,
    step,
    write_clip,
)

WITHOUT_PARTS = LossConfig.model_validate({"contrastive_score_consistency": {"weight": 0.0}})


def _worker(rank: int, clip: str) -> tuple[dict[tuple[str, int], Result], tuple[Result, Result]]:
    steps = {(name, parts): step(case, clip, rank, parts) for name, case in CASES.items() for parts in (1, 2)}
    return steps, _siglip(clip, rank, world_size())


def _siglip(clip: str, rank: int, world: int) -> tuple[Result, Result]:
    """Loss and gradients of the sigmoid loss of eight texts with a video each, by this project and by open_clip."""
    generator = torch.Generator().manual_seed(2)
    whole = F.normalize(torch.randn(2, 8, 16, generator=generator), dim=-1)
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    results = []
    for theirs in (False, True):
        text, video = (side[share].clone().requires_grad_() for side in whole)
        model = build_model(CASES["mean_pool-sigmoid"], clip)
        if theirs:
            criterion = SigLipLoss(rank=rank, world_size=world)
            losses = {"sigmoid": criterion(video, text, model.logit_scale.exp(), model.logit_bias)}
        else:
            config = LossConfig.model_validate(CASES["mean_pool-sigmoid"]["loss"])
            caches = {"sentence": text}, {"pooled": video}
            losses = {"sigmoid": step_loss(model, config, *caches, torch.arange(8)[share])["total"]}
        losses["sigmoid"].backward()
        shared = {"scale": model.logit_scale.grad, "bias": model.logit_bias.grad}
        found, averaged = mean({"sigmoid": losses["sigmoid"].detach()}, shared)
        results.append((found, averaged | {"text": text.grad, "video": video.grad}))
    return results[0], results[1]


def test_the_sigmoid_loss_is_open_clips_in_one_process(clip: str) -> None:
    check(*_siglip(clip, 0, 1), TOLERANCE)


def test_every_head_and_loss_has_a_case() -> None:
    assert {case["head"] for case in CASES.values()} == set(head_names())
    assert {name for case in CASES.values() for name in case["loss"]} | {"contrastive"} == set(term_names())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def one_process(clip: str) -> dict[str, Result]:
    return {name: step(case, clip, 0, 1) for name, case in CASES.items()}


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_and_chunks(world: int, clip: str, one_process: dict[str, Result], tmp_path: Path) -> None:
    ranks = start(_worker, world, tmp_path, clip)
    results = ranks[0][0]
    assert len(results) == 2 * len(one_process)
    for (name, _), result in results.items():
        check(result, one_process[name], CASES[name].get("tolerance", TOLERANCE))
    whole = _siglip(clip, 0, 1)[1][0]["sigmoid"]
    for _, (ours, theirs) in ranks:
        check(ours, theirs, TOLERANCE)
        assert ours[0]["sigmoid"].item() == pytest.approx(whole.item(), rel=TOLERANCE)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
@pytest.mark.parametrize("name", sorted(CASES))
def test_chunks_in_one_process(name: str, accumulate: int, clip: str, one_process: dict[str, Result]) -> None:
    case = CASES[name]
    check(step(case, clip, 0, accumulate), one_process[name], case.get("tolerance", TOLERANCE))


def _opposed(clip: str, rank: int, world: int) -> float:
    """Gradient of a logit scale above its limit, where the first half of the pairs wants more and the rest far less."""
    model = build_model(CASES["mean_pool-scale-above-limit"], clip)
    text = torch.eye(4, 16)
    video = text[[0, 1, 3, 2]]  # the last two are each other's
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    caches = {"sentence": text[share]}, {"pooled": video[share] * 0.99 + 0.01}
    step_loss(model, LossConfig(), *caches, torch.arange(4)[share])["total"].backward()
    assert model.logit_scale.grad is not None
    return model.logit_scale.grad.item()


def _opposed_worker(rank: int, clip: str) -> float:
    return _opposed(clip, rank, 2)


def test_a_scale_above_its_limit_goes_by_the_mean_gradient(clip: str, tmp_path: Path) -> None:
    expected = _opposed(clip, 0, 1)
    assert expected > 0
    assert start(_opposed_worker, 2, tmp_path, clip) == pytest.approx([expected] * 2, rel=TOLERANCE)


def test_accumulation_replays_dropout(clip: str) -> None:
    """A step in chunks back-propagates the losses that it reports: the same masks in both passes."""
    case = CASES["glscl-official"]
    config = LossConfig.model_validate(case["loss"])

    def step(shift: float) -> tuple[Retriever, float]:
        model = build_model(case, clip, dropout=0.5)
        with torch.no_grad():
            model.head.queries.add_(shift * direction)
        torch.manual_seed(3)
        losses = backward_global_batch(model, lambda loss, last: loss.backward(), config, global_batch(), 2)
        return model, losses["total"].item()

    direction = torch.randn(3, 16, generator=torch.Generator().manual_seed(4))
    slope = (step(1e-2)[1] - step(-1e-2)[1]) / 2e-2
    model, _ = step(0.0)
    assert (model.head.queries.grad * direction).sum().item() == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_cache_that_the_loss_does_not_use_is_no_error(accumulate: int, clip: str) -> None:
    """Without the global part, GLSCL's sentence features lead nowhere, and the text tower learns from tokens alone."""
    model = build_model(CASES["glscl-official"], clip)
    model.head.options = model.head.options.model_copy(update={"use_global": False})
    backward_global_batch(model, lambda loss, last: loss.backward(), LossConfig(), global_batch(), accumulate)
    assert model.head.queries.grad is not None


def test_one_process_scores_once_and_goes_backward_once(clip: str) -> None:
    model = build_model(CASES["mean_pool"], clip)
    calls: list[str] = []

    def call(mode: str, *arguments: torch.Tensor) -> object:
        calls.append(mode)
        return model(mode, *arguments)

    def backward(loss: torch.Tensor, *, last: bool) -> None:
        calls.append(f"backward, last: {last}")
        loss.backward()

    losses = backward_global_batch(call, backward, WITHOUT_PARTS, global_batch())
    assert sorted(calls) == ["backward, last: True", "match", "provides", "scale", "score", "text", "video"]
    assert not any(loss.requires_grad for loss in losses.values())


def test_a_batch_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        global_batch().frames = torch.ones(1)


def test_generators_stand_after_a_step_in_chunks_where_they_stood_after_its_first_pass(clip: str) -> None:
    """The second pass draws the masks of the first, and the next step draws new ones."""
    model = build_model(CASES["glscl-official"], clip, dropout=0.5)
    states = []

    def call(mode: str, *arguments: torch.Tensor) -> object:
        result = model(mode, *arguments)
        if mode == "scale":
            states.append(torch.get_rng_state())
        return result

    torch.manual_seed(3)
    first = torch.get_rng_state()
    backward_global_batch(call, lambda loss, last: loss.backward(), LossConfig(), global_batch(), 2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert not torch.equal(first, states[0])


def test_a_gpu_s_generator_is_replayed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    device, states, forked = torch.device("cuda:1"), [], []

    @contextmanager
    def fork_rng(devices: list[torch.device]) -> Iterator[None]:
        forked.append(devices)
        yield

    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda of: torch.tensor([of.index]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, of: states.append((state.item(), of)))
    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    state = global_batch_module._random_state(device)
    with global_batch_module._replayed(state, device):
        assert states == [(1, device)]
    cpu = global_batch_module._random_state(torch.device("cpu"))
    assert cpu[1] is None
    with global_batch_module._replayed(cpu, torch.device("cpu")):
        assert states == [(1, device)]
    assert forked == [[device], []]


def test_chunks_must_divide_the_pairs(clip: str) -> None:
    with pytest.raises(UserError, match=r"training\.accumulate"):
        step(CASES["mean_pool"], clip, 0, 3)
