"""What a measurement is told as: figures with their interval, their limit and their goal, and where they were taken.

A number without its limit beside it means little, and one without an interval may mean nothing. Ratios are taken round
by round, the two sides in turn, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from operators.errors import ConfigError
from pipeline.plan.placement import this_machine

GoalIs = Literal["at_least", "at_most", "no_less"]
"""`no_less`: met unless the whole interval lies below the goal; for what must not fall, where noise is no fall."""
CONFIDENCE = 0.95
_ENOUGH = 6
"""Samples of a side: fewer bound no median at 95 %."""
_CONDITIONS = (
    "cpu", "cpu_flags", "cores", "gpu", "threads", "torch", "ray", "av", "ffmpeg", "opencv-python-headless",
    "torchcodec", "decord",
)  # fmt: skip
_EXTENT = ("rounds", "minutes", "sizes", "lasted_s")
"""Settings that say how often something was measured, not what."""
_ISA = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that was measured. `low` and `high` bound the median with 95 % confidence; see `interval`."""

    name: str
    value: float
    unit: str
    low: float
    high: float
    n: int
    """Samples behind the value."""
    limit: float | None = None
    """What the machine allows at best, in the same unit."""
    goal: float | None = None
    met: bool | None = None
    goal_is: GoalIs = "at_least"
    about: str = ""
    """What was measured, in a few words; with the exact counts behind it."""
    samples: tuple[float, ...] = ()

    @property
    def share_of_limit(self) -> float | None:
        """1 is all that can be had, whichever direction is better."""
        if self.limit is None or not self.value or not self.limit:
            return None
        return self.limit / self.value if self.goal_is == "at_most" else self.value / self.limit


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one `bench` command found."""

    what: str
    headline: str
    """One line that can be quoted."""
    figures: tuple[Figure, ...]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Sizes and repeats: with others the figures are others."""
    notes: tuple[str, ...] = ()

    def figure(self, name: str) -> Figure | None:
        return next((figure for figure in self.figures if figure.name == name), None)


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Bounds of the median at 95 % whatever the distribution, from the order of the samples.

    Fewer than six samples cannot say so much; then it is their whole range, which holds the median with a probability
    of 1 - 2^(1-n): 75 % for three, 94 % for five.
    """
    ordered = sorted(samples)
    n = len(ordered)
    cut = 0
    while 1 - 2 * sum(math.comb(n, k) for k in range(cut + 1)) / 2**n >= CONFIDENCE:
        cut += 1
    cut = max(0, cut - 1)
    return ordered[cut], ordered[n - 1 - cut]


def measured(
    name: str,
    samples: Sequence[float],
    *,
    unit: str,
    about: str = "",
    limit: float | None = None,
    goal: float | None = None,
    goal_is: GoalIs = "at_least",
) -> Figure:
    """The median of the samples."""
    if not samples:
        raise ValueError(f"{name}: no samples")
    value, (low, high) = statistics.median(samples), interval(samples)
    met = None
    if goal is not None:
        met = {"at_least": value >= goal, "at_most": value <= goal, "no_less": max(value, high) >= goal}[goal_is]
    return Figure(
        name=name, value=value, unit=unit, low=low, high=high, n=len(samples), limit=limit, goal=goal, met=met,
        goal_is=goal_is, about=about, samples=tuple(samples),
    )  # fmt: skip


def ratio(name: str, over: Sequence[float], under: Sequence[float], **form: Any) -> Figure:
    """over/under round by round: how many times as fast the second is, where both are seconds."""
    return measured(name, [a / b for a, b in zip(over, under, strict=True)], unit=form.pop("unit", "x"), **form)


def take_turns(
    sides: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    budget_s: float,
    say: Callable[[str], None],
    at_least: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[float]]:
    """Every side once per round, in an order that turns round from round to round, until the time is spent.

    A side runs and returns its sample. A round is begun only if the longest so far would still fit.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    begun_s, longest_s = clock(), 0.0
    for number in range(rounds):
        round_s = clock()
        if number >= at_least and round_s - begun_s + longest_s > budget_s:
            say(f"time is up after {number} of {rounds} rounds")
            break
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            samples[name].append(sides[name]())
        longest_s = max(longest_s, clock() - round_s)
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{name} {s[-1]:.4g}" for name, s in samples.items()))
    return samples


def environment() -> dict[str, Any]:
    """Where the figures hold."""
    import torch

    machine = this_machine()
    changed = _git("status", "--porcelain", "--untracked-files=no")
    found: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cpu_flags": [flag for flag in _ISA if flag in _cpu_flags()],
        "cores": machine.num_cores,
        "memory_gb": round(machine.memory_bytes / 2**30, 1),
        **_gpu(),
        # Other people's work on the same cores; the figures are worth less the higher it is.
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "threads": {
            **{name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
            # What the libraries made of it in this process; workers are given theirs by the placement.
            "torch": torch.get_num_threads(),
        },
        "os": platform.platform(),
        "python": platform.python_version(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if changed is None else bool(changed),
    }
    for package in ("torch", "ray", "numpy", "av", "opencv-python-headless", "torchcodec", "decord"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["ffmpeg"] = _ffmpeg()
    return found


def check_writable(path: Path) -> None:
    """Raises ConfigError where no file of this name can be written: said before measuring, not after."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc}") from exc


def write(path: Path, report: Report) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(asdict(report), indent=1) + "\n")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read(path: Path) -> Report:
    """A report that `write` wrote. Raises ConfigError where it is none."""
    try:
        tree = json.loads(path.read_text())
        figures = tuple(Figure(**{**entry, "samples": tuple(entry["samples"])}) for entry in tree["figures"])
        return Report(**{**tree, "figures": figures, "notes": tuple(tree["notes"])})
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{path} is no JSON file of `bench`: {exc}") from exc


def told(report: Report) -> str:
    """The line to quote, the table, and what has to be known beside it."""
    lines = [report.headline, "", *rows_as_text(table(report.figures))]
    return "\n".join([*lines, *(["", *report.notes] if report.notes else [])])


def draw(path: Path, report: Report) -> list[str]:
    """Every figure that has a goal or a limit, as a share of it: above 1 a goal is reached. Returns what has to be
    known beside it; there is no file where there is nothing to draw."""
    from pipeline.scoring.plots import draw_shares

    rows: list[tuple[str, float, float, float]] = []
    notes: list[str] = []
    for f in report.figures:
        against = f.goal if f.goal is not None else f.limit
        if against is None:
            continue
        kind = "goal" if f.goal is not None else "limit"
        if against <= 0:
            notes.append(f"not drawn: {f.name}, {short(f.value)}, whose {kind} is {short(against)}")
            continue
        rows.append((f"{f.name} / {kind} {short(against)}", *_shares_drawn(f, against)))
    if not rows:
        return [*notes, f"nothing to draw: no figure of bench {report.what} is a share of a goal or a limit"]
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_shares(path, rows, title=report.headline, x_label="share of the goal, or of the limit where there is no goal")
    return notes


def _shares_drawn(f: Figure, against: float) -> tuple[float, float, float]:
    """Value and interval over `against`, the better the larger: above 0, as the axis is logarithmic.

    A tenth of what is allowed is as good as can be seen, a hundredth of what is wanted as bad.
    """
    if f.goal_is == "at_most":
        value, low, high = (min(against / x, 10.0) if x > 0 else 10.0 for x in (f.value, f.high, f.low))
        return value, low, high
    value, low, high = (max(x / against, 0.01) for x in (f.value, f.low, f.high))
    return value, low, high


HEADER = ("figure", "value", "95 %", "n", "limit", "of it", "goal", "met", "")


def table(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [HEADER]
    sign = {"at_least": "≥", "at_most": "≤", "no_less": "≥~"}
    for f in figures:
        share = f.share_of_limit
        rows.append(
            (
                f.name,
                f"{short(f.value)} {f.unit}".strip(),
                f"{short(f.low)} .. {short(f.high)}" if f.n > 1 else "",
                str(f.n),
                "" if f.limit is None else short(f.limit),
                "" if share is None else f"{share:.0%}",
                "" if f.goal is None else f"{sign[f.goal_is]} {short(f.goal)}",
                {True: "yes", False: "NO", None: ""}[f.met],
                f.about,
            )
        )
    return rows


def rows_as_text(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def short(value: float) -> str:
    """Three digits are more than most measurements are worth."""
    if value and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of two reports: how many times the second's the first's is."""

    name: str
    first: float
    second: float
    ratio: float | None = None
    """None where one of the two is not positive: then there is no ratio, and both are shown."""
    low: float | None = None
    high: float | None = None
    why_not: str = ""
    """There is no interval, for this reason."""

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            is_same = self.first == self.second
            return "no difference" if is_same else f"{short(self.first)} -> {short(self.second)}"
        if self.low is None or self.high is None:
            return f"cannot say: {self.why_not}"
        return "no difference" if self.low <= 1.0 <= self.high else f"{self.ratio - 1:+.1%}"


def compare(first: Report, second: Report) -> list[Difference]:
    """second/first of every figure that both have in one unit."""
    return [_difference(figure, other) for figure, other in _pairs(first, second) if figure.unit == other.unit]


def _pairs(first: Report, second: Report) -> list[tuple[Figure, Figure]]:
    found = [(figure, second.figure(figure.name)) for figure in first.figures]
    return [(figure, other) for figure, other in found if other is not None]


def _difference(first: Figure, second: Figure) -> Difference:
    form: dict[str, Any] = {"name": first.name, "first": first.value, "second": second.value}
    if min(first.value, second.value) <= 0:
        return Difference(**form)
    fewest = min(len(first.samples), len(second.samples))
    if fewest < _ENOUGH or min(*first.samples, *second.samples) <= 0:
        why_not = "not all samples are above 0" if fewest >= _ENOUGH else f"samples: {fewest}"
        return Difference(**form, ratio=second.value / first.value, why_not=why_not)
    ratio, low, high = _ratio_of_medians(first.samples, second.samples)
    return Difference(**form, ratio=ratio, low=low, high=high)


def _ratio_of_medians(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """second/first with its bounds, of samples that were not taken in turn: by drawing from them again."""
    rng = np.random.default_rng(0)
    ours, theirs = (np.median(rng.choice(side, (4000, len(side))), axis=1) for side in (first, second))
    low, high = np.quantile(theirs / ours, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    ratio = statistics.median(second) / statistics.median(first)
    return ratio, min(float(low), ratio), max(float(high), ratio)


def compare_text(first: Report, second: Report) -> str:
    differences = compare(first, second)
    if not differences:
        raise ConfigError("the two files have no figure in common: compare those of the same `bench` command")
    rows: list[tuple[str, ...]] = [("figure", "ratio", "95 %", "")]
    for d in differences:
        quotient = "" if d.ratio is None else f"{d.ratio:.3f}"
        bounds = "" if d.low is None else f"{d.low:.3f} .. {d.high:.3f}"
        rows.append((d.name, quotient, bounds, d.verdict))
    return "\n".join([*rows_as_text(rows), *_left_out(first, second), *_other_conditions(first, second)])


def _left_out(first: Report, second: Report) -> list[str]:
    """Figures that there is nothing to compare with."""
    lines = [
        f"not in one unit: {figure.name}, {figure.unit or 'no unit'} and {other.unit or 'no unit'}"
        for figure, other in _pairs(first, second)
        if figure.unit != other.unit
    ]
    for which, one, another in (("first", first, second), ("second", second, first)):
        alone = [figure.name for figure in one.figures if another.figure(figure.name) is None]
        if alone:
            lines.append(f"only in the {which}: {', '.join(alone)}")
    return lines


def _other_conditions(first: Report, second: Report) -> list[str]:
    """What was not the same when the two were measured, so that figures may differ for it."""

    def conditions(report: Report) -> dict[str, Any]:
        where = {name: report.environment.get(name) for name in _CONDITIONS}
        how = {name: value for name, value in report.settings.items() if name not in _EXTENT}
        return {**_flat(where), **_flat(how)}

    ours, theirs = conditions(first), conditions(second)
    return [
        f"not the same {name}: {_told(ours.get(name))} and {_told(theirs.get(name))}"
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """With dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": one for inner, one in _flat(value).items()}
        else:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _told(value: Any) -> str:
    if value is None:
        return "nothing"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cpu_model() -> str:
    for line in _cpuinfo():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def _gpu() -> dict[str, Any]:
    """The GPU, and what drives it."""
    import torch

    if not torch.cuda.is_available():
        return {"gpu": None}
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "gpu_driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    text = path.read_text() if path.is_file() else ""
    found = re.search(r"Module\s+(?:for \S+\s+)?(\d[\d.]+)", text)
    return found[1] if found else None


def _ffmpeg() -> str | None:
    """None where there is no PyAV: the networks are measured without it too."""
    try:
        from pipeline.bench.plain import ffmpeg_version
    except ImportError:
        return None
    return ffmpeg_version()


def _git(*arguments: str) -> str | None:
    """None where there is no repository, or no git."""
    root = Path(__file__).resolve().parent.parent.parent
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
