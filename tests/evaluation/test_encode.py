"""Features of frozen towers as shards: the towers' own numbers in the videos' order, and a command that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glscl.cli import main
from glscl.data.features import FeatureSampling
from glscl.data.gallery import Gallery
from glscl.data.shards import ShardSet, open_shard_set, verify_shards
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.evaluation import encoder
from glscl.evaluation.encode import encode_shards
from glscl.evaluation.encoder import Encoding
from glscl.evaluation.evaluate import evaluate_model
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.report import render_report
from glscl.evaluation.saved import ModelCard, load_model, save_model
from glscl.evaluation.wise_ft import Mix
from glscl.models import ModelConfig, Retriever
from glscl.models.caption_tokenizer import build_tokenizer
from glscl.models.fingerprint import tower_fingerprint
from glscl.models.tokenizer import tokenize
from glscl.models.towers import Towers
from glscl.retrieval.export import export_model
from glscl.system import storage
from glscl.system.nodes import Share
from glscl.training.driver.outputs import build_results
from tests.models.small_tokenizers import write_tokenizer
from tests.models.small_towers import small_timm, write_small
from tests.towers import write_towers
from tests.training.ranks import FRAMES, SIZE, WORDS

MakeShards = Callable[..., ShardSet]
HERE = Share(1, False, 1.0, 0)
TEXTS = {3: ("one " * 20, "two"), 4: ("three",)}


@pytest.fixture
def encoding(tmp_path: Path) -> Encoding:
    clip, weights = write_towers(tmp_path / "towers")
    return Encoding(
        clip=clip, pretrained=weights, words=WORDS, frames=FRAMES, rate=2.0, dtype="float32", max_bad_fraction=1.0
    )


@pytest.fixture
def videos(make_shards: MakeShards, make_video: Callable[..., bytes]) -> ShardSet:
    times = {1: [0.0, 0.5], 5: [n / 4 for n in range(9)]}
    bad = {n: make_video(own, seed=n) for n, own in times.items()} | {2: b"no video"}
    return make_shards(captions=(1, 2, 3, 2, 1, 2, 1, 1), per_shard=3, bad=bad, texts=TEXTS)


def gallery_of(shard_set: ShardSet) -> Gallery:
    facts = shard_set.manifest.features
    sampling = FeatureSampling.of([facts]) if facts else FrameSampling(FRAMES, 2.0, SIZE)
    return Gallery(shard_set, 0, shard_set.manifest.videos, sampling, partial(tokenize, max_words=WORDS), 100)


def test_the_towers_own_features_in_the_order_of_the_videos(
    videos: ShardSet, encoding: Encoding, tmp_path: Path
) -> None:
    manifest, notes = encode_shards(videos.uri, str(tmp_path / "features"), encoding, HERE)
    features = open_shard_set(str(tmp_path / "features"))
    assert not verify_shards(features.uri)
    assert "v002 (undecodable" in notes[-1]
    same = ("domain", "split", "videos", "pairs", "video_ids", "rejected")
    assert {name: getattr(manifest, name) for name in same} == {name: getattr(videos.manifest, name) for name in same}
    sizes = [(entry.name, entry.samples, entry.pairs) for entry in manifest.shards]
    assert sizes == [(entry.name, entry.samples, entry.pairs) for entry in videos.manifest.shards]

    (pixels,), (stored,) = gallery_of(videos).batches(0), gallery_of(features).batches(0)
    assert [sample.captions for sample in stored.samples] == [sample.captions for sample in pixels.samples]
    assert stored.truncated == pixels.truncated == 1
    ((bad,), (other,)) = stored.quarantined, pixels.quarantined
    assert bad == other | {"set": features.uri}
    towers = Towers(encoding.clip, encoding.pretrained).eval()
    with torch.no_grad():
        sentence, tokens, mask = towers.encode_text(*pixels.text)
        frames = towers.encode_frames(pixels.frames, pixels.frame_mask)
    assert torch.equal(stored.frame_mask, pixels.frame_mask)
    assert {2, 3} == set(stored.frame_mask.sum(1).tolist())
    close(stored.frames, frames)
    assert torch.equal(stored.text[1], mask.bool())
    close(stored.text[0], torch.cat([sentence[:, None], tokens], 1))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_the_same_command_goes_on_where_another_ended(
    videos: ShardSet, encoding: Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    encode_shards(videos.uri, str(whole), encoding, HERE)
    write = encoder.write_features
    written: list[str] = []

    def write_two(videos: Any, uri: str, *arguments: Any) -> Any:
        written.append(uri.rpartition("/")[2])
        if len(written) == 3:
            raise KeyboardInterrupt
        return write(videos, uri, *arguments)

    monkeypatch.setattr(encoder, "write_features", write_two)
    with pytest.raises(KeyboardInterrupt):
        encode_shards(videos.uri, str(killed), encoding, HERE)
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):
        open_shard_set(str(killed))
    (killed / "shard-000000.tar").write_bytes(b"torn")
    written[:] = ["", "", ""]
    _, notes = encode_shards(videos.uri, str(killed), encoding, HERE)
    assert written[3:] == ["shard-000000.tar", "shard-000002.tar"], "what is torn or missing"
    assert notes[0] == "1 of 3 tars were finished by an earlier command"
    assert tars(killed) == tars(whole)
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.iterdir())

    (killed / "manifest.json").unlink()
    written.clear()
    with pytest.raises(KeyboardInterrupt):
        encode_shards(videos.uri, str(killed), encoding, HERE)
    written[:] = ["", "", ""]
    _, notes = encode_shards(videos.uri, str(killed), replace(encoding, dtype="bfloat16"), HERE)
    assert len(written) == 6, "other numbers: all of it anew"
    assert open_shard_set(str(killed)).manifest.shards[0].bytes < open_shard_set(str(whole)).manifest.shards[0].bytes


def test_from_s3_to_s3(videos: ShardSet, encoding: Encoding, tmp_path: Path, bucket: str) -> None:
    encode_shards(videos.uri, str(tmp_path / "here"), encoding, HERE)
    for path in Path(videos.uri).iterdir():
        storage.upload(str(path), f"{bucket}/videos/{path.name}")
    encode_shards(f"{bucket}/videos", f"{bucket}/features", encoding, HERE)
    for path in (tmp_path / "here").iterdir():
        assert storage.read_bytes(f"{bucket}/features/{path.name}") == path.read_bytes(), path
    assert storage.list_names(f"{bucket}/features") == sorted(path.name for path in (tmp_path / "here").iterdir())


def test_what_cannot_be_encoded(videos: ShardSet, encoding: Encoding, tmp_path: Path) -> None:
    def refused(message: str, source: str = videos.uri, **changes: Any) -> None:
        output = changes.pop("output", str(tmp_path / "features"))
        with pytest.raises(UserError, match=message):
            encode_shards(source, output, replace(encoding, **changes), HERE)

    refused(r"none' is neither an existing file nor a tag", pretrained="none")
    refused(r"--max-words: 17 is more than the 16 tokens", words=17)
    refused(r"1 of 8 videos give no features, more than --max-bad-fraction \(0.1\): v002", max_bad_fraction=0.1)
    refused(r"--output: .* is the set of --shards", output=videos.uri)
    encode_shards(videos.uri, str(tmp_path / "features"), encoding, HERE)
    refused(r"already holds a shard set; choose another --output or pass --overwrite")
    refused(r"holds features already; --shards names", source=str(tmp_path / "features"), output=str(tmp_path / "two"))


def saved(folder: Path, encoding: Encoding, *, towers: bool, weights: str = "", **more: Any) -> str:
    """A model of random head on these towers, with or without them in its file."""
    frozen = {"clip": encoding.clip, "pretrained": weights or encoding.pretrained, "freeze": "towers"}
    values = frozen | {"head": "glscl"} | more
    lengths = {"max_words": WORDS, "max_frames": FRAMES, "frame_context": "transformer", "context_layers": 1}
    head = {"queries": 3, "layers": 1, "attention_heads": 2, "feedforward": 32, "mask_padding": False}
    config = ModelConfig.model_validate(values | lengths | {"heads": {"glscl": head}})
    torch.manual_seed(3)
    model = Retriever(config)
    fingerprint = tower_fingerprint(model.towers)
    if not towers:
        model.towers.drop()
    card = ModelCard(
        model=config,
        sample_fps=2.0,
        decoder="pyav",
        train_domains=("toy",),
        step=1,
        seed=0,
        run="r",
        validation={},
        towers=None if towers else fingerprint,
    )
    save_model(str(folder / "model"), card, model.state_dict())
    return str(folder)


def test_the_ranks_of_the_videos(videos: ShardSet, encoding: Encoding, tmp_path: Path) -> None:
    """A head saved without towers scores features, and videos with the towers of its card; so does a whole model."""
    features = str(tmp_path / "features")
    encode_shards(videos.uri, features, encoding, HERE)
    config = EvaluationConfig(batch_size=3, examples=2)
    whole = saved(tmp_path / "whole", encoding, towers=True)
    head = saved(tmp_path / "head", encoding, towers=False)
    assert not [name for name in load_file(tmp_path / "head" / "model" / "weights.safetensors") if "towers." in name]
    (expected,) = evaluate_model(whole, [videos.uri], config, HERE, keep_ranks=True)
    for run, tests in ((head, [features, videos.uri, features]), (whole, [features])):
        for test in evaluate_model(run, tests, config, HERE, keep_ranks=True):
            assert test.per_query is not None
            assert expected.per_query is not None
            assert test.per_query.model_dump() == expected.per_query.model_dump()
            assert test.text_to_video == expected.text_to_video
            assert (test.quarantined, test.truncated_texts) == (1, 1)
            pictures = [match.thumbnail for example in test.examples for match in example.results]
            assert any(pictures) == (test.shards == videos.uri)
            assert render_report(build_results(load_model(run)[1], [test], []))
    config = EvaluationConfig(batch_size=3, frames=("shuffled", "single", "reversed"))
    pixels, stored = (
        [
            test.per_query.model_dump()
            for test in evaluate_model(run, tests, config, HERE, keep_ranks=True)
            if test.per_query
        ]
        for run, tests in ((whole, [videos.uri]), (head, [features]))
    )
    assert pixels == stored, "in any order of their frames"
    assert len({str(ranks) for ranks in stored}) > 2


def test_a_head_of_features_is_mixed_and_exported_as_any_other(
    videos: ShardSet, encoding: Encoding, tmp_path: Path
) -> None:
    """WiSE-FT on features, on videos, and on features again, by a model that gets its towers in between."""
    features = str(tmp_path / "features")
    encode_shards(videos.uri, features, encoding, HERE)
    config = EvaluationConfig(batch_size=3)
    head = saved(tmp_path / "head", encoding, towers=False)
    export_model(head, str(tmp_path / "whole"))
    whole, card = load_model(str(tmp_path / "whole"))
    assert (card.towers, card.frozen, whole.towers.dropped) == (None, None, False)

    def ranks(run: str, tests: list[str], *mixes: Mix) -> list[Any]:
        found = evaluate_model(run, tests, config, HERE, keep_ranks=True, mixes=mixes)
        return [test.per_query.model_dump() for test in found if test.per_query is not None]

    (trained,) = ranks(str(tmp_path / "whole"), [videos.uri])
    mixes = [Mix(0.0, alpha, is_listed=True) for alpha in (1.0, 0.0, 0.5)]
    found = ranks(head, [features, videos.uri, features], *mixes)
    expected = found[::3]
    assert found == [one for one in expected for _ in range(3)]
    assert expected[0] == trained
    assert expected[1] not in (trained, expected[2])
    with pytest.raises(
        UserError, match=r"model\.clip: .*; an export does not say where on a disk its training began: mix"
    ):
        ranks(str(tmp_path / "whole"), [videos.uri], *mixes)


def test_a_model_whose_towers_are_trained_is_no_model_of_features(
    videos: ShardSet, encoding: Encoding, tmp_path: Path
) -> None:
    """Mixed with none of what was trained, its towers are those of the features."""
    features = str(tmp_path / "features")
    encode_shards(videos.uri, features, encoding, HERE)
    config = EvaluationConfig(batch_size=3)
    adapted = saved(tmp_path / "adapted", encoding, towers=True, adapters={"lora_rank": 2})
    with pytest.raises(UserError, match=r"features: holds features of towers without adapters, .*model\.adapters"):
        evaluate_model(adapted, [features], config, HERE)
    run = saved(tmp_path / "trained", encoding, towers=True, freeze="none")
    model, card = load_model(run)
    with torch.no_grad():
        model.towers.visual.conv1.weight.mul_(2.0)
    save_model(str(tmp_path / "trained" / "model"), card, model.state_dict())
    other = r"holds features of the towers \w{12} .*, not of \w{12}"
    with pytest.raises(UserError, match=other):
        evaluate_model(run, [features], config, HERE)
    assert evaluate_model(run, [features], config, HERE, mixes=[Mix(0.0)])
    with pytest.raises(UserError, match=other):
        evaluate_model(run, [features], config, HERE, mixes=[Mix(0.0, is_listed=True), Mix(0.5, is_listed=True)])


def test_a_model_of_other_towers_is_refused(videos: ShardSet, encoding: Encoding, tmp_path: Path) -> None:
    features = str(tmp_path / "features")
    encode_shards(videos.uri, features, encoding, HERE)
    _, others = write_towers(tmp_path / "others", seed=1)
    config = EvaluationConfig()
    for name, towers in (("whole", True), ("head", False)):
        run = saved(tmp_path / name, encoding, towers=towers, weights=others)
        with pytest.raises(UserError, match=r"holds features of the towers \w{12} .*, not of \w{12} .*towers-1"):
            evaluate_model(run, [features], config, HERE)
    head = saved(tmp_path / "moved", encoding, towers=False)
    Path(str(encoding.pretrained)).write_bytes(Path(others).read_bytes())
    assert evaluate_model(head, [features], config, HERE)
    with pytest.raises(UserError, match=r"its frozen weights, .* with model.pretrained .*, are others by now"):
        evaluate_model(head, [videos.uri], config, HERE)


def test_fingerprints(tmp_path: Path) -> None:
    clip, weights = write_towers(tmp_path)
    towers = Towers(clip, weights)
    first = tower_fingerprint(towers)
    assert first == tower_fingerprint(Towers(clip, weights).to(torch.bfloat16))
    copy = tmp_path / "copy.json"
    copy.write_text(Path(clip).read_text())
    assert tower_fingerprint(Towers(str(copy), weights)) == first, "a name says nothing"
    assert tower_fingerprint(Towers(*write_towers(tmp_path, seed=1))) != first
    changes: tuple[dict[str, Any], ...] = ({"quick_gelu": True}, {"vision_cfg": {"head_width": 4}})
    for number, change in enumerate(changes):
        config = json.loads(Path(clip).read_text())
        config |= {key: config[key] | value if isinstance(value, dict) else value for key, value in change.items()}
        other = tmp_path / f"other-{number}.json"
        other.write_text(json.dumps(config))
        towers = Towers(str(other))
        towers.load_state_dict(Towers(clip, weights).state_dict())
        assert tower_fingerprint(towers) != first, change


def test_towers_of_a_folder_with_their_own_tokenizer(make_shards: MakeShards, tmp_path: Path) -> None:
    """Weights and tokenizer lie beside the architecture; towers named otherwise are the same towers."""
    videos = make_shards(captions=(1, 2), texts={0: ("a red square",), 1: ("blue " * 9, "a green circle moves up")})
    folder, described = Path(write_tokenizer(tmp_path / "folder", "siglip2")), write_small("ViT-B-16-SigLIP2", tmp_path)
    with small_timm():
        torch.manual_seed(0)
        towers = Towers(described).eval()
        weights = {name: tensor.contiguous() for name, tensor in towers.state_dict().items()}
        weights |= {"logit_scale": torch.tensor([2.0]), "logit_bias": torch.tensor([-5.0])}
        save_file(weights, folder / "model.safetensors")
        about = {"model_cfg": json.loads(Path(described).read_text()), "preprocess_cfg": towers.colours}
        (folder / "open_clip_config.json").write_text(json.dumps(about))
        encoding = Encoding(clip=f"local-dir:{folder}", pretrained=None, words=WORDS, frames=FRAMES, dtype="float32")
        manifest, _ = encode_shards(videos.uri, str(tmp_path / "features"), encoding, HERE)
    facts = manifest.features
    assert facts is not None
    assert (facts.towers, facts.pretrained) == (tower_fingerprint(towers), encoding.clip)
    (stored,) = gallery_of(open_shard_set(str(tmp_path / "features"))).batches(0)
    captions = [text for sample in stored.samples for text in sample.captions]
    ids, cut = build_tokenizer(encoding.model)(captions)
    assert cut.tolist() == [text.startswith("blue") for text in captions]
    assert sum(cut) == 1
    assert stored.truncated == 1
    with torch.no_grad():
        sentence, tokens, mask = towers.encode_text(ids)
    assert torch.equal(stored.text[1], mask)
    close(stored.text[0], torch.cat([sentence[:, None], tokens], 1))


def test_towers_without_weights_are_not_encoded_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "--towers", "glscl-tiny", "--shards", "nowhere", "--output", "nowhere"]) == 2
    assert "--pretrained: name the weights of the towers" in capsys.readouterr().out
