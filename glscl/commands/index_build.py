"""`glscl index build`: index a library of videos, or bring an index up to date."""

from typing import Literal

from pydantic import Field

from glscl.commands._index import rest_of, take_words
from glscl.data.records import list_some
from glscl.errors import UserError
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.reporting.console import start_panel
from glscl.system.nodes import Auto

HELP = "a folder of videos or a shard set -> an index that can be searched; again: what is new or changed"
ORDER = 36


class IndexBuild(Options):
    """Index a library: `glscl index build LIBRARY --run RUN --output INDEX`.

    LIBRARY is a folder of videos, at any depth, or a shard set of videos or features; local or s3://. The same command
    goes on where another ended, adds what is new, replaces what changed, and keeps the rest.
    """

    output: str
    """Folder for the index, on this machine."""
    run: str | None = None
    """Run directory or export of the model; an index that is there has its own."""
    metadata: str | None = None
    """JSON lines or CSV, a row per video: id, captions or caption, and anything else."""
    segment_s: float | None = Field(default=None, gt=0)
    """Seconds of a segment; a shorter video is one. Default: as many as the model's frames cover."""
    stride_s: float | None = Field(default=None, gt=0)
    """Seconds from one segment to the next. Default: half a segment."""
    precision: Literal["fp32", "fp16", "int8"] | None = None
    """How vectors are stored; fp32 by default. int8 has a scale per vector."""
    batch_size: int = Field(default=16, ge=1)
    """Segments that the model encodes at once."""
    prune: bool = False
    """Also delete what is no longer in the library."""
    texts: str | None = None
    """File of texts, one a line, that the first stage of a large index is fitted to, beside the captions."""
    refit: bool = False
    """Fit the first stage anew, to what the library is by now."""
    workers: int | Auto = 0
    """Ray actors that encode, while Ray's tasks decode; 0 does all in this process, without Ray. auto: one per GPU of
    the cluster, without GPUs one per four CPUs."""
    use_gpu: bool | Auto = "auto"
    """One GPU per actor. auto: where the cluster has any."""


def run(words: list[str], program: str) -> str:
    """List the library, compare it with the index, encode what is missing."""
    taken = take_words(words, program, ["LIBRARY"])
    options = parse_options(IndexBuild, rest_of(words, taken), program)
    if options.workers != "auto" and options.workers < 0:
        raise UserError(f"--workers = {options.workers}: give 0 or more, or auto")
    from glscl.evaluation.locate import find_model

    if options.run is not None:
        find_model(options.run)

    from glscl.index.build import BuildSettings, build_index
    from glscl.index.texts import read_texts

    share = None
    if options.workers != 0:
        from glscl.system.nodes import choose_fitting
        from glscl.system.session import cluster_nodes

        share = choose_fitting(cluster_nodes(), options.workers, options.use_gpu, "auto", 0)
    settings = BuildSettings(
        metadata=options.metadata,
        segment_s=options.segment_s,
        stride_s=options.stride_s,
        precision=options.precision,
        batch_size=options.batch_size,
        prune=options.prune,
        texts=read_texts(options.texts) if options.texts is not None else (),
        refit=options.refit,
        share=share,
    )
    report = build_index(taken[0], options.output, options.run, settings)
    start_panel(
        options.output,
        {
            "added": f"{report.added:,} videos",
            "replaced": f"{report.replaced:,}",
            "kept": f"{report.kept:,}",
            "deleted": f"{report.deleted:,}",
            "unusable": f"{len(report.unusable):,}",
        },
    )
    for note in report.notes:
        print(note)
    if report.unusable:
        reasons = [f"{name} ({reason})" for name, reason in report.unusable.items()]
        print(f"cannot be searched: {list_some(reasons, 5, '; ')}; `glscl index info` lists all")
    return f"{options.output}: {report.segments:,} segments of {report.videos:,} videos"
