"""One command per thing a user does; parses, calls, prints the verdict as the last line.

Exit status: 0 done, 2 bad input (one line says what, where and which knob), 143 and 130 stopped by SIGTERM and Ctrl-C
(the same command continues), 1 anything else; `submit` and `jobs logs` end with that of their job.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from glscl.errors import BrokenRunError, Stopped, UserError, did_you_mean, full_disk
from glscl.system import storage
from glscl.system.environment import check_environment, check_working_folder
from glscl.system.hardware import Auto, choose
from glscl.system.redaction import OutputClosedError, redacted_output
from glscl.system.stopping import ends_by_signal

USAGE = """usage: glscl COMMAND [options]

  quickstart      make two toy domains, train GLSCL on one, test it on both (no data, no GPU; minutes)
  train           train or continue a run:  --config PRESET|FILE.yaml  --a.b value ...  [--dry-run]
  eval            score a finished run on any shard sets, in and across domains
  study           heads x training domains x test domains x seeds, with intervals and a report:  --config NAME|FILE.yaml
  sweep           search loss weights, temperature, rates ... across domains:  --config NAME|FILE.yaml  [--dry-run]
  shards build    official annotations + video files -> WebDataset shards and a manifest
  shards index    a manifest for WebDataset tars of other programs (video2dataset ...), which stay as they are
  shards verify   read every shard and compare it with the manifest
  shards info     print a manifest
  toy             write a toy domain: h264 videos and annotations
  presets         list the packaged configurations, or print one
  submit          run a command on a Ray cluster as a job, follow it, end as it ends:  submit [options] -- train ...
  jobs status     state of one job, or of all:  jobs status [ID]
  jobs logs       follow a job from its first line to its end
  jobs stop       end a job
  doctor          check nodes, GPUs, network, token, storage and shards of a cluster before money is spent

`glscl COMMAND --help` explains a command's options. Paths may be local or s3://."""

ABOUT_TRAIN = """Train a run, or continue it where it stopped.

  --config NAME|FILE.yaml   start from a preset (`glscl presets`) or a YAML file; the options below win over it
  --dry-run                 print the effective configuration, check shards, batch arithmetic and model, start nothing

Defaults shown are those of the preset or file that --config names."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    with ends_by_signal():
        try:
            with redacted_output():
                status = _run_command(words)
                sys.stdout.flush()
            return status
        except OutputClosedError:  # as other tools end: `glscl train --help | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
            return 128 + signal.SIGPIPE


def _prepare_streams() -> None:
    """Streams that take any text, and are there: a service may have started this with some of them closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout, sys.stderr = (
        stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") for stream in (sys.stdout, sys.stderr)
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that a terminal has not are no reason to stop
            stream.reconfigure(errors="backslashreplace")


def _run_command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    try:
        check_working_folder()
        storage.first_answer_due.set()
        name, command, rest = _command(words)
        text = command(rest, f"glscl {name}")
    except UserError as error:
        _verdict(False, str(error))
        return 2
    except BrokenRunError as error:
        _verdict(False, str(error))
        return 1
    except Stopped as stop:
        _verdict(False, str(stop))
        return 128 + stop.signum
    except SystemExit as leaving:  # --help
        return int(leaving.code or 0)
    except OutputClosedError:
        raise
    except Exception as error:
        if full := full_disk(error, "a disk"):
            _verdict(False, str(full))
            return 2
        traceback.print_exc()
        _verdict(False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        return 1
    if text:
        _verdict(True, text)
    return 0


Command = Callable[[list[str], str], str]


def _command(words: list[str]) -> tuple[str, Command, list[str]]:
    commands: dict[str, Command] = {
        "quickstart": _quickstart,
        "train": _train,
        "eval": _evaluate,
        "study": _study,
        "sweep": _sweep,
        "shards build": _shards_build,
        "shards index": _shards_index,
        "shards verify": _shards_verify,
        "shards info": _shards_info,
        "toy": _toy,
        "presets": _presets,
        "submit": _submit,
        "jobs status": _jobs_status,
        "jobs logs": _jobs_logs,
        "jobs stop": _jobs_stop,
        "doctor": _doctor,
    }
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in commands:
            return name, commands[name], words[length:]
    if second := [name.partition(" ")[2] for name in commands if name.startswith(f"{words[0]} ")]:
        if words[1:] in (["-h"], ["--help"]):
            print(USAGE)
            raise SystemExit(0)
        raise UserError(f"`glscl {words[0]}` needs {', '.join(second[:-1])} or {second[-1]}")
    raise UserError(f"unknown command '{words[0]}'{did_you_mean(words[0], commands)}; see `glscl --help`")


def _verdict(ok: bool, text: str) -> None:
    from glscl.reporting.console import verdict

    verdict(ok, text)


# Imports inside the commands: `glscl --help` and bad spelling must not wait for torch and Ray.


def _train(words: list[str], program: str) -> str:
    from glscl.data.options import DataConfig
    from glscl.evaluation.options import EvaluationConfig
    from glscl.options import Options
    from glscl.options.flags import check_spelling
    from glscl.options.packaged import split_config
    from glscl.training.options import CheckpointConfig, TrainingConfig

    sections: dict[str, type[Options]] = {"data": DataConfig, "training": TrainingConfig}
    sections |= {"checkpoint": CheckpointConfig, "evaluation": EvaluationConfig}
    check_spelling(split_config(words)[1], sections)

    dry = "--dry-run" in words
    if not (dry or {"-h", "--help"} & set(words)):
        check_environment()

    from glscl.training.config import run_config, to_yaml

    config = run_config([word for word in words if word != "--dry-run"], program, ABOUT_TRAIN).resolved()

    from glscl.reporting.console import start_panel
    from glscl.system.nodes import cluster_nodes
    from glscl.training.driver.machines import with_machines
    from glscl.training.driver.preflight import as_begun, preflight

    config, notes = as_begun(config)
    for note in notes:
        print(note, flush=True)
    config = with_machines(config, cluster_nodes)
    ready = preflight(config, fetch=not dry)
    if dry:
        print(to_yaml(config), end="")
    start_panel(program, ready.facts)
    if dry:
        return "dry run: configuration and data are sound, nothing was started"
    return _run(config, ready)


def _run(config: Any, ready: Any) -> str:
    """Train, test, report; ``status.json`` follows what happens."""
    from glscl.evaluation.console import print_results
    from glscl.system.ownership import ANOTHER_NAME, owned
    from glscl.system.session import ray_session
    from glscl.training.driver.launch import train
    from glscl.training.driver.outputs import REPORT, status_on_failure, write_results, write_status

    where = config.run_directory
    storage.check_writable(where, "--storage")
    with owned(where, ANOTHER_NAME) as owner:
        write_status(where, state="running", verdict="")
        # Also inside the session: to end a cluster takes seconds, and who sent a signal may not wait.
        with status_on_failure(owner.fence), ray_session(), status_on_failure(owner.fence):
            results = train(config, ready, owner)
            owner.fence.check()
            write_results(results, where)
        write_status(where, state="finished", verdict=results.verdict)
    print_results(results)
    return f"{results.verdict} report={storage.join(where, REPORT)}"


def _evaluate(words: list[str], program: str) -> str:
    from pydantic import Field

    from glscl.options import Options
    from glscl.options.flags import parse_options

    class Eval(Options):
        """Score a finished run on any shard sets, in and across domains."""

        run: str
        """Run directory (or a saved model's folder)."""
        test: tuple[str, ...]
        """Shard sets."""
        output: str = ""
        """Folder for results.json and report.html; empty is eval/ in the run directory."""
        workers: int | Auto = "auto"
        """Ray actors that embed and score. auto: one per GPU of the cluster, without GPUs one per four CPUs."""
        use_gpu: bool | Auto = "auto"
        """One GPU per actor. auto: where the cluster has any."""
        cpus_per_worker: float | Auto = "auto"
        """CPUs that Ray reserves per actor. auto: a node's CPUs divided among its actors."""
        loader_workers: int | Auto = "auto"
        """Decoding processes per actor. auto: all of its CPUs but one beside a GPU, else a quarter."""
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
        max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
        """Share of a set's videos that may be undecodable: a smaller gallery is easier to search."""

    options = parse_options(Eval, words, program)
    if options.bank and not options.normalisations:
        raise UserError("--bank: only normalisations use a query bank; add --normalisations, or leave out --bank")
    from glscl.data.shards import open_shard_set
    from glscl.evaluation.locate import find_model

    for name, given, least in (
        ("workers", options.workers, 1),
        ("cpus-per-worker", options.cpus_per_worker, 0.01),
        ("loader-workers", options.loader_workers, 0),
    ):
        if given != "auto" and given < least:
            raise UserError(f"--{name} = {given:g}: give {least:g} or more, or auto")
    check_environment()
    find_model(options.run)
    for uri in (*options.test, *options.bank):
        open_shard_set(uri)

    from glscl.data.quarantine import Quarantine
    from glscl.evaluation.evaluate import check_tests
    from glscl.evaluation.options import EvaluationConfig

    config = EvaluationConfig(
        normalisations=options.normalisations,
        bank_videos=options.bank_videos if options.bank else 0,
        leave_out=options.leave_out,
    )
    check_tests(options.run, options.test, config, options.bank)
    run = storage.resolve(options.run)
    tests = tuple(storage.resolve(uri) for uri in options.test)
    output = storage.resolve(options.output) if options.output else storage.join(run, "eval")
    storage.check_writable(output, "--output")

    from glscl.evaluation.console import print_results
    from glscl.system.ownership import owned
    from glscl.system.session import alive_nodes, ray_session
    from glscl.training.driver.launch import evaluate
    from glscl.training.driver.outputs import REPORT, write_results

    with owned(output, "choose another --output") as owner:
        quarantine = Quarantine(output, options.max_bad_fraction, "--max-bad-fraction", fence=owner.fence)
        quarantine.write()  # nothing yet: what an earlier evaluation found there is forgotten
        with ray_session():
            share = choose(
                alive_nodes(),
                workers=options.workers,
                use_gpu=options.use_gpu,
                cpus=options.cpus_per_worker,
                loaders=options.loader_workers,
                cpus_each=4,
            )
            print(f"actors: {share}", flush=True)
            results = evaluate(run, tests, config, share, bank=options.bank, quarantine=quarantine)
        owner.fence.check()
        write_results(results, output)
    print_results(results)
    return f"{results.verdict} report={storage.join(output, REPORT)}"


def _study(words: list[str], program: str) -> str:
    from glscl.options import Options
    from glscl.options.flags import parse_options

    class Study(Options):
        """Train every head on every domain, test each on every domain, and say what the differences are worth.

        The same command goes on with what is not finished; finished cells are not done again.
        """

        config: str
        """Packaged study (`glscl presets`) or a YAML file."""
        name: str = ""
        """Name of the study; empty is the configuration's."""
        storage: str = ""
        """Folder or s3:// prefix in which the study's directory is made; empty is the configuration's."""
        root: str = ""
        """Folder or s3:// prefix of the shard sets that have relative paths; empty is the configuration's."""
        dry_run: bool = False
        """Check the configuration, list the cells and how many are finished, start nothing."""
        report_only: bool = False
        """Write the report of what is finished, and train nothing."""

    options = parse_options(Study, words, program)
    if not (options.dry_run or options.report_only):
        check_environment()

    from glscl.study.options import load_study

    changes = {key: value for key in ("name", "storage", "root") if (value := getattr(options, key))}
    study = load_study(options.config, **changes)

    from glscl.reporting.console import start_panel
    from glscl.runs.sets import check_given_sets
    from glscl.study.plan import describe, plan_study

    cells, finished = plan_study(study)
    start_panel(program, describe(study, cells, finished))
    if options.dry_run:
        return f"dry run: {len(cells)} cells, {finished} of them finished; nothing was started"
    if options.report_only:
        from glscl.study.run import report

        return report(study)
    check_given_sets(study)
    storage.check_writable(study.directory, "--storage")

    from glscl.study.run import run_study
    from glscl.system.ownership import ANOTHER_NAME, owned
    from glscl.system.session import ray_session

    with owned(study.directory, ANOTHER_NAME) as owner, ray_session(quiet=True):
        return run_study(study, owner)


def _sweep(words: list[str], program: str) -> str:
    from glscl.options import Options
    from glscl.options.flags import parse_options

    class Sweep(Options):
        """Search over any keys of a run's configuration, scored across domains on held-out parts.

        The same command goes on with what is not finished; finished trials are not done again.
        """

        config: str
        """Packaged sweep (`glscl presets`) or a YAML file."""
        name: str = ""
        """Name of the sweep; empty is the configuration's."""
        storage: str = ""
        """Folder or s3:// prefix in which the sweep's directory is made; empty is the configuration's."""
        root: str = ""
        """Folder or s3:// prefix of the shard sets that have relative paths; empty is the configuration's."""
        dry_run: bool = False
        """Check the configuration, say what would be done and how many trials the cluster takes at once, start none."""
        report_only: bool = False
        """Write the report of the trials that have ended, and train nothing."""

    options = parse_options(Sweep, words, program)
    if not options.report_only:
        check_environment()

    from tune.options import load_sweep

    changes = {key: value for key in ("name", "storage", "root") if (value := getattr(options, key))}
    sweep = load_sweep(options.config, **changes)

    from glscl.reporting.console import start_panel
    from glscl.runs.sets import check_given_sets
    from tune.plan import describe, plan_sweep

    default = plan_sweep(sweep)
    start_panel(program, describe(sweep, default))
    if not (options.report_only or options.dry_run):
        check_given_sets(sweep)
        storage.check_writable(sweep.directory, "--storage")

    from glscl.system.ownership import ANOTHER_NAME, owned
    from glscl.system.session import ray_session
    from tune.resources import concurrent_trials
    from tune.sweep import report, run_sweep

    if options.report_only:
        return report(sweep)
    if options.dry_run:
        with ray_session(quiet=True):
            at_once = concurrent_trials(sweep, default)
        return f"dry run: {sweep.trials} trials, {at_once} at once on this cluster; none was started"
    with owned(sweep.directory, ANOTHER_NAME) as owner, ray_session(quiet=True):
        return run_sweep(sweep, owner)


def _shards_build(words: list[str], program: str) -> str:
    from pydantic import Field

    from glscl.data.benchmarks import benchmark_names
    from glscl.data.build import Encoding
    from glscl.data.prepare import build_from_annotations
    from glscl.data.shards import describe
    from glscl.options import Options
    from glscl.options.flags import parse_options
    from glscl.reporting.console import start_panel
    from glscl.system.session import ray_session

    class Build(Options):
        """Turn official annotation files and video files into WebDataset shards with a manifest."""

        benchmark: str
        """Which reader: msrvtt, msvd, didemo, lsmdc, activitynet, vatex, jsonl or csv."""
        annotations: str
        """Folder of the official annotation files (jsonl and csv: the folder or the file)."""
        split: str
        """Split as the reader names it (a wrong name lists them)."""
        videos: str
        """Folder of the video files; they are found by id whatever their extension."""
        output: str
        """Folder or s3:// prefix of the shard set."""
        domain: str = ""
        """Name of the domain; empty is the benchmark's."""
        samples_per_shard: int = Field(default=100, ge=1)
        """Videos per tar. There must be at least workers x loader workers tars."""
        short_side: int = Field(default=0, ge=0)
        """Re-encode once to this many pixels on the short side (224 suits ViT-B); 0 copies the files."""
        fps: float = Field(default=3.0, gt=0)
        """Frames a second of the re-encoded copy."""
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

    options = parse_options(Build, words, program)
    check_environment()
    if options.benchmark not in benchmark_names():
        from glscl.data.benchmarks import benchmark

        benchmark(options.benchmark)
    manifests, notes = build_from_annotations(
        options.benchmark,
        options.annotations,
        options.split,
        options.videos,
        options.output,
        domain=options.domain or options.benchmark,
        samples_per_shard=options.samples_per_shard,
        encoding=Encoding(options.short_side, options.fps, options.max_encode_s),
        allow_missing=options.allow_missing,
        hold_out=options.hold_out,
        seed=options.seed,
        shuffle=options.shuffle,
        max_bad_fraction=options.max_bad_fraction,
        overwrite=options.overwrite,
        session=ray_session,
    )
    for manifest in manifests:
        start_panel(f"{program}: {manifest.split}", describe(manifest))
    for note in notes:
        print(note)
    sizes = [f"{m.split} {m.share()} videos, {m.pairs} pairs in {len(m.shards)} shards" for m in manifests]
    return f"{options.output}: {'; '.join(sizes)}"


def _shards_index(words: list[str], program: str) -> str:
    from pydantic import Field

    from glscl.data.foreign import index_shards
    from glscl.data.shards import describe
    from glscl.options import Options
    from glscl.options.flags import parse_options
    from glscl.reporting.console import start_panel

    class Index(Options):
        """Write a manifest beside WebDataset tars of other programs, as `index DIR [options]`: mp4 + txt + json.

        A sample is a video of any extension with a caption in .txt or .json; the tars stay as they are.
        """

        domain: str = ""
        """Name of the domain; empty is the folder's."""
        split: str = "train"
        """Name of the split."""
        max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
        """Share of the samples that may lack a video or a caption; they are listed in the manifest."""
        overwrite: bool = False
        """Replace a manifest that is already there."""

    where, rest = words[:1], words[1:]
    if not where or where[0].startswith("-"):
        if not {"-h", "--help"} & set(words):
            raise UserError(f"`{program}` takes the folder or s3:// prefix of the tars first, then options")
        where, rest = [""], words
    options = parse_options(Index, rest, program)
    manifest, notes = index_shards(
        where[0],
        domain=options.domain,
        split=options.split,
        max_bad_fraction=options.max_bad_fraction,
        overwrite=options.overwrite,
    )
    start_panel(program, describe(manifest))
    for note in notes:
        print(note)
    return f"{where[0]}: {manifest.share()} videos, {manifest.pairs} pairs in {len(manifest.shards)} tars"


def _shards_verify(words: list[str], program: str) -> str:
    from glscl.data.shards import verify_shards

    uri = _one_path(words, program, "read every shard of a set and compare it with the manifest")
    problems = verify_shards(uri)
    for problem in problems:
        print(problem)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"{uri}: {count}, first {problems[0]}; build, copy or index the shards named above again")
    return f"{uri}: every shard is as the manifest says"


def _shards_info(words: list[str], program: str) -> str:
    from glscl.data.shards import describe, open_shard_set
    from glscl.reporting.console import start_panel

    uri = _one_path(words, program, "print the manifest of a shard set")
    manifest = open_shard_set(uri).manifest
    start_panel(uri, describe(manifest))
    return f"{uri}: {manifest.share()} videos, {manifest.pairs} pairs in {len(manifest.shards)} shards"


def _one_path(words: list[str], program: str, what: str) -> str:
    if words and words[0] in ("-h", "--help"):
        print(f"usage: {program} SHARD_SET\n\n{what}; a local folder or an s3:// prefix")
        raise SystemExit(0)
    if len(words) != 1 or words[0].startswith("--"):
        raise UserError(f"`{program}` takes one shard set: a local folder or an s3:// prefix")
    return words[0]


def _toy(words: list[str], program: str) -> str:
    import os

    from pydantic import Field

    from glscl.data.toy import toy_names, write_toy
    from glscl.options import Options
    from glscl.options.flags import parse_options

    class Toy(Options):
        """Write a toy domain: h264 videos and annotations.jsonl, ready for `glscl shards build --benchmark jsonl`."""

        domain: str
        """toy_clips or toy_stories."""
        split: str
        """train, dev or test."""
        count: int = Field(ge=1)
        """Videos."""
        output: str
        """Folder to write into."""
        seed: int = 0
        """Of everything drawn."""
        processes: int = Field(default=os.cpu_count() or 1, ge=1)
        """Videos drawn at once."""

    options = parse_options(Toy, words, program)
    if options.domain not in toy_names():
        raise UserError(f"--domain: no toy domain '{options.domain}'{did_you_mean(options.domain, toy_names())}")
    records = write_toy(options.domain, options.split, options.count, options.seed, options.output, options.processes)
    return f"{options.output}: {len(records)} videos, {sum(len(record.captions) for record in records)} captions"


def _presets(words: list[str], program: str) -> str:
    from glscl.options.packaged import preset_names, preset_text
    from glscl.study.options import study_names, study_text
    from tune.options import sweep_names, sweep_text

    kinds = {
        "train": (preset_names(), preset_text),
        "study": (study_names(), study_text),
        "sweep": (sweep_names(), sweep_text),
    }
    if words and words[0] in ("-h", "--help"):
        print(f"usage: {program} [[train|study|sweep] NAME]\n\nlist the packaged configurations, or print one")
    elif len(words) > 2 or (len(words) == 2 and words[0] not in kinds):
        raise UserError(f"`{program}` takes one name, after train, study or sweep where it is not clear: {words}")
    elif words:
        named = words[:-1] or [kind for kind, (names, _) in kinds.items() if words[-1] in names] or ["train"]
        print(kinds[named[0]][1](words[-1]), end="")
    else:
        for what, (names, text) in kinds.items():
            for name in names:
                print(f"glscl {what} --config {name:<12} {text(name).splitlines()[0].lstrip('# ')}")
    return ""


def _quickstart(words: list[str], program: str) -> str:
    from pydantic import Field

    from glscl.options import Options
    from glscl.options.flags import parse_options

    class Quickstart(Options):
        """Make two toy domains, train GLSCL on one with two workers, test it on both."""

        storage: str = "runs"
        """Folder of the run directory and of the toy data."""
        name: str = Field(default="quickstart", pattern=r"^[A-Za-z0-9._-]+$")
        """Name of the run; the same name continues."""

    options = parse_options(Quickstart, words, program)
    check_environment()
    storage.check_writable(storage.resolve(options.storage), "--storage")

    from glscl.quickstart import quickstart_config
    from glscl.reporting.console import start_panel
    from glscl.system.session import alive_nodes, ray_session
    from glscl.training.driver.machines import with_machines
    from glscl.training.driver.preflight import preflight

    with ray_session():
        config = with_machines(quickstart_config(options.storage, options.name), alive_nodes)
        ready = preflight(config)
        start_panel(program, ready.facts)
        return _run(config, ready)


def _submit(words: list[str], program: str) -> str:
    from cluster.submit import Submit, submit
    from glscl.options.flags import parse_options

    at = words.index("--") if "--" in words else len(words)
    job = words[at + 1 :]
    if not job and not {"-h", "--help"} & set(words):
        raise UserError(f"`{program}` needs a command after --: {program} -- train --config msrvtt ...")
    options = parse_options(Submit, words[:at], program)
    name, _, _ = _command(job)  # spelling is checked here, not after a cluster has started
    if name == "submit" or name.startswith("jobs "):
        raise UserError(f"`{program}` runs commands on a cluster; '{name}' is not one of those")
    return _ended(submit(job, options))


def _jobs_status(words: list[str], program: str) -> str:
    from cluster.submit import JobsStatus, status
    from glscl.options.flags import parse_options

    return status(parse_options(JobsStatus, words, program))


def _jobs_logs(words: list[str], program: str) -> str:
    from cluster.submit import Jobs, logs
    from glscl.options.flags import parse_options

    about = "Follow a job from its first line to its end; the last line and the exit status are the job's."
    return _ended(logs(parse_options(Jobs, words, program, about=about)))


def _jobs_stop(words: list[str], program: str) -> str:
    from cluster.submit import Jobs, stop
    from glscl.options.flags import parse_options

    return stop(parse_options(Jobs, words, program, about="End a job, and wait until it has ended."))


def _doctor(words: list[str], program: str) -> str:
    from cluster.doctor import Doctor, doctor
    from glscl.options.flags import parse_options

    return _ended(doctor(parse_options(Doctor, words, program), words))


def _ended(ending: Any) -> str:
    """The verdict of what ran elsewhere; leaves with its exit status where that is not 0."""
    if ending.status:
        _verdict(False, ending.text)
        raise SystemExit(ending.status)
    return str(ending.text)


if __name__ == "__main__":
    sys.exit(main())
