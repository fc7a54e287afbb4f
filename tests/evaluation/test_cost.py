"""What heads cost: counts, memory, and the paper's figures."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from glscl.errors import UserError
from glscl.evaluation.cost import HeadCost, PeakMemory, efficiency_claim, head_cost, paper_counts
from glscl.evaluation.scoring import evaluate_scores
from glscl.models.heads import Features, Head, build_head, head_class, head_names
from glscl.models.heads.xclip import XCLIP
from glscl.options import Options
from glscl.study import results

WIDTH = 20
PAGE = Path(__file__).parents[2] / "docs" / "heads.md"
SMALL = {
    "glscl": {"queries": 3, "layers": 1, "attention_heads": 2, "feedforward": 32},
    "seq_transformer": {"layers": 1, "attention_heads": 2},
    "tight_transformer": {"layers": 1, "attention_heads": 2},
    "xpool": {"attention_heads": 2},
    "dicosa": {"centers": 4},
    "tmass": {"attention_heads": 2, "trials": 3},
    "tcmgc": {"attention_heads": 2, "keep_rate": 0.5},
    **{name: {"layers": 1, "attention_heads": 2} for name in ("uatvr", "agc", "video_colbert")},
}

torch.set_num_threads(1)


def _options(name: str) -> Options:
    return head_class(name).Options.model_validate(SMALL.get(name, {}))


def _cost(name: str, words: int = 6, frames: int = 4) -> HeadCost:
    return head_cost(name, _options(name), WIDTH, words, frames, budget=0)


@pytest.mark.parametrize("lengths", [(6, 4), (5, 9)])
@pytest.mark.parametrize("name", head_names())
def test_every_head_makes_the_multiply_adds_that_it_says(name: str, lengths: tuple[int, int]) -> None:
    cost = _cost(name, *lengths)
    assert cost.counted == cost.implemented > 0
    assert cost.length_tied == head_class(name).length_tied
    assert cost.seconds > 0
    assert cost.peak_bytes >= 4 * cost.measured_texts * cost.measured_videos  # at least the one block of similarities


def test_a_cost_survives_the_file_of_a_study() -> None:
    cost = results.Cost(condition="32/12", variant="xclip", **asdict(_cost("xclip")))
    measured = results.MeasuredCosts(costs=[cost], cost_machine="this", paper_counts=paper_counts())
    assert cost.length_tied == ("words", "frames")
    assert results.MeasuredCosts.model_validate(json.loads(json.dumps(measured.model_dump()))) == measured


def test_bytes_are_those_of_the_caches() -> None:
    cost = _cost("wti")
    assert cost.text_bytes == 6 * (4 * WIDTH + 1 + 4)  # unit features, bool mask and weights
    assert cost.video_bytes == 4 * (4 * WIDTH + 1 + 4)


def test_a_head_whose_formula_is_wrong_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _cost("xclip").implemented
    monkeypatch.setattr(XCLIP, "implemented_multiply_adds", lambda self, words, frames: right - 36)
    with pytest.raises(UserError, match=rf"head 'xclip' says that it makes {right - 36:,} .* torch counts {right:,}:"):
        _cost("xclip")


def test_the_matrix_is_the_largest_within_the_budget() -> None:
    for budget, size in ((WIDTH * 1000**2, 1000), (WIDTH * 1000**2 - 1, 500), (WIDTH * 20**2, 20), (0, 10)):
        cost = head_cost("mean_pool", _options("mean_pool"), WIDTH, 6, 4, budget=budget)
        assert (cost.measured_texts, cost.measured_videos) == (size, size)


def test_measuring_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    _cost("glscl")
    assert torch.equal(torch.rand(2), expected)


def test_peak_memory_of_a_worked_example() -> None:
    before = torch.zeros(100)
    with PeakMemory() as memory:
        view = before[10:]  # of what was there before: nothing
        assert (memory.alive, memory.peak) == (0, 0)
        a = view + 1  # 360
        b = a.view(9, 10).T[2:]  # the same storage
        assert (memory.alive, memory.peak) == (360, 360)
        c = torch.cat([a, a])  # 720 more
        del c
        assert (memory.alive, memory.peak) == (360, 1080)
        del a
        assert memory.alive == 360  # a view keeps its storage
        d = torch.tensor([1.0, 2.0], dtype=torch.float64)  # 16
        d.add_(1)
        assert (memory.alive, memory.peak) == (376, 1080)
        del b
        assert memory.alive == 16
        largest, where = torch.zeros(50, 10).max(1)  # 2000 while there are 200 and 400 of two results
        assert (memory.alive, memory.peak) == (616, 2616)
    outside = torch.ones(1000)
    del d, largest, where
    assert (memory.alive, memory.peak, len(outside)) == (0, 2616, 1000)


def _peak(name: str, items: int, block: int, whole: bool = False) -> int:
    """Most bytes alive beyond the caches while as many texts and videos are ranked, or scored in one call."""
    torch.manual_seed(0)
    head = build_head(name, WIDTH, _options(name), (6, 4)).eval()
    with torch.no_grad():
        text = head.encode_text(torch.randn(items, WIDTH), torch.randn(items, 6, WIDTH), torch.ones(items, 6))
        video = head.encode_video(torch.randn(items, 4, WIDTH), torch.ones(items, 4))
        with PeakMemory() as memory:
            if whole:
                head(text, video)
            else:
                row, visiting = (sum(tensor[0].nbytes for tensor in cache.values()) for cache in (text, video))
                least = 2 * block * max(row + 4 * items, visiting, 12 * items)  # for blocks of this size
                one = {"text_block": block, "video_block": block, "memory": least}
                evaluate_scores(head, text, video, torch.arange(items), **one, k=1)
    return memory.peak


@pytest.mark.parametrize("name", head_names())
def test_memory_follows_the_block_and_not_the_matrix(name: str) -> None:
    items, block = 48, 12
    small, large = _peak(name, items, block), _peak(name, 4 * items, block)
    # A group's similarities, at most three blocks here; of one block two comparisons, one of them in double. Ranks of
    # texts, counts for videos, best matches, occurrences.
    rows, queries = (3 * 4 + 1 + 1 + 8) * block, 2 * (8 + 8) + 2 * (8 + 4) + 2 * 8 + 2 * 8
    assert large - small <= 0.05 * small + (rows + queries) * 3 * items
    assert _peak(name, items, 2 * block) > 1.2 * small
    assert _peak(name, 4 * items, block, whole=True) > 2 * large  # what it is held against


class _Hoarder(Head):
    """Keeps every block it scores."""

    Options = Options

    def __init__(self) -> None:
        super().__init__(WIDTH, Options())
        self.kept: list[torch.Tensor] = []

    def encode_text(self, sentence: torch.Tensor, tokens: torch.Tensor, token_mask: torch.Tensor) -> Features:
        return {"text": sentence}

    def encode_video(self, frames: torch.Tensor, frame_mask: torch.Tensor) -> Features:
        return {"video": frames.mean(1)}

    def forward(self, text: Features, video: Features) -> torch.Tensor:
        self.kept.append(text["text"] @ video["video"].T)
        return self.kept[-1]


def test_memory_that_does_follow_the_matrix_is_seen() -> None:
    head, caches = _Hoarder(), torch.randn(48, WIDTH)
    with PeakMemory() as memory:
        blocks = {"text_block": 12, "video_block": 12, "memory": 2 * 12 * 12 * 48}
        evaluate_scores(head, {"text": caches}, {"video": caches}, torch.arange(48), **blocks)
    assert memory.peak > 4 * 48**2


def test_the_papers_figures_come_from_its_formulas() -> None:
    for count in paper_counts():
        rounding = 0.05 if f"{count.printed:.1f}" == str(count.printed) else 0.005
        assert abs(count.paper - count.printed) <= max(0.01 * count.printed, rounding), count.method
        assert count.fair >= count.paper
    fair = {count.method: count.fair for count in paper_counts()}
    assert fair == pytest.approx(
        {"CLIP4Clip": 0.512, "DiCoSA": 276.992, "X-CLIP": 238.88, "X-Pool": 537.088, "GLSCL": 16.896}
    )


def test_the_papers_ratio_and_the_fair_one() -> None:
    by_method = {count.method: count for count in paper_counts()}
    xclip, glscl = by_method["X-CLIP"], by_method["GLSCL"]
    assert xclip.printed / glscl.printed == pytest.approx(220.9)
    assert xclip.fair / glscl.fair == pytest.approx(14.14, abs=0.01)
    assert re.search(r"221 times .*\(220\.9 / 1\.0.* 14 times \(238\.9 / 16\.9\)\.$", efficiency_claim())


def test_the_documented_table_has_the_counts_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+)/(\d+) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, *_ in rows} == set(head_names())
    for name, words, frames, cells in rows:
        lengths = int(words), int(frames)
        with torch.device("meta"):
            head = build_head(name, 512, head_class(name).Options(), lengths)
        declared, implemented = head.multiply_adds(*lengths), head.implemented_multiply_adds(*lengths)
        expected = [f"{declared:,}", f"{implemented:,}", f"{implemented:,}"]
        assert cells.split(" | ")[:3] == expected, name
        assert cells.split(" | ")[8] == f"{sum(parameter.numel() for parameter in head.parameters()):,}", name
    assert efficiency_claim() in " ".join(PAGE.read_text(encoding="utf-8").split())
