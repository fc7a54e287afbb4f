"""`glscl shards build`: turn a benchmark's annotations and video files into a shard set."""

from pydantic import Field

from glscl.data.benchmarks import benchmark_names, find_benchmark
from glscl.data.build import BuildOptions, Encoding
from glscl.data.limits import GOP
from glscl.data.prepare import Source, prepare
from glscl.data.shards import describe_manifest
from glscl.errors import UserError
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.reporting.console import start_panel
from glscl.system.environment import check_environment
from glscl.system.session import ray_session

HELP = "official annotations + video files -> WebDataset shards and a manifest"
ORDER = 60

*_OTHERS, _LAST = benchmark_names()


class Build(Options):
    """Turn official annotation files and video files into WebDataset shards with a manifest."""

    benchmark: str = Field(description=f"Which reader: {', '.join(_OTHERS)} or {_LAST}.")
    annotations: str
    """Folder of the official annotation files (jsonl and csv: the folder or the file)."""
    split: str
    """Split as the reader names it (a wrong name lists them)."""
    output: str
    """Folder or s3:// prefix of the shard set."""
    videos: str = ""
    """Folder of the video files; they are found by id whatever their extension."""
    features: str = ""
    """In place of --videos: frame features that others published, an array of frames x width per video id: a folder of
    .npy files, one .h5 or one .safetensors file. `glscl encode` adds those of the captions."""
    domain: str = ""
    """Name of the domain; empty is the benchmark's."""
    samples_per_shard: int = Field(default=100, ge=1)
    """Videos per tar. There must be at least workers x loader workers tars."""
    short_side: int = Field(default=0, ge=0)
    """Re-encode once to this many pixels on the short side (224 suits ViT-B); 0 copies the files."""
    fps: float = Field(default=3.0, gt=0)
    """Frames a second of the re-encoded copy."""
    gop: int = Field(default=GOP, ge=1)
    """Frames of the copy from one keyframe to the next; 1 decodes fastest and takes the most bytes."""
    frames: float = Field(default=0.0, ge=0)
    """Store this many pictures a second as JPEG instead of a video, with --short-side: they decode several times
    faster. At least data.sample_fps."""
    quality: int = Field(default=90, ge=1, le=100)
    """JPEG quality of --frames."""
    max_encode_s: float = Field(default=3600.0, gt=0)
    """CPU seconds that re-encoding one video may take before it counts as undecodable."""
    allow_missing: bool = False
    """Leave out videos whose file is missing (they are listed in the manifest) instead of stopping."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of the files found that may be empty, unreadable or, with --short-side, undecodable."""
    hold_out: int = Field(default=0, ge=0)
    """Videos to keep apart in a second set, OUTPUT-held-out, for data.validation."""
    seed: int = 0
    """Of the shuffle of videos over shards and of the choice of held-out ones."""
    shuffle: bool = True
    """Shuffle videos over shards; --no-shuffle keeps the annotations' order, so that neighbours meet in batches."""
    overwrite: bool = False
    """Replace a shard set that is already there."""


def run(words: list[str], program: str) -> str:
    """Read the annotations, find the files, write the shards with Ray's tasks."""
    options = parse_options(Build, words, program)
    check_environment()
    find_benchmark(options.benchmark)
    if bool(options.videos) == bool(options.features):
        raise UserError("give either --videos, a folder of video files, or --features, a folder or file of features")
    if options.features and (options.short_side or options.frames):
        raise UserError("--features are stored as they are: leave out --short-side and --frames")
    if options.frames and not options.short_side:
        raise UserError("--frames stores pictures of a stated size; pass --short-side, too (224 suits ViT-B)")
    source = Source(
        benchmark=options.benchmark,
        annotations=options.annotations,
        split=options.split,
        videos=options.videos,
        features=options.features,
        domain=options.domain or options.benchmark,
        allow_missing=options.allow_missing,
        hold_out=options.hold_out,
    )
    how = BuildOptions(
        samples_per_shard=options.samples_per_shard,
        encoding=Encoding(
            options.short_side,
            options.fps,
            options.max_encode_s,
            options.gop,
            options.frames,
            options.quality,
            features=bool(options.features),
        ),
        seed=options.seed,
        shuffle=options.shuffle,
        max_bad_fraction=options.max_bad_fraction,
        overwrite=options.overwrite,
    )
    manifests, notes = prepare(source, options.output, how, ray_session)
    for manifest in manifests:
        start_panel(f"{program}: {manifest.split}", describe_manifest(manifest))
    for note in notes:
        print(note)
    sizes = [f"{m.split} {m.share()} videos, {m.pairs} pairs in {len(m.shards)} shards" for m in manifests]
    return f"{options.output}: {'; '.join(sizes)}"
