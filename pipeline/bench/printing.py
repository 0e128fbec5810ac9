"""A report for people: the line to quote, the table of figures, and the plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.bench.figures import Figure, Report, short

HEADER = ("figure", "value", "95 %", "n", "limit", "of it", "goal", "met", "")
_GOALS = ("goal", "met")


def as_text(report: Report) -> str:
    """The line to quote, the table, and what has to be known beside it."""
    lines = [report.headline, "", *rows_as_text(table(report))]
    return "\n".join([*lines, *(["", *report.notes] if report.notes else [])])


def table(report: Report) -> list[tuple[str, ...]]:
    """The header and one row for each figure. Tiny sizes reach no goals, so a quick report's table shows none."""
    rows = [HEADER, *map(_row, report.figures)]
    shown = [column for column, title in enumerate(HEADER) if not (report.is_quick and title in _GOALS)]
    return [tuple(row[column] for column in shown) for row in rows]


def _row(f: Figure) -> tuple[str, ...]:
    sign = {"at_least": "≥", "at_most": "≤", "no_less": "≥~"}
    share = f.share_of_limit
    return (
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


def rows_as_text(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines whose columns stand below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def draw(path: Path, report: Report) -> list[str]:
    """Draws every figure that has a goal or a limit as a share of it: above 1 a goal is reached. Returns what has to be
    known beside the plot; there is no file where there is nothing to draw."""
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
