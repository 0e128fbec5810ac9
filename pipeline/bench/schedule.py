"""`bench schedule`: what steering costs, by workers that do nothing behind the real loop; and the scheduler in virtual
time, where it must keep focus workers busy and their batches full.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from operators.errors import ConfigError
from operators.records import clip_id
from pipeline.bench.environment import environment
from pipeline.bench.figures import Figure, Report, headline_of, measured, short
from pipeline.bench.null_run import FORMS, null_run
from pipeline.bench.simulation import Simulated, simulate
from pipeline.plan.placement import this_machine
from pipeline.scoring.read_labels import read_predictions
from pipeline.steering.done_set import DoneSet

Say = Callable[[str], None]
EXITS = (0.3805, 0.211, 0.1345, 0.112, 0.072, 0.0355, 0.0195, 0.035)
"""The share of clips that stop after each of 8 steps with the weights that ship, at a budget of 0.07 GMACs, on 2000
videos of the synthetic archive that calibration had not seen. `--exits` takes the shares of another calibration."""


def bench_schedule(
    *,
    say: Say,
    quick: bool = False,
    clips: int = 20_000,
    rounds: int = 5,
    minutes: float = 7.0,
    exits: Sequence[float] = EXITS,
    executor: str = "ray",
) -> Report:
    """Sends `clips` through the null workers in every round; rounds that would take beyond `minutes` are left out."""
    where = environment()
    if quick:
        clips, rounds, minutes = 400, 1, 1.0
    begun_s = time.monotonic()
    figures = _simulations(exits, 400 if quick else 8000, say)
    figures += _bytes_per_clip(100_000 if quick else 200_000)
    for name, form in FORMS.items():
        rates: list[float] = []
        lasted_s = 0.0
        for number in range(rounds):
            round_s = time.monotonic()
            if rates and round_s - begun_s + lasted_s > minutes * 60 * (0.65 if form.is_main else 0.95):
                break
            found = null_run(clips if form.is_main else clips // 4, form=form, executor=executor)
            rates += found.rates
            lasted_s = time.monotonic() - round_s
            say(f"{name}, round {number + 1} of {rounds}: {np.median(found.rates):.0f} clips/s; {found.text}")
        figures.append(
            measured(
                name,
                rates,
                unit="clips/s",
                goal=1000.0 if form.is_main else None,
                about=f"null workers run on {executor} with {form.about}; {found.text}",
            )
        )
    by_name = {figure.name: figure for figure in figures}
    headline = (
        f"the control plane moves {short(by_name['schedule.clips_per_s'].value)} clips per second through all stages "
        f"on {executor} with {this_machine().num_cores} cores; simulated batches are "
        f"{by_name['schedule.occupancy'].value:.1%} full, focus workers idle at most "
        f"{by_name['schedule.focus_idle_share'].value:.2%} of the time while patches wait"
    )
    return Report(
        what="schedule",
        headline=headline_of(headline, quick=quick),
        figures=tuple(figures),
        environment=where,
        settings={"clips": clips, "rounds": rounds, "exits": list(exits), "executor": executor, "quick": quick},
    )


def read_exits(path: Path) -> tuple[float, ...]:
    """The share of clips that stop after each step: a JSON list, or a folder of labels made with a stop rule."""
    if path.is_dir():
        stopped_at = read_predictions(path).stopped_at
        if stopped_at is None:
            raise ConfigError(f"{path}: its labels do not say where they stopped")
        return tuple(float(share) for share in np.bincount(stopped_at)[1:] / len(stopped_at))
    try:
        shares = tuple(float(share) for share in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as exc:
        raise ConfigError(f"{path} is no JSON list of the shares of clips that stop after each step: {exc}") from exc
    if not shares or min(shares) < 0 or sum(shares) <= 0:
        raise ConfigError(f"{path}: shares are not negative, and at least one is positive")
    return shares


def _simulations(exits: Sequence[float], clips: int, say: Say) -> list[Figure]:
    """The scheduler in virtual time, with few and many focus workers."""
    figures: list[Figure] = []
    occupancy: list[float] = []
    idle: list[float] = []
    decisions: list[float] = []
    for workers in (1, 4, 16):
        found = [
            simulate(exits=exits, num_clips=clips, num_focus_workers=workers, steps_per_round=1, seed=seed)
            for seed in range(3)
        ]
        occupancy.append(float(np.median([s.occupancy for s in found])))
        idle.append(float(np.median([s.idle_while_waiting for s in found])))
        decisions += [s.decisions_per_s for s in found]
        say(f"simulation with {workers} focus workers: {_described(found[0])}")
        figures += [
            measured(
                f"schedule.occupancy_{workers}",
                [s.occupancy for s in found],
                unit="",
                limit=1.0,
                goal=0.95,
                about=f"the share of rows without padding, simulated with {workers} focus workers and {clips} clips",
            ),
            measured(
                f"schedule.focus_idle_share_{workers}",
                [s.idle_while_waiting for s in found],
                unit="",
                goal=0.02,
                goal_is="at_most",
                about="focus workers idle for this share of the time in which patches wait",
            ),
        ]
    hungry = [
        simulate(exits=exits, num_clips=clips, num_focus_workers=16, num_stream_workers=16, seed=seed)
        for seed in range(3)
    ]
    say(f"simulation with 16 focus workers and only 16 stream workers: {_described(hungry[0])}")
    figures.append(
        measured(
            "schedule.focus_idle_share_16_hungry",
            [s.idle_while_waiting for s in hungry],
            unit="",
            goal_is="at_most",
            about="there are only 16 stream workers, for which the run then waits: passes are small, so a call's "
            "way counts for more",
        )
    )
    about = "the worst of the simulations with 1, 4 and 16 focus workers"
    return [
        *figures,
        measured("schedule.occupancy", [min(occupancy)], unit="", limit=1.0, goal=0.95, about=about),
        measured("schedule.focus_idle_share", [max(idle)], unit="", goal=0.02, goal_is="at_most", about=about),
        measured(
            "schedule.decisions_per_s",
            decisions,
            unit="calls/s",
            about="so many are chosen and ended by the scheduler alone",
        ),
    ]


def _described(found: Simulated) -> str:
    return (
        f"occupancy {found.occupancy:.3f}, idle {found.idle_while_waiting:.4f}, "
        f"{found.mean_batch:.1f} patches a pass, {found.clips_per_s:.0f} clips/s steered"
    )


def _bytes_per_clip(clips: int) -> list[Figure]:
    """What the driver keeps of a clip when it is done, counted in memory that it really holds."""
    done = DoneSet()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(clips):
        done.add(clip_id(f"{number:032x}", 0.0))
    done.extend(np.empty((0, 2), np.uint64))
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    about = (
        "the set of labelled clips is the only thing that the driver keeps of a clip that is done; its id has 16 B, "
        f"and the goal leaves 1 B for the set's own tables; measured after {clips} clips"
    )
    # The last per mille is the 256 buckets themselves.
    return [
        measured(
            "schedule.driver_bytes_per_clip",
            [kept / clips],
            unit="B",
            limit=16.0,
            goal=17.0,
            goal_is="at_most",
            about=about,
        )
    ]
