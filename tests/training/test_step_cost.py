"""What a step costs beside its arithmetic is counted: kernels, waits for the device, bytes. No clock is read."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import distributed

from benchmarks.step import Kernels
from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever
from glscl.training import collectives
from glscl.training.engine import backward, build_engine, compile_parts
from glscl.training.global_batch import backward_global_batch, step_loss
from glscl.training.non_finite import NonFiniteSteps
from glscl.training.options import TrainingConfig
from glscl.training.schedule import RunLength
from glscl.training.speed import StepClock, peak, tower_operations
from glscl.training.step_metrics import StepMetrics
from tests.training.ranks import CASES, FRAMES, PAIRS, SIZE, WORDS, build_model, global_batch, start, write_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"))


def _count(rank: int, clip: str) -> dict[tuple[int, str], tuple[float, int]]:
    """Kernels of the engine per parameter beside those of the model, and waits."""
    found = {}
    batch, loss = global_batch(), LossConfig()
    for stage, precision in product((0, 1, 2, 3), ("fp32", "bf16")):
        model = build_model(CASES["mean_pool"], clip)
        config = TrainingConfig.model_validate({"precision": precision, "zero_stage": stage})
        engine = build_engine(model, config, torch.device("cpu"), 1)
        metrics, non_finite = StepMetrics(RunLength(9, 9, 9, 9), PAIRS, 0.0), NonFiniteSteps()
        bare = build_model(CASES["mean_pool"], clip)
        bare = bare.bfloat16() if precision == "bf16" else bare
        for _ in range(3):  # the last one counts
            with Kernels() as counted:
                engine.train()
                losses = backward_global_batch(engine, partial(backward, engine), loss, batch)
                engine.step()
                metrics.count(losses, batch.frame_mask)
                non_finite.count(1, ["a"], losses, engine.get_global_grad_norm())
        with Kernels() as without:
            backward_global_batch(bare, lambda loss, *, last: loss.backward(), loss, batch)
        kernels = (counted.kernels - without.kernels) / len(list(bare.parameters()))
        found[stage, precision] = kernels, counted.waits
    return found


@pytest.fixture(scope="module")
def counts(clip: str, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], tuple[float, int]]:
    found: dict[tuple[int, str], tuple[float, int]] = start(_count, 1, tmp_path_factory.mktemp("counts"), clip)[0]
    return found


@pytest.mark.parametrize(
    ("stage", "precision", "most"),
    [(0, "fp32", 5), (0, "bf16", 25)]  # DeepSpeed's optimiser of this one looks for infinities in every parameter
    + [(stage, precision, most) for stage, most in ((1, 5), (2, 5), (3, 10)) for precision in ("fp32", "bf16")],
)
def test_kernels_of_the_engine(
    stage: int, precision: str, most: int, counts: dict[tuple[int, str], tuple[float, int]]
) -> None:
    """Kernels per parameter, and waits under ZeRO 1 and 2."""
    kernels, waits = counts[stage, precision]
    assert 0 < kernels < most
    if stage in (1, 2):
        assert waits == 0


def test_bytes_gathered(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caches of a rank's pairs and their numbers, once each, and nothing of the other ranks'."""
    sent: list[int] = []

    def all_gather(received: list[torch.Tensor], tensor: torch.Tensor) -> None:
        sent.append(tensor.nbytes)
        for one in received:
            one.copy_(tensor)

    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr("glscl.training.global_batch.world_size", lambda: 2)
    monkeypatch.setattr("glscl.training.global_batch.rank", lambda: 0)
    monkeypatch.setattr(distributed, "all_gather", all_gather)
    model, batch = build_model(CASES["glscl-official"], clip), global_batch()
    text, video = model.encode_text(*batch.text), model.encode_video(batch.frames, batch.frame_mask)
    terms = LossConfig.model_validate({"inter_consistency": {"weight": 0}, "intra_diversity": {"weight": 0}})
    step_loss(model, terms, text, video, batch.video_ids)
    assert sum(sent) == batch.video_ids.nbytes + sum(cache.nbytes for cache in (*text.values(), *video.values()))


@pytest.mark.parametrize(
    ("head", "backend"),
    [
        *product(("glscl-corrected", "mean_pool", "xclip", "wti", "frozen", "adapters"), ("aot_eager",)),
        pytest.param("glscl-corrected", "inductor", marks=pytest.mark.slow),
        *(
            pytest.param(head, backend, marks=pytest.mark.exhaustive)
            for head, backend in (
                *product(("mean_pool", "xclip", "wti", "frozen", "adapters"), ("inductor", "eager")),
                ("glscl-corrected", "eager"),
            )
        ),
    ],
)
def test_compiled_parts_compute_the_same(head: str, backend: str, clip: str) -> None:
    """Loss and gradients, and the names in the state are what they were."""
    torch.compiler.reset()
    results = []
    for compiled in (False, True):
        model = build_model(CASES[head], clip).eval()
        if compiled:
            compile_parts(model, backend)
        loss = LossConfig.model_validate(CASES[head]["loss"])
        losses = backward_global_batch(model, lambda loss, *, last: loss.backward(), loss, global_batch())
        results.append(
            (
                losses["total"],
                {name: p.grad for name, p in model.named_parameters() if p.requires_grad},
                list(model.state_dict()),
            )
        )
    (loss, grads, names), (compiled_loss, compiled_grads, compiled_names) = results
    assert compiled_names == names
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-4, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(compiled_grads[name], grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("options", "compiles"),
    [
        ({"use_gpu": True}, True),
        ({"use_gpu": False}, False),
        ({"use_gpu": True, "zero_stage": 3}, False),
        ({"use_gpu": False, "compile": True}, True),
        ({"use_gpu": True, "compile": False}, False),
    ],
)
def test_where_compiling_pays(options: dict[str, Any], compiles: bool) -> None:
    assert TrainingConfig.model_validate(options).compiles == compiles


def test_operations_of_the_towers(clip: str) -> None:
    """Counted again, matrix by matrix; a backward pass is twice a forward one."""
    model = build_model(CASES["mean_pool"], clip)

    def transformer(tokens: int, width: int, layers: int) -> int:
        return layers * (tokens * width * (3 + 1 + 8) * width + 2 * tokens * tokens * width)

    visual, text = model.towers.visual, model.towers.text
    width = visual.conv1.weight.shape[0]
    patch = visual.conv1.weight.shape[-1]
    patches = (SIZE // patch) ** 2
    picture = patches * width * 3 * patch**2
    picture += transformer(patches + 1, width, len(visual.transformer.resblocks)) + width * model.towers.width
    words = transformer(WORDS, text.width, len(text.transformer.resblocks)) + WORDS * text.width * model.towers.width
    assert tower_operations(model, WORDS, FRAMES) == 3 * 2 * (FRAMES * picture + words)


@pytest.mark.parametrize(
    ("name", "tera"), [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-40GB", 312)]
)
def test_peaks_of_data_sheets(name: str, tera: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak(torch.device("cuda"), torch.bfloat16) == tera * 1e12


def test_peak_that_is_measured() -> None:
    assert 1e8 < peak(torch.device("cpu"), torch.float32) < 1e15


def test_where_the_time_of_a_step_goes(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of this clock is a second later than the one before."""
    seconds = iter(range(1000))
    monkeypatch.setattr("glscl.training.speed.time.perf_counter", lambda: next(seconds))
    clock = StepClock(torch.device("cpu"))
    model = build_model(CASES["mean_pool"], clip)
    assert clock.timed(model) is model, "nothing is looked at"
    clock.enter("data")
    clock.stop()
    assert clock.seconds() == {}
    clock.start()
    clock.enter("data")
    order: list[str] = []
    enter = clock.enter
    monkeypatch.setattr(clock, "enter", lambda what: (order.append(what), enter(what))[1])
    backward_global_batch(clock.timed(model), lambda loss, *, last: loss.backward(), LossConfig(), global_batch())
    clock.enter("optimiser")
    clock.stop()
    assert order[:4] == ["towers", "head and loss", "towers", "head and loss"]
    assert order[-2:] == ["optimiser", ""]
    assert order.count("towers") == 4, "two passes forward, two backward"
    assert order.index("communication") < order.index("towers", 4)
    found = clock.seconds()
    assert sum(found.values()) == len(order)
    assert set(found) == {"data", "towers", "head and loss", "communication", "optimiser"}
    assert clock.seconds() == {}, "told once"


def test_an_unknown_retriever_is_as_before(clip: str) -> None:
    """Compiling in place leaves a model that saves, loads and scores as others do."""
    config = ModelConfig(clip=clip, max_words=WORDS, max_frames=FRAMES)
    torch.manual_seed(0)
    model = Retriever(config).eval()
    compile_parts(model, "eager")
    other = Retriever(config).eval()
    other.load_state_dict(model.state_dict())
    batch = global_batch()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        compiled, plain = (m.encode_text(*batch.text) for m in (model, other))
    assert all(torch.equal(compiled[name], plain[name]) for name in plain)
