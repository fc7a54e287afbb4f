"""Soak test: disturb runs again and again in every way, and check that each ends like an undisturbed one.

    python stress/soak.py --faults 150 --lanes 2 --output soak.jsonl

Each lane makes four hosts with networks of their own (a head with the driver, two with one training worker each, one
with the storage server), a disk that can be filled and a wall clock that can be set. It draws configurations at random
(ZeRO stage, accumulation, numbers of workers, head, precision, storage, domains), trains each once undisturbed, and
then again and again while it disturbs: see ``stress/faults.py`` for the kinds. Every run has to end with the
undisturbed run's weights, bit by bit; where the number of workers changed on the way, with its losses
(``stress/trainings.py`` says how near). Every resume has to start from the newest checkpoint that was complete at the
moment of the fault, or a later one; no row of the log may be missing or doubled; none may stand still. Any of these
failing ends the soak with exit status 1. Needs root, iproute2, a C compiler and the ``dev`` extra.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # hosts and proxy are the tests'

from stress.faults import KINDS, Fault, disturb, is_possible, watch
from stress.trainings import SAVE_EVERY, STEPS, Reference, Run, Setup, compare, refer, remove, write_inputs
from stress.world import SoakError, World, world

ROOT = Path(__file__).resolve().parents[1]
FAULTS_PER_RUN = 8
RUNS_PER_SETUP = 2
MOMENTS = ("upload", "steps")


def run_lane(number: int, faults: int, seed: int, output: Path) -> None:
    """Disturb runs until ``faults`` have happened; write one line of JSON for each fault and each run."""
    chance = random.Random(f"{seed}/{number}")
    with world(str(number)) as place, output.open("w", encoding="utf-8") as file:
        write_inputs(place)
        deck: list[str] = []
        done = runs = 0
        while done < faults:
            setup = Setup.draw(chance)
            began = time.monotonic()
            reference = refer(place, setup, f"undisturbed-{number}-{runs:02d}")
            print(f"lane {number}: {setup}: undisturbed in {time.monotonic() - began:.0f} s", flush=True)
            for _ in range(RUNS_PER_SETUP):
                if done < faults:
                    happened, how = run_disturbed(
                        place, setup, reference, f"run-{number}-{runs:02d}", chance, deck, number
                    )
                    done, runs = done + len(happened), runs + 1
                    for fault in happened:
                        file.write(json.dumps(asdict(fault)) + "\n")
                    file.write(json.dumps({"setup": str(setup), "ended": how}) + "\n")
                    file.flush()


def run_disturbed(
    place: World, setup: Setup, reference: Reference, name: str, chance: random.Random, deck: list[str], number: int
) -> tuple[list[Fault], str]:
    """Train one run and disturb it until it is nearly at its end; returns the faults, and how it ended."""
    run = Run(place, setup, name)
    run.wait_for(lambda: bool(place.checkpoints(run.directory)[0]), "a checkpoint")
    done: list[Fault] = []
    while len(done) < FAULTS_PER_RUN and run.step() < STEPS - 3 * SAVE_EVERY and not run.ended():
        length = len(run.text())
        kind = draw_kind(deck, run, chance)
        group = [disturb(run, kind, chance.choice(MOMENTS), chance)]
        if kind in ("driver", "worker") and chance.random() < 0.4:
            second = chance.choice([k for k in ("worker", "driver", "storage", "clock") if is_possible(k, run)])
            group.append(disturb(run, second, "start", chance))
        watch(run, group, length)
        for fault in group:
            print(f"lane {number}: {fault}", flush=True)
        done += group
    run.finish()
    place.set_clock(0)
    place.mend_nodes()
    how = compare(run, reference)
    print(f"lane {number}: {name}: {len(done)} faults, {how}", flush=True)
    remove(run)
    return done, how


def draw_kind(deck: list[str], run: Run, chance: random.Random) -> str:
    """Take the next kind of fault from the deck that can happen to this run."""
    while True:
        for kind in deck:
            if is_possible(kind, run):
                deck.remove(kind)
                return kind
        fresh = [kind for kind, (_, times) in KINDS.items() for _ in range(times)]
        chance.shuffle(fresh)
        deck += fresh


def format_table(done: list[Fault]) -> str:
    """Write the table of the documentation: one row per kind of fault."""
    lines = [
        "| fault | times | in mid-upload | in mid-restart | restarted | steps done again: mean, most "
        "| seconds until it went on: median, most |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in (*KINDS, "all"):
        rows = [fault for fault in done if kind in (fault.kind, "all")]
        if rows:
            lines.append("| " + " | ".join(map(str, _cells(kind, rows))) + " |")
    return "\n".join(lines)


def _cells(kind: str, rows: list[Fault]) -> list[str | int]:
    lost = [fault.lost for fault in rows if fault.resumed is not None]
    seconds = sorted(fault.seconds for fault in rows)
    details = Counter(fault.detail for fault in rows if fault.detail and kind != "all")
    words = ", ".join(f"{count} {detail}" for detail, count in sorted(details.items()))
    return [
        kind + (f" ({words})" if words else ""),
        len(rows),
        sum(fault.moment == "upload" for fault in rows),
        sum(fault.moment == "start" for fault in rows),
        len(lost),
        f"{sum(lost) / len(lost):.1f}, {max(lost)}" if lost else "none",
        f"{seconds[len(seconds) // 2]:.0f}, {seconds[-1]:.0f}",
    ]


def run_lanes(options: argparse.Namespace) -> int:
    """Run the lanes beside each other and report; returns the exit status."""
    began = time.monotonic()
    lanes: list[tuple[subprocess.Popen[bytes], Path]] = []
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process, _ in lanes])
    for number in range(options.lanes):
        lane_output = options.output.with_suffix(f".{number}{options.output.suffix}")
        share = len(range(number, options.faults, options.lanes))
        words = [sys.executable, __file__, "--lane", str(number), "--faults", str(share), "--seed", str(options.seed)]
        lanes.append((subprocess.Popen([*words, "--output", str(lane_output)], cwd=ROOT), lane_output))
    failed = [number for number, (process, _) in enumerate(lanes) if process.wait()]
    outputs = [path.read_text() for _, path in lanes if path.exists()]
    rows = [json.loads(line) for text in outputs for line in text.splitlines()]
    options.output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    verdict = report(rows, time.monotonic() - began)
    print(f"soak: {f'FAILED in lane {failed}' if failed else 'OK'} {verdict}")
    return int(bool(failed))


def report(rows: list[dict[str, Any]], seconds: float) -> str:
    """Print the table and how every run ended; returns the verdict in words."""
    names = {field.name for field in fields(Fault)}
    done = [Fault(**row) for row in rows if row.keys() == names]
    ended = [row for row in rows if "ended" in row]
    print(format_table(done))
    bitwise = sum(row["ended"].startswith("weights") for row in ended)
    print(f"{len(ended)} runs of {len({row['setup'] for row in ended})} configurations:")
    for row in ended:
        print(f"  {row['setup']}: {row['ended']}")
    return (
        f"{len(done)} faults in {seconds / 60:.0f} minutes, {len(ended)} runs: {bitwise} with the undisturbed run's "
        f"weights bit by bit, {len(ended) - bitwise} of another number of workers with its losses"
    )


def main() -> int:
    """Soak, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=150)
    parser.add_argument("--lanes", type=int, default=2, help="clusters beside each other")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("soak.jsonl"), help="one line per fault and per run")
    parser.add_argument("--lane", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lane is None:
        return run_lanes(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what was started and mounted, too
    try:
        run_lane(options.lane, options.faults, options.seed, options.output)
    except SoakError as error:
        print(f"lane {options.lane}: FAILED {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
