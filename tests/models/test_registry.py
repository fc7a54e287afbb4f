"""Plug-ins of other distributions, in real processes with a real distribution on the path."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

HEAD = """
from glscl.models.heads import Head, register_head
from glscl.options import Options

class DotOptions(Options):
    power: float = 1.0

@register_head("{name}")
class Dot(Head):
    Options = DotOptions
    def __init__(self, width, options):
        super().__init__(width, options)
    def encode_text(self, sentence, tokens, token_mask):
        return {{"sentence": sentence.float()}}
    def encode_video(self, frames, frame_mask):
        return {{"pooled": frames.float().mean(1)}}
    def forward(self, text, video):
        return text["sentence"] @ video["pooled"].T
"""


def _run(
    folder: Path,
    source: str,
    code: str,
    module: str = "dot_head",
    groups: Mapping[str, Mapping[str, str]] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` where a distribution of one module, with these entry points by group, is installed."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = []
    for group, points in (groups or {"glscl.heads": {"dot": module}}).items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def test_a_head_of_another_distribution_is_a_head(tmp_path: Path) -> None:
    code = """
from glscl.models import ModelConfig, head_names
assert head_names() == tuple(sorted(head_names())) and "dot" in head_names()
print(ModelConfig.model_validate({"head": "dot", "heads": {"dot": {"power": 2}}}).heads.dot)
"""
    done = _run(tmp_path, HEAD.format(name="dot"), code)
    assert done.stdout == "power=2.0\n", done.stderr


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    done = _run(tmp_path, HEAD.format(name="mean_pool"), "import glscl.models")
    assert done.returncode
    assert "two plug-ins register the head 'mean_pool'" in done.stderr


def test_a_broken_plug_in_is_named(tmp_path: Path) -> None:
    done = _run(tmp_path, "import nothing_of_that_name", "import glscl.models")
    assert done.returncode
    assert "the head plug-in 'dot' (dot_head) does not import" in done.stderr


TRAIN_THE_DOCUMENTED_HEAD = """
import torch
from glscl.training.config import run_config
from glscl.evaluation.cost import head_cost
from glscl.models import Retriever, tokenize
from glscl.training.global_batch import RankPairs, backward_global_batch

torch.set_num_threads(1)
torch.manual_seed(0)
words = ["--config", "tiny", "--model.head", "log_sum_exp", "--model.heads.log-sum-exp.temperature", "0.05"]
config = run_config(words, "glscl train")
model = Retriever(config.model)
assert model.head.temperature == 0.05

token_ids, _ = tokenize(["a red square", "a blue disc", "two discs meet"], config.model.max_words)
size = model.frame_size
frames = torch.randint(0, 256, (3, config.model.max_frames, 3, size, size), dtype=torch.uint8)
mask = torch.ones(3, config.model.max_frames)
mask[1, 2:] = 0
mask[2] = 0
batch = RankPairs((token_ids,), frames, mask, torch.arange(3))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for accumulate in (1, 3, 1):
    optimizer.zero_grad()
    step = backward_global_batch(model, lambda loss, *, last: loss.backward(), config.loss, batch, accumulate)
    losses.append(step["total"].item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.head.weight.weight.grad.abs().sum() > 0
    optimizer.step()
assert losses[-1] < losses[0], losses

model.eval()
with torch.no_grad():
    text, video = model.encode_text(token_ids), model.encode_video(frames, mask)
    whole = model.score(text, video)
    assert whole.shape == (3, 3) and whole.dtype == torch.float32 and whole.isfinite().all()
    row = model.score({k: v[1:2] for k, v in text.items()}, video)
    assert torch.allclose(row, whole[1:2], atol=1e-6)
    frames[1, 2:] = 255
    assert torch.allclose(model.score(text, model.encode_video(frames, mask)), whole, atol=1e-5)

width = model.towers.width
facts = model.head.facts(32, 12)
assert facts.multiply_adds == facts.implemented_multiply_adds == 12 * width
assert (facts.parameters, facts.text_cache) == (width, {"sentence": (width,)})
cost = head_cost("log_sum_exp", config.model.heads.log_sum_exp, width, 32, 12, budget=0)
assert cost.counted == cost.declared == 12 * width
print("trained")
"""


def test_the_documented_head_is_installed_configured_trained_and_measured(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "heads.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (project,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    groups = tomllib.loads(project)["project"]["entry-points"]
    done = _run(tmp_path, source, TRAIN_THE_DOCUMENTED_HEAD, "log_sum_exp", groups)
    assert done.stdout.endswith("trained\n"), done.stderr


TERM = """
from glscl.losses import LossInputs, register_term
from glscl.losses.base import TermOptions

class SmallOptions(TermOptions):
    weight: float = 0.0

@register_term("small", SmallOptions)
def small(options: SmallOptions, inputs: LossInputs):
    return inputs.rows.square().mean()
"""


def test_a_loss_term_of_another_distribution_is_a_term(tmp_path: Path) -> None:
    code = """
import torch
from glscl.training.config import run_config
from glscl.losses import LossInputs, compute_losses
config = run_config(["--loss.small.weight", "0.5"], "glscl train").loss
eye = torch.eye(2, dtype=torch.bool)
print(compute_losses(config, LossInputs(2 * torch.ones(2, 2), torch.ones(2, 2), eye, eye, {}, {}))["small"].item())
"""
    done = _run(tmp_path, TERM, code, "small_term", {"glscl.losses": {"small": "small_term"}})
    assert done.stdout == "2.0\n", done.stderr
