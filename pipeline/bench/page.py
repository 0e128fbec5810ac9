"""The results page: figures from benchmarks/*.json put into docs/benchmarks.md, between the words that are written by
hand. `python -m pipeline.bench.page` does that; with `--measure` every `bench` command runs first, with
`--only archive_sweep` the one that is not among them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from operators.errors import ConfigError
from pipeline.bench.figures import Report
from pipeline.bench.printing import table
from pipeline.bench.record import read

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RECORDED = ROOT / "benchmarks"
WHAT = ("decode", "compute", "archive", "schedule", "live")
SWEEP = "archive_sweep"
_OPTIONS = {SWEEP: ("archive", "--sweep")}
"""Arguments of `bench` where they are not the record's own name."""
_BLOCK = re.compile(r"(<!-- figures: (?P<name>[a-z_-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled_in(page: str, reports: Mapping[str, Report]) -> str:
    """The page with the block of every report written anew; a block without a report keeps what it has."""

    def block(match: re.Match[str]) -> str:
        report = reports.get(match["name"])
        return match[0] if report is None else f"{match[1]}{as_markdown(report, name=match['name'])}{match[4]}"

    return _BLOCK.sub(block, page)


def block_names(page: str) -> list[str]:
    return [match["name"] for match in _BLOCK.finditer(page)]


def as_markdown(report: Report, *, name: str) -> str:
    """The line to quote, where it was measured, and the table."""
    where = report.environment
    machine = [f"{where.get('cores')} cores of {where.get('cpu')} ({', '.join(where.get('cpu_flags') or ())})"]
    if where.get("gpu"):
        machine.insert(0, str(where["gpu"]))
    versions = [f"{package} {where[package]}" for package in ("torch", "ffmpeg", "ray") if where.get(package)]
    commit = str(where.get("git_commit") or "")[:10] + (" with changes" if where.get("git_dirty") else "")
    load = where.get("load_before") or [0.0]
    lasted_s = report.settings.get("lasted_s")
    lasted = "" if lasted_s is None else f"; took {lasted_s / 60:.1f} min"
    lines = [
        f"> {report.headline}",
        "",
        f"{'; '.join(machine)}; {', '.join(versions)}; commit {commit}; {where.get('time')}; load before: {load[0]:g}"
        f"{lasted}. [{name}.json](../benchmarks/{name}.json)",
        "",
        *_markdown_table(table(report)),
        "",
        *(f"- {note}" for note in report.notes),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    head, *rest = rows
    return [line(head), "|" + "---|" * len(head), *(line(row) for row in rest)]


def write_page(page: Path = PAGE, recorded: Path = RECORDED) -> list[str]:
    """Returns the blocks for which there is a record."""
    text = page.read_text()
    reports = {name: read(recorded / f"{name}.json") for name in block_names(text) if _is_there(recorded, name)}
    page.write_text(filled_in(text, reports))
    return list(reports)


def _is_there(recorded: Path, name: str) -> bool:
    return (recorded / f"{name}.json").is_file()


def record_name(name: str, *, has_gpu: bool) -> str:
    """Where a command's figures are kept: those of a GPU's networks beside the CPU's, never in their place."""
    return "compute-gpu" if name == "compute" and has_gpu else name


def measure(names: Sequence[str], recorded: Path = RECORDED, *, options: Sequence[str] = ()) -> list[str]:
    """Runs the commands one after another, each in a process of its own; returns those that failed."""
    failed = []
    for name in names:
        target = recorded / f"{record_name(name, has_gpu=torch.cuda.is_available())}.json"
        what = _OPTIONS.get(name, (name,))
        command = [sys.executable, str(ROOT / "run_pipeline.py"), "bench", *what, "--json", str(target), *options]
        print(f"bench {name}", file=sys.stderr, flush=True)
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(name)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes docs/benchmarks.md from benchmarks/*.json.")
    parser.add_argument("--measure", action="store_true", help="run the benchmarks first: about 40 minutes")
    parser.add_argument("--only", action="append", choices=(*WHAT, SWEEP), help="measure these; repeatable")
    options = parser.parse_args()
    failed = measure(options.only or WHAT) if options.measure or options.only else []
    try:
        written = write_page()
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    print(f"{PAGE.relative_to(ROOT)}: {', '.join(written) or 'nothing measured yet'}")
    if failed:
        print(f"did not end well: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
