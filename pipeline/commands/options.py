"""What all commands share: options, the config they make, signals, exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import config as configuration
from pipeline.run.loop import StopRequest

if TYPE_CHECKING:
    from pipeline.inputs.sources import Tally
    from pipeline.run.metrics import RunSummary

FAILED, USAGE, SOME_FAILED, NO_INPUT = 1, 2, 3, 4


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal came: nothing is drained any more."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that most commands share."""
    options = [
        click.option("--config", "config_file", metavar="FILE", help="Config file, or the bare name of a preset."),
        click.option("--checkpoint", type=click.Path(), help="Weights: the project's own form or a published one."),
        click.option("--classes", type=click.Path(), help="Class names, one per line."),
        click.option("--set", "settings", multiple=True, metavar="KEY.SUB=VALUE", help="One setting; repeatable."),
        click.option("--executor", type=click.Choice(["ray", "inline"]), help="Where the stages run."),
        click.option("--ray-address", metavar="ADDR", help="Join a running Ray cluster."),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable summary on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="No progress."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that label inputs."""
    folder = click.Path(path_type=Path)
    options = [
        click.option("--videos", type=folder, help="Where the videos of an annotation or split file lie."),
        click.option("--subset", help="Take one subset of an annotation file."),
        click.option("--limit", type=click.IntRange(min=0), help="Take at most so many inputs."),
        click.option("--dry-run", is_flag=True, help="Say what would be labelled and what it would cost."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def load_config(
    config_file: str | None,
    settings: tuple[str, ...],
    *,
    checkpoint: str | None = None,
    classes: str | None = None,
    executor: str | None = None,
    ray_address: str | None = None,
    metrics_port: int | None = None,
) -> configuration.Config:
    given = {
        "live.metrics_port": metrics_port,
        "model.checkpoint": checkpoint,
        "model.classes": classes,
        "run.executor": executor,
        "run.ray_address": ray_address,
    }
    return configuration.load(
        config_file, settings=settings, flags={k: v for k, v in given.items() if v is not None}
    )


def stop_on_signals() -> StopRequest:
    """The first SIGINT or SIGTERM drains and commits what is done; the second stops at once."""
    stop = StopRequest()

    def handle(number: int, frame: Any) -> None:
        if stop.is_set:
            raise StoppedAtOnce(number)
        stop.is_set = True
        stop.signal_number = number
        # Not print: the signal may have come in the middle of one.
        with contextlib.suppress(OSError):
            os.write(2, b"stopping: committing what is done; once more to stop at once\n")

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


def exit_code(
    inputs: Sequence[str], tally: Tally, runs: Sequence[RunSummary], *, allow_failures: bool = False
) -> int:
    """Of runs over the same inputs that were not interrupted; what came to no input at all is told."""
    for problem in dict.fromkeys(tally.problems):
        say(problem)
    if not tally.num_sources:
        say("no input found: " + ", ".join(inputs))
        return NO_INPUT
    return 0 if allow_failures or all(run.is_whole for run in runs) else SOME_FAILED


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
