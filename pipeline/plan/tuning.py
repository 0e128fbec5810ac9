"""Precision, compilation and batch sizes of the networks, chosen by measurement and remembered.

What is measured is the networks' architecture on this machine, for a few seconds and once: the answer is kept in a
file of the user's cache folder, one per machine, networks, threads and version of torch. Labels hang on precision and
compilation, so both are part of a run's identity; batch sizes are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from operators.durable import write_durably
from pipeline.plan.measuring import Clock, NetworkTrial, Trial, measure
from pipeline.plan.network_choice import CUT_SHORT, Choice, NetworkWork, by_rule
from pipeline.plan.processor import machine_facts

LIMIT_S = {"cpu": 6.0, "cuda": 20.0}
"""Seconds after which nothing further is tried. A GPU records every size, and cuDNN tries its algorithms for it."""
_FORMAT = 3


def cache_folder() -> Path:
    """The folder in which measurements are kept."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "saccade"


def choose(
    work: NetworkWork,
    *,
    device: str,
    threads: int,
    precision: str = "auto",
    compile: str = "auto",
    cache: Path | None = None,
    limit_s: float | None = None,
    doing: Callable[[str], None] = lambda text: None,
    make_trial: Callable[[NetworkWork, str], Trial] = NetworkTrial,
    clock: Clock = time.monotonic,
) -> Choice:
    """Decides what is `auto`, and the batch sizes: as remembered in `cache`, else by measuring.

    `limit_s`: after so long nothing further is tried; LIMIT_S if not said. What that cut short is measured once more
    by the next run, which takes up to four times as long and keeps what it has by then. A folder that cannot be
    written to costs a measurement per run. `doing` is called before anything is measured.
    """
    limit_s = LIMIT_S[device] if limit_s is None else limit_s
    rule = by_rule(work, device=device, precision=precision, compile=compile)
    if device == "cuda" and not torch.cuda.is_available():
        return rule
    question = {
        "format": _FORMAT,
        "machine": machine_facts(device),
        "torch": torch.__version__,
        "threads": threads,
        "precision": precision,
        "compile": compile,
        "work": asdict(work),
    }
    key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:24]
    path = None if cache is None else cache / "tuning" / f"{key}.json"
    known = None if path is None else _recall(path)
    if known is not None and known.how != CUT_SHORT:
        return replace(known, how="remembered")
    if known is not None:
        limit_s *= 4
    doing("measuring networks")
    choice = measure(
        work,
        rule,
        device=device,
        threads=threads,
        precision=precision,
        compile=compile,
        limit_s=limit_s,
        make_trial=make_trial,
        clock=clock,
    )
    if known is not None:
        choice = replace(choice, how="measured")
    if path is not None:
        _remember(path, question, choice)
    return choice


def _recall(path: Path) -> Choice | None:
    """The choice in a file; None where there is none that can be read."""
    try:
        return Choice(**json.loads(path.read_text())["choice"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(path: Path, question: dict[str, Any], choice: Choice) -> None:
    """Writes a choice for later runs; the next one measures again where this one cannot write."""
    text = json.dumps({"question": question, "choice": asdict(choice)}, indent=1)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, text.encode())
