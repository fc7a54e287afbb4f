"""Measure what each head costs: operations, latency, memory and parameters.

    python benchmarks/head_cost.py [--threads 1] [--device cpu] [--budget 3e10]

Measures every head, those of installed plug-ins included, with its default options at feature width 512, with 32 words
and 12 frames and with 64 of both, and prints a table; then the GLSCL paper's own count beside a fair one. Latency is
per pair, as a multiple of mean_pool's; all heads take turns twice and the faster time of each counts, because a shared
machine's speed drifts. One to three minutes on one core.
"""

from __future__ import annotations

import argparse

import torch

from glscl.evaluation.cost import BUDGET, HeadCost, efficiency_claim, head_cost, paper_counts
from glscl.models.heads import head_class, head_names

WIDTH = 512
LENGTHS = ((32, 12), (64, 64))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="cores")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--budget", type=float, default=BUDGET, help="multiply-adds of one scoring of a matrix")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    def measure(name: str, words: int, frames: int) -> HeadCost:
        head_options = head_class(name).Options()
        budget = int(options.budget)
        return head_cost(name, head_options, WIDTH, words, frames, device=options.device, budget=budget)

    print(
        "| head | words/frames | MAC declared | implemented | counted | latency | matrix | peak, MB "
        "| text, kB | video, kB | parameters | tied to |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for words, frames in LENGTHS:
        costs: dict[str, HeadCost] = {}
        for name in 2 * head_names():
            cost = measure(name, words, frames)
            costs[name] = min(cost, costs.get(name, cost), key=lambda cost: cost.seconds)
        for name, cost in sorted(costs.items(), key=lambda item: item[1].declared):
            ratio = _seconds_per_pair(cost) / _seconds_per_pair(costs["mean_pool"])
            print(
                f"| `{name}` | {words}/{frames} | {cost.declared:,} | {cost.implemented:,} | {cost.counted:,.0f} "
                f"| {_short(ratio)} | {cost.measured_texts} × {cost.measured_videos} | {cost.peak_bytes / 1e6:.1f} "
                f"| {cost.text_bytes / 1e3:.1f} | {cost.video_bytes / 1e3:.1f} "
                f"| {cost.parameters:,} | {', '.join(cost.length_tied) or '–'} |",
                flush=True,
            )
    print("\n| method | per pair, as the paper counts | 10⁹ MAC by that | printed | fair |\n|---|---|---|---|---|")
    for count in paper_counts():
        print(f"| {count.method} | {count.formula} | {count.paper:.2f} | {count.printed} | {count.fair:.2f} |")
    print(f"\n{efficiency_claim()}")


def _seconds_per_pair(cost: HeadCost) -> float:
    return cost.seconds / (cost.measured_texts * cost.measured_videos)


def _short(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{float(f'{ratio:.2g}'):,.0f}"


if __name__ == "__main__":
    main()
