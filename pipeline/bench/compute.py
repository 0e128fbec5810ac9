"""`bench compute`: how much of what the machine can multiply the networks make use of.

The limit is one product of square matrices in the same precision on the same threads, measured in turn with the
networks. What is timed of these is the whole operator, from pixels in an array to features in an array.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from operators.errors import ConfigError
from pipeline.bench.environment import environment
from pipeline.bench.figures import Figure, Report, headline_of, short
from pipeline.bench.lab import Lab, Say
from pipeline.bench.network_figures import batches, shares, sizes, small, standalone, whole_machine
from pipeline.bench.stage_share import pipeline_share
from pipeline.config import Config
from pipeline.plan.measuring import held_threads
from pipeline.plan.network_choice import Choice, NetworkWork, by_rule
from pipeline.plan.placement import place, this_machine
from pipeline.plan.tuning import choose


def bench_compute(
    *,
    say: Say,
    work: NetworkWork,
    full_px: int,
    config: Config | None = None,
    cache: Path | None = None,
    quick: bool = False,
    rounds: int = 9,
    minutes: float = 7.0,
    threads: int | None = None,
    device: str | None = None,
) -> Report:
    """Measures the networks of `work`.

    `threads`: how many the networks and the product have; without it as many as the pipeline gives its focus worker.
    `full_px`: the size of the whole view, with which patches are compared. `config`: the model whose stages are driven,
    with precision, compilation, device, threads and batch size where they are not to be chosen here. `cache`: folder of
    generated files.
    """
    asked = config or Config()
    device = _device(device or asked.compute.device)
    cores = asked.run.threads or this_machine().num_cores
    threads = threads or place(this_machine(), device=device, threads=asked.run.threads).focus_threads
    where = environment()
    rounds, minutes = (2, 0.5) if quick else (rounds, minutes)
    budget_s = minutes * 60
    with held_threads(threads):
        choice = chosen(work, asked, device=device, threads=threads, quick=quick)
        say(choice.line())
        lab = Lab(work, device=device, threads=threads, frames=4 if quick else work.glances)
        figures = shares(lab, choice, rounds, budget_s * 0.35, say)
        if not quick:
            figures += sizes(lab, choice, full_px, rounds, budget_s * 0.2, say)
            figures += batches(lab, choice, rounds, budget_s * 0.1, say)
        figures += small(lab, choice, rounds, budget_s * 0.05, say)
        if device == "cuda":
            figures += standalone(lab, choice, rounds, budget_s * 0.1, say)
        if config is not None:
            figures += pipeline_share(lab, choice, config, rounds, budget_s * 0.1, say)
    if device == "cpu" and cores > threads and not quick:
        with held_threads(cores):
            whole = Lab(work, device=device, threads=cores, frames=work.glances)
            figures += whole_machine(whole, choice, rounds, budget_s * 0.1, say)
    labels, notes = _labels_in_bf16(device, cache, say, quick=quick)
    if device == "cpu" and threads == 1:
        notes.append("Seconds are the processor's: on one thread, others on the machine take nothing of them.")
    figures += labels
    return Report(
        what="compute",
        headline=headline_of(_headline(figures, work, choice, threads, device), quick=quick),
        figures=tuple(figures),
        environment=where,
        settings={
            "work": asdict(work), "full_px": full_px, "rounds": rounds, "minutes": minutes, "quick": quick,
            "threads": threads, "device": device, "precision": choice.precision, "compile": choice.compile,
            "glance_batch": choice.glance_batch, "focus_batch": choice.focus_batch,
        },
        notes=(choice.line(), *notes),
    )  # fmt: skip


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU here: --device cpu")
    return asked


def _labels_in_bf16(device: str, cache: Path | None, say: Say, *, quick: bool) -> tuple[list[Figure], list[str]]:
    """Whether labels in bf16 are those in fp32; a note in place of figures where that cannot be compared."""
    try:
        from pipeline.bench.precision import bf16_figures
    except ImportError as exc:
        return [], [f"labels in bf16 were not compared, which needs PyAV and OpenCV: {exc}"]
    try:
        return bf16_figures(device=device, cache=cache, say=say, quick=quick), []
    except Exception as exc:
        # What was measured before is worth keeping.
        return [], [f"labels in bf16 were not compared: {type(exc).__name__}: {exc}"]


def chosen(work: NetworkWork, asked: Config, *, device: str, threads: int, quick: bool) -> Choice:
    """How the networks are run: as asked for, and where nothing is asked for as measuring says."""
    how: dict[str, Any] = {"device": device, "precision": asked.compute.precision, "compile": asked.compute.compile}
    if quick:
        choice = replace(by_rule(work, **how), glance_batch=4, focus_batch=8)
    else:
        choice = choose(work, threads=threads, **how)
    return replace(choice, focus_batch=asked.focus.batch_size or choice.focus_batch)


def _headline(figures: Iterable[Figure], work: NetworkWork, choice: Choice, threads: int, device: str) -> str:
    by_name = {figure.name: figure for figure in figures}
    focus, glance = by_name["compute.focus_share_of_gemm"], by_name["compute.glance_share_of_gemm"]
    on = "a GPU" if device == "cuda" else f"{threads} thread{'s' if threads > 1 else ''}"
    line = (
        f"in {choice.precision} on {on} the focus network runs at {focus.value:.0%} and the glance network at "
        f"{glance.value:.0%} of the machine's matrix product, {short(by_name['compute.gemm'].value)} GMAC/s"
    )
    if "compute.full_vs_patches" in by_name:
        line += (
            f"; glances and {work.patch_px} px patches take 1/{short(by_name['compute.full_vs_patches'].value)} "
            "of focusing on full frames"
        )
    return line
