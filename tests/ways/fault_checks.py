"""What a live run under faults is held to, by the log of all that happened."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from operators.records import ClipLabel
from pipeline.live.camera_process import ReaderHandle
from pipeline.live.worker import CameraNews
from tests.ways.faulty_cameras import GOP, NUM_FAULTY, NUM_FRAMES, STEADY, VIDEO_FPS

FPS, WINDOW_S, STRIDE_S = 5, 1.0, 0.4
SILENCE_S, OPEN_S, MAX_BACKOFF_S = 1.0, 2.0, 1.0
AWAY_S = 0.4
"""How far a frame's time may be from when it was sent."""


@dataclasses.dataclass
class Log:
    """All that happened while the faults struck."""

    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """What the cameras' process reported."""
    looked: dict[str, list[tuple[float, float, int, int | None]]] = dataclasses.field(
        default_factory=lambda: defaultdict(list)
    )
    """camera -> (time, segment, tick, number shown or None where it cannot be read) of every analysed frame."""
    looked_at: dict[str, list[float]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    """camera -> when it was looked at, frame by frame."""
    labels: list[ClipLabel] = dataclasses.field(default_factory=list)
    states: dict[str, CameraNews] = dataclasses.field(default_factory=dict)
    readers: dict[str, list[ReaderHandle]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    resources: list[tuple[float, int, int]] = dataclasses.field(default_factory=list)
    """(when, descriptors, children) whenever all cameras were live."""


def num_children() -> int:
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def wanted_rows(log: Log) -> dict[tuple[str, float], float]:
    """(camera, start) -> coverage of every window there must be, by counting ticks.

    A window is there when its last tick is, or, in part, when a later one is.
    """
    wanted = {}
    for camera, looked in log.looked.items():
        segments: dict[float, set[int]] = defaultdict(set)
        for _, segment, tick, _ in looked:
            segments[segment].add(tick)
        for segment, ticks in segments.items():
            k = 0
            while True:
                begin = k * Fraction(STRIDE_S).limit_denominator(1000)
                first = math.ceil(begin * FPS)
                behind = math.ceil((begin + Fraction(WINDOW_S).limit_denominator(1000)) * FPS)
                if behind > max(ticks) + 1:
                    break
                inside = len(ticks & set(range(first, behind)))
                if inside:
                    wanted[camera, round(segment + float(begin), 5)] = inside / (behind - first)
                k += 1
    return wanted


@dataclasses.dataclass
class Findings:
    """What is wrong, and the figures."""

    wrong: list[str] = dataclasses.field(default_factory=list)
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)


def check(log: Log, out: Path, started: dict[str, float], count: int, slack_s: float) -> Findings:
    """Holds the run to everything. `started`: when each camera was; `slack_s`: how late a busy machine may be."""
    found = Findings()
    check_rows(log, out, found)
    check_times(log, started, slack_s, found)
    check_reconnects(log, slack_s, found)
    struck = sum(event["event"] == "connected" and event["kind"] != "none" for event in log.events)
    if struck != count:
        found.wrong.append(f"{struck} faults happened, not {count}")
    found.figures["faults"] = struck
    check_steady(log, found)
    check_leftovers(log, found)
    return found


def check_rows(log: Log, out: Path, found: Findings) -> None:
    """Every window that was received is one row with its coverage, and no other is."""
    rows = ds.dataset(str(out / "labels"), format="parquet", partitioning="hive").to_table().to_pylist()
    keys = Counter((row["camera"], round(row["start_s"], 5)) for row in rows)
    wanted = wanted_rows(log)
    found.wrong += [f"{n} rows of {key}" for key, n in keys.items() if n > 1]
    found.wrong += [f"no row of {key}, all of which was received" for key in wanted.keys() - keys.keys()]
    found.wrong += [f"a row of {key}, which was not received" for key in keys.keys() - wanted.keys()]
    found.wrong += [
        f"coverage {row['coverage']} of {key}, not {wanted[key]}"
        for row in rows
        if (key := (row["camera"], round(row["start_s"], 5))) in wanted and abs(row["coverage"] - wanted[key]) > 1e-6
    ]
    found.figures["rows"] = len(rows)
    found.figures["whole_windows"] = sum(coverage == 1.0 for coverage in wanted.values())


def check_times(log: Log, started: dict[str, float], slack_s: float, found: Findings) -> None:
    """What frames show is what their times say."""
    away: list[float] = []
    for camera, looked in log.looked.items():
        for time_s, _, tick, number in looked:
            if number is None:
                found.wrong.append(f"{camera}: a smeared frame at {time_s:.2f}, tick {tick}")
                continue
            period_s = NUM_FRAMES / VIDEO_FPS
            off_s = (time_s - started[camera] - number / VIDEO_FPS + period_s / 2) % period_s - period_s / 2
            away.append(abs(off_s))
    late = sum(off_s > AWAY_S for off_s in away)
    if late > slack_s / 100 * len(away):
        found.wrong.append(f"{late} of {len(away)} frames are more than {AWAY_S} s from when they were sent")
    found.figures["frames"] = len(away)
    found.figures["worst_time_off_s"] = round(max(away), 3)


def check_reconnects(log: Log, slack_s: float, found: Findings) -> None:
    """Every camera comes back within its backoff, and is live where it has frames for long enough."""
    back: dict[str, list[float]] = defaultdict(list)
    for i in range(NUM_FAULTY):
        name = f"cam{i}"
        mine = sorted((e for e in log.events if e.get("camera") == name), key=lambda event: event["at"])
        connects = [event for event in mine if event["event"] == "connected"]
        for before, after in itertools.pairwise(connects):
            strikes = [e["at"] for e in mine if e["event"] == "struck" and before["at"] <= e["at"] <= after["at"]]
            since_s = strikes[-1] if strikes else before["at"]
            back[before["kind"]].append(after["at"] - since_s)
            if after["at"] - since_s > OPEN_S + MAX_BACKOFF_S + slack_s:
                found.wrong.append(f"{name}: connected again {after['at'] - since_s:.1f} s after: {before['kind']}")
            if not before["is_live_first"]:
                continue
            live_s = next((at for at in log.looked_at[name] if at > before["at"]), math.inf) - before["at"]
            served_s = since_s - before["at"]
            # A join between keyframes waits for one; times have to settle.
            if live_s < after["at"] - before["at"]:
                back["live, once it can be"].append(live_s)
            elif served_s > 2 * GOP / VIDEO_FPS + 2.0 + slack_s:
                found.wrong.append(f"{name}: not live in {served_s:.1f} s of a connection that {before['kind']}")
            else:
                back["cut off before it was live"].append(served_s)
        if log.states[name].num_reconnects < 1:
            found.wrong.append(f"{name} was never reconnected")
    found.figures["back_s"] = {kind: [round(max(times), 2), len(times)] for kind, times in sorted(back.items())}


def check_steady(log: Log, found: Findings) -> None:
    """The undisturbed camera notices nothing."""
    steady = sorted(label.latency_s for label in log.labels if label.camera == STEADY)
    p95_s = steady[int(len(steady) * 0.95)]
    if p95_s > 0.5:
        found.wrong.append(f"the undisturbed camera's p95 is {p95_s * 1000:.0f} ms")
    if log.states[STEADY].num_reconnects or len({segment for _, segment, *_ in log.looked[STEADY]}) != 1:
        found.wrong.append("the undisturbed camera was disturbed")
    found.figures["steady_p95_ms"] = round(p95_s * 1000)
    found.figures["dropped_behind"] = sum(news.num_behind for news in log.states.values())


def check_leftovers(log: Log, found: Findings) -> None:
    """No process and no descriptor is left."""
    (_, first_fds, first_children), (_, last_fds, last_children) = log.resources[0], log.resources[-1]
    if (last_fds, last_children) > (first_fds, first_children):
        found.wrong.append(f"descriptors {first_fds} -> {last_fds}, children {first_children} -> {last_children}")
    left = [handle.pid for handles in log.readers.values() for handle in handles if not handle.is_gone()]
    if left or num_children():
        found.wrong.append(f"{len(left)} readers are left, {num_children()} children")
    found.figures["readers"] = sum(map(len, log.readers.values()))
    found.figures["descriptors"] = [first_fds, last_fds]
