"""Heads as they are built: the options' defaults and limits, where parameters start, what dropout and autocast do."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from glscl.errors import UserError
from glscl.models.heads import Features, Head, build_head, head_class, head_names, scoring
from glscl.models.options import HeadsConfig
from glscl.models.scores import tiles

DEFAULTS: dict[str, dict[str, Any]] = {
    "glscl": {"tau": 3.0, "local_weight": 0.5, "queries": 8, "layers": 3, "attention_heads": 8, "feedforward": None}
    | {"dropout": 0.1, "mask_padding": True, "use_global": True, "use_local": True},
    "glccl": {"tau": 5.0, "mask_padding": True},
    "dicosa": {"tau": 3.0, "centers": 8, "mask_padding": True},
    "seq_transformer": {"layers": 4, "attention_heads": None, "positions": 77},
    "tight_transformer": {"layers": 4, "attention_heads": None, "positions": 77, "dropout": 0.1},
    "xpool": {"attention_heads": 1, "dropout": 0.3, "mask_padding": True},
    "wti": {"mask_padding": True},
    "xclip": {"mask_padding": True},
    "gare": {"tau": 3.0, "dropout": 0.3, "mask_padding": True},
    "tmass": {"attention_heads": 1, "dropout": 0.3, "prior": "uniform", "prior_std": 1.0, "trials": 20, "seed": 24}
    | {"mask_padding": True},
    "uatvr": {"layers": 4, "attention_heads": None, "positions": 77, "extra_text_tokens": 2, "extra_video_tokens": 2}
    | {"text_samples": 7, "video_samples": 7, "mask_padding": True},
    "agc": {"vectors": 5, "queries": 4, "layers": 4, "attention_heads": None, "positions": 77, "pooling": "cluster"}
    | {"weights": "saliency", "centroid_weight": 1.0, "mask_padding": True},
    "tcmgc": {"attention_heads": 1, "keep_rate": 0.1, "softmax_lambda": 100.0, "dropout": 0.3, "mask_padding": True},
    "video_colbert": {"layers": 4, "attention_heads": None, "positions": 77, "expansion_tokens": 2}
    | {"logit_scale": 10.0, "logit_bias": -10.0, "mask_padding": True},
}
"""What the authors train with."""
LIMITS: list[tuple[str, str, list[float], list[float]]] = [
    *((head, "tau", [0.25, 7.0], [0.0, -0.5]) for head in ("glscl", "glccl", "dicosa", "gare")),
    *(
        (head, "dropout", [0.0, 0.75], [1.0, -0.5])
        for head in ("glscl", "tight_transformer", "xpool", "gare", "tmass", "tcmgc")
    ),
    *((head, "attention_heads", [1, 2], [0, -1]) for head in ("tmass", "uatvr", "agc", "tcmgc", "video_colbert")),
    *(
        (head, option, [1, 2], [0, -1])
        for head in ("uatvr", "agc", "video_colbert")
        for option in ("layers", "positions")
    ),
    *(("agc", option, [1, 2], [0, -1]) for option in ("vectors", "queries")),
    *(("uatvr", option, [0, 2], [-1]) for option in ("extra_text_tokens", "extra_video_tokens")),
    *(("uatvr", option, [1, 2], [0, -1]) for option in ("text_samples", "video_samples")),
    ("agc", "centroid_weight", [0.5, 2.0], [0.0, -1.0]),
    ("tmass", "prior_std", [0.003, 2.0], [0.0, -1.0]),
    ("tmass", "trials", [1, 2], [0, -1]),
    ("tmass", "seed", [0, 2], [-1]),
    ("tcmgc", "keep_rate", [0.1, 1.0], [0.0, 1.1]),
    ("tcmgc", "softmax_lambda", [0.1, 100.0], [0.0, -1.0]),
    ("video_colbert", "expansion_tokens", [1, 2], [0, -1]),
    ("video_colbert", "logit_scale", [0.1, 118.0], [0.0, -1.0]),
    *(("glscl", option, [1, 2], [0, -1]) for option in ("queries", "layers", "attention_heads", "feedforward")),
    *(("seq_transformer", option, [1, 2], [0, -1]) for option in ("layers", "attention_heads", "positions")),
    *(("tight_transformer", option, [1, 2], [0, -1]) for option in ("layers", "attention_heads")),
    ("tight_transformer", "positions", [2, 3], [1, 0]),
    ("xpool", "attention_heads", [1, 2], [0, -1]),
    ("dicosa", "centers", [1, 2], [0, -1]),
]
"""Head, option, values that are taken and values that are refused."""


def _build(name: str, width: int = 64, lengths: tuple[int, int] = (6, 4), **options: object) -> Any:
    torch.manual_seed(0)
    return build_head(name, width, head_class(name).Options.model_validate(options), lengths)


def _inputs(width: int = 64, texts: int = 3, videos: int = 5) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    torch.manual_seed(1)
    text = torch.randn(texts, width), torch.randn(texts, 6, width), torch.ones(texts, 6)
    return text, (torch.randn(videos, 4, width), torch.ones(videos, 4))


def _encode(head: Head, **sizes: int) -> tuple[Features, Features]:
    text, video = _inputs(head.width, **sizes)
    return head.encode_text(*text), head.encode_video(*video)


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_defaults_are_the_authors(name: str) -> None:
    found = getattr(HeadsConfig(), name).model_dump()
    assert {option: found[option] for option in DEFAULTS[name]} == DEFAULTS[name]


@pytest.mark.parametrize(("name", "option", "taken", "refused"), LIMITS)
def test_limits_of_options(name: str, option: str, taken: list[float], refused: list[float]) -> None:
    for value in taken:
        assert getattr(head_class(name).Options.model_validate({option: value}), option) == value
    for value in refused:
        with pytest.raises(ValidationError, match=option):
            head_class(name).Options.model_validate({option: value})


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("dicosa", ("hidden", "weight")),
        ("tight_transformer", ("dense", "similarity")),
        *(
            (name, ("text_weight_fc.0", "text_weight_fc.2", "video_weight_fc.0", "video_weight_fc.2"))
            for name in ("wti", "uatvr")
        ),
        ("gare", ("q_proj", "k_proj", "v_proj", "out_proj", "linear_proj", "mean_proj")),
        ("tcmgc", ("linear_proj",)),
        ("uatvr", ("pie_net_text.fc", "uncertain_net_video.fc", "uncertain_net_video.fc2")),
    ],
)
def test_linear_layers_start_small(name: str, layers: tuple[str, ...]) -> None:
    head = _build(name, width=256)
    for layer in layers:
        linear = head.get_submodule(layer)
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.2), layer
        assert linear.bias.eq(0).all()


def test_the_pooled_sentence_is_normed_with_the_authors_offset() -> None:
    assert _build("tight_transformer", layers=1).ln_pool.eps == 1e-12


@pytest.mark.parametrize(("name", "maps"), [("xpool", 5), ("tmass", 6)])
def test_xpools_maps_start_as_the_identity(name: str, maps: int) -> None:
    head = _build(name, width=16)
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == maps
    for linear in linears:
        assert torch.equal(linear.weight, torch.eye(*linear.weight.shape))
        assert linear.bias.eq(0).all()


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("glccl", {"global_mat_weight": 64, "local_mat_weight": 64, "word_logit_weight": 6, "word_mat_weight2": 6}),
        ("xclip", {"global_mat_weight": 64, "local_mat_weight": 64, "word_mat_weight": 6, "frame_mat_weight": 4}),
    ],
)
def test_score_attention_starts_as_the_identity(name: str, sides: dict[str, int]) -> None:
    head = _build(name)
    for parameter, side in sides.items():
        assert torch.equal(head.get_parameter(parameter), torch.eye(side))
    assert all(torch.equal(parameter, torch.eye(len(parameter))) for parameter in head.parameters())


def test_glscl_is_built_as_its_options_say() -> None:
    head = _build("glscl", queries=5, layers=2, attention_heads=4)
    assert head.queries.shape == (5, 64)
    assert 0 <= head.queries.min() < 0.1 < 0.9 < head.queries.max() <= 1
    assert [layer.linear1.out_features for layer in head.decoder.layers] == [256, 256]
    assert {layer.self_attn.num_heads for layer in head.decoder.layers} == {4}
    assert _build("glscl", feedforward=24).decoder.layers[0].linear1.out_features == 24


@pytest.mark.parametrize("name", ["seq_transformer", "tight_transformer", "uatvr", "agc", "video_colbert"])
@pytest.mark.parametrize(("width", "expected"), [(16, 1), (64, 1), (192, 3), (252, 3)])
def test_one_attention_head_per_64_of_the_width(name: str, width: int, expected: int) -> None:
    assert _build(name, width=width, layers=1).context.resblocks[0].attn.num_heads == expected
    assert _build(name, width=width, layers=1, attention_heads=2).context.resblocks[0].attn.num_heads == 2


@pytest.mark.parametrize("name", ["seq_transformer", "tight_transformer", "uatvr", "agc", "video_colbert"])
def test_position_tables_and_layers_have_the_sizes_asked_for(name: str) -> None:
    head = _build(name, layers=2, positions=9)
    assert len(head.context.resblocks) == 2
    assert head.context.position_embeddings.weight.shape == (9, 64)


@pytest.mark.parametrize("name", ["seq_transformer", "tight_transformer"])
def test_as_many_frames_as_positions_are_taken(name: str) -> None:
    positions = 4 if name == "seq_transformer" else 5  # the sentence has one of its own
    assert _build(name, positions=positions).eval()(*_encode(_build(name, positions=positions))).shape == (3, 5)


def test_only_another_length_than_that_of_the_parameters_is_refused() -> None:
    head = _build("xclip")
    head.frames = int("300")
    head.check_length("frames", int("300"))
    with pytest.raises(UserError, match="parameters for 300 frames and cannot take 299"):
        head.check_length("frames", 299)


@pytest.mark.parametrize("name", ["glscl", "tight_transformer", "xpool", "gare", "tmass", "tcmgc"])
def test_dropout_is_that_of_the_options_and_of_training_only(name: str) -> None:
    for rate in (0.0, 0.25):
        head = _build(name, dropout=rate)
        assert {module.p for module in head.modules() if isinstance(module, nn.Dropout)} == {rate}
    head = _build(name, dropout=0.5)
    text, video = _inputs()
    first, second = (head(head.encode_text(*text), head.encode_video(*video)) for _ in range(2))
    assert not torch.allclose(first, second)
    head.eval()
    first, second = (head(head.encode_text(*text), head.encode_video(*video)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", head_names())
def test_scores_are_float32_under_autocast(name: str) -> None:
    head = _build(name).eval()
    text, video = _encode(head)
    expected = head(text, video)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(text, video)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [("glccl", {}), ("xclip", {}), ("mean_pool", {}), ("dicosa", {}), ("glscl", {"use_local": False})],
)
def test_caches_are_float32_under_autocast(name: str, options: dict[str, object]) -> None:
    head = _build(name, **options).eval()
    expected = _encode(head)
    with torch.autocast("cpu", torch.bfloat16):
        found = _encode(head)
    for these, those in zip(found, expected, strict=True):
        assert these.keys() == those.keys()
        assert all(torch.equal(tensor, those[key]) for key, tensor in these.items())


@pytest.mark.parametrize("name", sorted({*head_names()} - {"tight_transformer"}))
def test_nothing_to_score_is_no_error(name: str) -> None:
    head = _build(name).eval()
    text, video = _encode(head)
    nothing = {key: tensor[:0] for key, tensor in video.items()}
    assert head(text, nothing).shape == (3, 0)
    assert head({key: tensor[:0] for key, tensor in text.items()}, video).shape == (0, 5)


class _Largest(TorchDispatchMode):
    """Counts the numbers in the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize(
    ("name", "frames", "expected", "largest"),
    [
        ("xclip", 4, 6 * 4, 6 * 4),
        ("glccl", 4, 7 * 4, 6 * 6),  # word by word, which is held for a few videos at a time
        ("glccl", 9, 7 * 9, 7 * 9),
        ("xpool", 4, 4 + 2, 4 + 2),
        ("dicosa", 4, 4 * 64, 4 * 64),
        ("tight_transformer", 4, 4 * 5 * 64, 4 * 5 * 64),
    ],
)
def test_tiles_are_measured_by_the_largest_tensor_of_a_pair(
    name: str, frames: int, expected: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six words; width 64."""
    head = _build(name, lengths=(6, frames)).eval()
    text = head.encode_text(torch.randn(100, 64), torch.randn(100, 6, 64), torch.ones(100, 6))
    video = head.encode_video(torch.randn(30, frames, 64), torch.ones(30, frames))
    given: list[int] = []

    def recorded(*arguments: Any) -> Tensor:
        given.append(arguments[3])
        return scoring.score_by_tiles(*arguments)

    monkeypatch.setattr(sys.modules[type(head).__module__], "score_by_tiles", recorded)
    monkeypatch.setattr(tiles, "CPU_TILE", 3000 * largest)
    with torch.no_grad(), _Largest() as seen:
        head(text, video)
    assert given == [expected]
    assert 0.8 * largest <= seen.numbers / 3000 <= largest


@pytest.mark.parametrize(("texts", "videos", "length"), [(800, 300, 4), (800, 300, 27), (300, 3, 700), (2000, 9, 4)])
@pytest.mark.parametrize("name", ["glscl", "wti"])
def test_no_score_holds_texts_times_videos_times_frames(
    name: str, texts: int, videos: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward: nothing is larger than a tile, a cache or the similarities."""
    monkeypatch.setattr(tiles, "CPU_TILE", 2**14)
    head = _build(name, use_local=False) if name == "glscl" else _build(name)
    text = head.encode_text(torch.randn(texts, 64), torch.randn(texts, 2, 64), torch.ones(texts, 2))
    video = head.encode_video(torch.randn(videos, length, 64), torch.ones(videos, length))
    caches = [
        {key: x.detach().requires_grad_() if x.is_floating_point() else x for key, x in cache.items()}
        for cache in (text, video)
    ]
    allowed = max(2**14, texts * videos, *(x.numel() for cache in caches for x in cache.values()))
    with _Largest() as largest:
        head(*caches).sum().backward()
    assert largest.numbers <= allowed


def _product(calls: list[tuple[int, int]]) -> Any:
    def score(text: Features, video: Features) -> Tensor:
        calls.append((len(text["x"]), len(video["x"])))
        return text["x"][:, None] * video["x"]

    return score


@pytest.mark.parametrize(
    ("tile", "expected"),
    [
        (60, [(4, 5)]),
        (59, [(4, 4), (4, 1)]),
        (36, [(3, 4), (3, 1), (1, 4), (1, 1)]),
        (12, [(2, 2), (2, 2), (2, 1)] * 2),
        (11, [(3, 1)] * 5 + [(1, 1)] * 5),
        (3, [(1, 1)] * 20),
        (2, [(1, 1)] * 20),
    ],
)
def test_tiles_are_as_large_as_they_may_be(
    tile: int, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three numbers per pair, four texts, five videos."""
    monkeypatch.setattr(tiles, "CPU_TILE", tile)
    monkeypatch.setattr(tiles, "DEVICE_TILE", 59)
    x, y = torch.arange(1.0, 5.0, requires_grad=True), torch.arange(1.0, 6.0)
    calls: list[tuple[int, int]] = []
    with torch.no_grad():
        scores = scoring.score_by_tiles(_product(calls), {"x": x}, {"x": y}, 3)
    assert calls == expected
    assert torch.equal(scores, x.detach()[:, None] * y)
    calls.clear()
    scoring.score_by_tiles(_product(calls), {"x": x}, {"x": y}, 3).sum().backward()
    assert sorted(calls) == sorted(expected * 2), "60 numbers are too many to keep: tiles are computed again"
    calls.clear()
    monkeypatch.setattr(tiles, "DEVICE_TILE", 60)
    scoring.score_by_tiles(_product(calls), {"x": x}, {"x": y}, 3).sum().backward()
    assert sorted(calls) == sorted(expected)
    x.grad = x.grad / 2 if x.grad is not None else None
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((4,), 15.0))


def test_a_tile_stays_in_a_cores_cache_and_fills_a_device() -> None:
    assert tiles.tile_numbers(torch.device("cpu")) * 4 == 2**22
    assert tiles.tile_numbers(torch.device("cuda")) * 4 == 64 * 2**20
