"""`glscl encode`: run frozen towers once over a shard set, and write their features as a shard set."""

from contextlib import nullcontext
from typing import Literal

from pydantic import Field

from glscl.errors import UserError
from glscl.options import MAX_SIZE, Options
from glscl.options.flags import parse_options
from glscl.reporting.console import start_panel
from glscl.system.environment import check_environment
from glscl.system.nodes import Auto, choose_fitting

HELP = "frozen towers over a shard set, once -> shards of their features, which heads train on"
ORDER = 65


class Encode(Options):
    """Run frozen towers once over a shard set, and write their features as a shard set.

    The same command goes on where another ended. `train`, `eval`, `study` and `sweep` take the features wherever they
    take videos, with the same order, positions and quarantine.
    """

    shards: str
    """Shard set of videos; or of frame features that others published, to which those of the captions are added."""
    output: str
    """Folder or s3:// prefix of the features' shard set."""
    towers: str
    """Architecture, as model.clip."""
    pretrained: str | None = None
    """Weights of the towers, as model.pretrained: an open_clip tag, or a file (local or s3://). none is those that lie
    beside the architecture (hf-hub: and local-dir:)."""
    tokenizer: str | None = None
    """Tokenizer of the towers, as model.tokenizer."""
    trust_pickle: bool = False
    """Load `pretrained` even from a file that may run code."""
    max_words: int = Field(default=32, ge=3, le=MAX_SIZE)
    """Tokens of a caption; the model.max_words of the runs."""
    max_frames: int = Field(default=12, ge=1, le=1024)
    """Frames of a video; the model.max_frames of the runs."""
    sample_fps: float = Field(default=1.0, gt=0)
    """Frames a second taken from a video, up to max_frames; the data.sample_fps of the runs."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the numbers that are stored; towers compute in float32."""
    batch_size: int = Field(default=16, ge=1)
    """Videos that go through the image tower at once."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """Which library decodes."""
    max_decode_s: float = Field(default=60.0, gt=0)
    """CPU seconds that decoding one video may take."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of the videos that may give no features; they keep their place and are replaced in training."""
    overwrite: bool = False
    """Replace a shard set that is already there."""
    workers: int | Auto = "auto"
    """Ray actors that encode; one on this machine is the command itself. auto: one per GPU of the cluster, without GPUs
    one per four CPUs."""
    use_gpu: bool | Auto = "auto"
    """One GPU per actor. auto: where the cluster has any."""
    cpus_per_worker: float | Auto = "auto"
    """CPUs that Ray reserves per actor. auto: a node's CPUs divided among its actors."""
    loader_workers: int | Auto = "auto"
    """Decoding processes per actor, which takes as many tars at a time. auto: all of its CPUs but one beside a GPU,
    else a quarter."""


def run(words: list[str], program: str) -> str:
    """Check the options and the shard set, then encode with Ray actors or here."""
    options = parse_options(Encode, words, program)
    for name, least in (("workers", 1), ("cpus-per-worker", 0.01), ("loader-workers", 0)):
        given = getattr(options, name.replace("-", "_"))
        if given != "auto" and given < least:
            raise UserError(f"--{name} = {given:g}: give {least:g} or more, or auto")
    from glscl.models.options import ModelConfig

    model = ModelConfig(clip=options.towers, pretrained=options.pretrained, tokenizer=options.tokenizer).resolved()
    if model.weights is None:
        raise UserError("--pretrained: name the weights of the towers, a tag of open_clip or a file")
    check_environment()

    from glscl.data.shards import describe_manifest, open_shard_set

    open_shard_set(options.shards)

    from glscl.evaluation.encode import encode_shards
    from glscl.evaluation.encoder import Encoding
    from glscl.system.ownership import owned
    from glscl.system.session import cluster_nodes, on_this_machine, ray_session

    encoding = Encoding(
        clip=model.clip,
        pretrained=model.pretrained,
        tokenizer=model.tokenizer,
        trust_pickle=options.trust_pickle,
        words=options.max_words,
        frames=options.max_frames,
        rate=options.sample_fps,
        dtype=options.dtype,
        batch_size=options.batch_size,
        decoder=options.decoder,
        max_decode_s=options.max_decode_s,
        max_bad_fraction=options.max_bad_fraction,
    )
    share = choose_fitting(
        cluster_nodes(), options.workers, options.use_gpu, options.cpus_per_worker, options.loader_workers
    )
    print(f"encoders: {share}", flush=True)
    alone = share.workers == 1 and on_this_machine()
    with owned(options.output, "choose another --output") as owner, nullcontext() if alone else ray_session():
        manifest, notes = encode_shards(
            options.shards, options.output, encoding, share, owner.fence, overwrite=options.overwrite
        )
    start_panel(program, describe_manifest(manifest))
    for note in notes:
        print(note)
    tars = len(manifest.shards)
    return f"{options.output}: features of {manifest.share()} videos, {manifest.pairs} pairs in {tars} tars"
