"""`glscl eval`: score a finished run on any shard sets."""

from contextlib import nullcontext

from pydantic import Field

from glscl.data.frame_changes import FrameOrder
from glscl.data.shifts import parse_shifts
from glscl.errors import UserError
from glscl.evaluation.locate import find_model
from glscl.evaluation.options import EvaluationConfig
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.system import storage
from glscl.system.environment import check_environment
from glscl.system.nodes import Auto, choose_fitting

HELP = "score a finished run on any shard sets, in and across domains"
ORDER = 30


class Eval(Options):
    """Score a finished run on any shard sets, in and across domains."""

    run: str
    """Run directory (or a saved model's folder)."""
    test: tuple[str, ...]
    """Shard sets."""
    output: str = ""
    """Folder for results.json and report.html; empty is eval/ in the run directory."""
    workers: int | Auto = "auto"
    """Ray actors that embed and score; one on this machine is the command itself. auto: one per GPU of the cluster,
    without GPUs one per four CPUs."""
    use_gpu: bool | Auto = "auto"
    """One GPU per actor. auto: where the cluster has any."""
    cpus_per_worker: float | Auto = "auto"
    """CPUs that Ray reserves per actor. auto: a node's CPUs divided among its actors."""
    loader_workers: int | Auto = "auto"
    """Decoding processes per actor. auto: all of its CPUs but one beside a GPU, else a quarter."""
    memory_mb: int = Field(default=EvaluationConfig.model_fields["memory_mb"].default, ge=1)
    """Memory that scoring takes on each actor's device, in MiB, beyond the model and the embeddings."""
    normalisations: bool = False
    """Also score with every registered normalisation (QB-Norm, dual and inverted softmax), as columns of their own
    that say what they saw. The driver then holds the whole matrix of texts x videos."""
    bank: tuple[str, ...] = ()
    """Training shard sets that QB-Norm's query bank is drawn from, evenly; without, QB-Norm is left out."""
    bank_videos: int = Field(default=500, ge=1)
    """Videos of the bank, with their captions."""
    leave_out: tuple[str, ...] = ()
    """DOMAIN=FILE: a list of test videos of that domain that were trained on, or nearly. Results are then given
    with and without them."""
    qrels: tuple[str, ...] = ()
    """DOMAIN=FILE: a list of the videos that are relevant to each caption of that test domain, several where there are
    (TREC qrels or JSON lines, see `glscl shards duplicates`). Text-to-video results are then given for it, too."""
    trec: int = Field(default=0, ge=0)
    """Also write TREC run files of so many results per query at most, and the qrels that they are judged by, into trec/
    of the output. The driver then holds the whole matrix of texts x videos. 0 writes none."""
    alphas: tuple[float, ...] = ()
    """WiSE-FT: test with clip towers between those that training began with (0) and the trained ones (1), once for each
    of these numbers."""
    head_alphas: tuple[float, ...] = ()
    """The same for the head and the frame context, with each of `--alphas`; without, they are the trained ones."""
    frames: tuple[FrameOrder, ...] = ()
    """Controls: also test with the middle one of each video's frames alone (single), with its frames in an order drawn
    from its id (shuffled), or backwards (reversed), as rows beside the ordinary one."""
    shifts: tuple[str, ...] = ()
    """Names of corruptions (blur, noise, jpeg, ...), or all: score the test sets, which must hold pictures, with their
    frames corrupted in five strengths, one pass each, and write shifts.json and shifts.html instead of the rest."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of a set's videos that may be undecodable: a smaller gallery is easier to search."""


def run(words: list[str], program: str) -> str:
    """Check the options and the shard sets, then embed and score with Ray actors."""
    options = parse_options(Eval, words, program)
    _check(options)
    check_environment()
    find_model(options.run)

    from glscl.data.shards import open_shard_set

    tests, bank = ([open_shard_set(uri) for uri in uris] for uris in (options.test, options.bank))

    from glscl.evaluation.evaluate import check_options
    from glscl.evaluation.saved import check_weights
    from glscl.evaluation.wise_ft import listed_mixes

    shifts = parse_shifts(options.shifts)
    if shifts:
        from glscl.shifts.run import check_pixels, describe_cost

        check_pixels(tests)
        print(describe_cost(shifts, tests), flush=True)
    config = EvaluationConfig(
        memory_mb=options.memory_mb,
        normalisations=options.normalisations,
        bank_videos=options.bank_videos if options.bank else 0,
        leave_out=options.leave_out,
        qrels=options.qrels,
        frames=options.frames,
    )
    listed_mixes(options.alphas, options.head_alphas)
    check_weights(options.run)
    check_options(config, tests, bank)
    run_directory = storage.resolve(options.run)
    output = storage.resolve(options.output) if options.output else storage.join(run_directory, "eval")
    storage.check_writable(output, "--output")
    return _evaluate(options, config, run_directory, output)


def _check(options: Eval) -> None:
    if options.bank and not options.normalisations:
        raise UserError("--bank: only normalisations use a query bank; add --normalisations, or leave out --bank")
    if len(set(options.frames)) < len(options.frames):
        raise UserError("--frames: an order is named twice")
    if options.shifts:
        parse_shifts(options.shifts)
        for name in ("frames", "normalisations", "leave_out", "alphas", "head_alphas", "trec"):
            if getattr(options, name):
                raise UserError(
                    f"--{name.replace('_', '-')}: not together with --shifts; ask for it in another command"
                )
    for name, least in (("workers", 1), ("cpus-per-worker", 0.01), ("loader-workers", 0)):
        given = getattr(options, name.replace("-", "_"))
        if given != "auto" and given < least:
            raise UserError(f"--{name} = {given:g}: give {least:g} or more, or auto")


def _evaluate(options: Eval, config: EvaluationConfig, run_directory: str, output: str) -> str:
    from glscl.commands._shifts import score_shifts
    from glscl.data.quarantine import Quarantine
    from glscl.evaluation.console import print_results
    from glscl.evaluation.trec import TrecFiles, run_tag
    from glscl.evaluation.wise_ft import listed_mixes
    from glscl.system.ownership import owned
    from glscl.system.session import cluster_nodes, on_this_machine, ray_session
    from glscl.training.driver.launch import evaluate
    from glscl.training.driver.outputs import REPORT, write_results

    tests = tuple(storage.resolve(uri) for uri in options.test)
    with owned(output, "choose another --output") as owner:
        quarantine = Quarantine(output, options.max_bad_fraction, "--max-bad-fraction", fence=owner.fence)
        quarantine.write()  # nothing yet: what an earlier evaluation found there is forgotten
        share = choose_fitting(
            cluster_nodes(), options.workers, options.use_gpu, options.cpus_per_worker, options.loader_workers
        )
        print(f"actors: {share}", flush=True)
        alone = share.workers == 1 and on_this_machine()
        with nullcontext() if alone else ray_session():
            if shifts := parse_shifts(options.shifts):
                return score_shifts(run_directory, tests, shifts, config, share, quarantine, output, owner.fence)
            mixes = listed_mixes(options.alphas, options.head_alphas)
            trec = None
            if options.trec:
                trec = TrecFiles(storage.join(output, "trec"), options.trec, run_tag(run_directory), owner.fence)
            bank = options.bank
            results = evaluate(run_directory, tests, config, share, quarantine, bank=bank, mixes=mixes, trec=trec)
        owner.fence.check()
        write_results(results, output)
    print_results(results)
    return f"{results.verdict} report={storage.join(output, REPORT)}"
