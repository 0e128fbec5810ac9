"""The parts that all commands share: options, their config, signals, exit codes. It loads little: `--help` is quick."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from operators.records import Source
    from pipeline.config import Config
    from pipeline.inputs.tally import InputTally
    from pipeline.run.loop import StopRequest
    from pipeline.run.metrics import RunSummary

FAILED, USAGE, SOME_FAILED, NO_INPUT = 1, 2, 3, 4
FOLDER = click.Path(path_type=Path)


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal came: nothing is drained any more."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The values of the options that most commands share."""

    config_file: str | None
    checkpoint: str | None
    classes: str | None
    settings: tuple[str, ...]
    executor: str | None
    ray_address: str | None
    as_json: bool
    quiet: bool

    def config(self, *, preset: str | None = None, metrics_port: int | None = None) -> Config:
        """The config of the command; `preset` is taken where neither a config nor a checkpoint is given."""
        return load_config(
            self.config_file or (preset if self.checkpoint is None else None),
            self.settings,
            checkpoint=self.checkpoint,
            classes=self.classes,
            executor=self.executor,
            ray_address=self.ray_address,
            metrics_port=metrics_port,
        )


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The inputs that a command is to label: its arguments and the options that choose among what they lead to."""

    inputs: tuple[str, ...]
    videos: Path | None
    subset: str | None
    limit: int | None
    dry_run: bool

    def check(self, out: Path, config: Config | None) -> None:
        """Refuses what cannot go well, before torch is loaded, which takes seconds, and before anything is started.

        `config` is None where the weights come from elsewhere.
        """
        from operators.table.output import check_output
        from pipeline.config import check_weights
        from pipeline.inputs.sources import check_names

        if config is not None:
            check_weights(config)
        check_names(self.inputs, videos=self.videos)
        if not self.dry_run:
            check_output(out)

    def lister(self, tally: InputTally, *, is_read_again: bool = False) -> Callable[[Sequence[str]], Iterator[Source]]:
        """A function from the class names to the inputs. `tally` counts what was met on the way.

        `is_read_again`: the function will be called more than once; standard input, which can be read only once, is
        kept for that.
        """
        from pipeline.inputs.sources import sources as sources_of

        kept: list[bytes] = []

        def sources(names: Sequence[str]) -> Iterator[Source]:
            stdin: IO[bytes] | None = None if sys.stdin is None else sys.stdin.buffer
            if is_read_again and stdin is not None and "-" in self.inputs:
                kept[:] = kept or [stdin.read()]
                stdin = io.BufferedReader(io.BytesIO(kept[0]))  # type: ignore[arg-type]
            found = sources_of(
                self.inputs, videos=self.videos, subset=self.subset, class_names=names, stdin=stdin, tally=tally
            )
            return itertools.islice(found, self.limit)

        return sources


def _gathered(record: type, name: str, parameters: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """A decorator that gives a command these parameters and calls it with one record of them, as argument `name`."""
    fields = [field.name for field in dataclasses.fields(record)]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathering(**given: Any) -> Any:
            return command(**{name: record(**{field: given.pop(field) for field in fields})}, **given)

        for parameter in reversed(parameters):
            gathering = parameter(gathering)
        return gathering

    return decorate


def with_run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a command with the options that most commands share; it gets them as `options`."""
    shared = [
        click.option("--config", "config_file", metavar="FILE", help="Config file, or the bare name of a preset."),
        click.option("--checkpoint", type=click.Path(), help="Weights: the project's own form or a published one."),
        click.option("--classes", type=click.Path(), help="Class names, one per line."),
        click.option("--set", "settings", multiple=True, metavar="KEY.SUB=VALUE", help="One setting; repeatable."),
        click.option("--executor", type=click.Choice(["ray", "inline"]), help="Where the stages run."),
        click.option("--ray-address", metavar="ADDR", help="Join a running Ray cluster."),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable summary on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="No progress."),
    ]
    return _gathered(RunOptions, "options", shared)(command)


def with_inputs(metavar: str) -> Callable[..., Any]:
    """A decorator for commands that label inputs: they get their arguments and options as `listing`."""
    shared = [
        click.argument("inputs", nargs=-1, required=True, metavar=metavar),
        click.option("--videos", type=FOLDER, help="Where the videos of an annotation or split file lie."),
        click.option("--subset", help="Take one subset of an annotation file."),
        click.option("--limit", type=click.IntRange(min=0), help="Take at most so many inputs."),
        click.option("--dry-run", is_flag=True, help="Say what would be labelled and what it would cost."),
    ]
    return _gathered(Listing, "listing", shared)


def load_config(
    config_file: str | None,
    settings: tuple[str, ...],
    *,
    checkpoint: str | None = None,
    classes: str | None = None,
    executor: str | None = None,
    ray_address: str | None = None,
    metrics_port: int | None = None,
) -> Config:
    """The config of a file, of settings and of flags."""
    from pipeline import config as configuration

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
    from pipeline.run.loop import StopRequest

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
    inputs: Sequence[str], tally: InputTally, runs: Sequence[RunSummary], *, allow_failures: bool = False
) -> int:
    """The exit code of runs over the same inputs that were not interrupted; prints what came to no input at all."""
    for problem in dict.fromkeys(tally.problems):
        say(problem)
    if not tally.num_sources:
        say("no input found: " + ", ".join(inputs))
        return NO_INPUT
    return 0 if allow_failures or all(run.is_whole for run in runs) else SOME_FAILED


def say(text: str) -> None:
    """Prints a message on stderr."""
    print(text, file=sys.stderr, flush=True)
