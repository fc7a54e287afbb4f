"""Making the features of a study's or sweep's shard sets, which all runs take in their place."""

from __future__ import annotations

from collections.abc import Mapping

from glscl.errors import UserError
from glscl.evaluation.encode import encode_shards
from glscl.evaluation.encoder import Encoding
from glscl.runs.options import RunsConfig
from glscl.runs.sets import Sets, are_built, sets_of_runs
from glscl.system.nodes import alive_nodes, choose
from glscl.system.ownership import Fence
from glscl.training.config import RunConfig


def encode_sets(
    config: RunsConfig, sets: Mapping[str, Sets], run: RunConfig, fence: Fence | None, condition: str = ""
) -> None:
    """Encode every set whose features are not there yet, with the towers and lengths of ``run``; Ray is running.

    Raises `UserError`: a set or the towers cannot be used.
    """
    if not config.features:
        return
    model, data = run.model, run.data
    if model.freeze != "towers":
        raise UserError(f"{config.kind} {config.name}: features are of frozen towers: set run.model.freeze to towers")
    if model.weights is None:
        raise UserError(f"{config.kind} {config.name}: features are of trained towers: set run.model.pretrained")
    encoding = Encoding(
        clip=model.clip,
        pretrained=model.pretrained,
        tokenizer=model.tokenizer,
        trust_pickle=model.trust_pickle,
        words=model.max_words,
        frames=model.max_frames,
        rate=data.sample_fps,
        dtype="bfloat16" if run.training.precision == "bf16" else "float32",
        decoder=data.decoder,
        max_decode_s=data.max_decode_s,
        max_bad_fraction=data.max_bad_fraction,
    )
    share = choose(alive_nodes(), use_gpu=run.training.use_gpu, cpus_each=4)
    wanted = sets_of_runs(config, sets, condition)
    pairs = [pair for name in sets for pair in zip(sets[name].uris, wanted[name].uris, strict=True)]
    for number, (source, output) in enumerate(pairs, start=1):
        if not are_built([output]):
            print(f"{config.kind}: encoding {source} ({number} of {len(pairs)} sets)", flush=True)
            _, notes = encode_shards(source, output, encoding, share, fence)
            for note in notes:
                print(f"{config.kind}: {note}", flush=True)
