"""`bench ...`: the commands that measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from operators.errors import ConfigError
from pipeline.commands.options import load_config, say

if TYPE_CHECKING:
    from pipeline import wait_passively
from pipeline.bench.figures import Report

PLOTS = (".png", ".svg", ".pdf")
POSITIVE = click.FloatRange(min=0, min_open=True)


@click.group()
def bench() -> None:
    """Measure: each command ends within 8 minutes on two cores and says how near the limit it came.

    \b
    Example:
      saccade bench decode --json decode.json --plot decode.png
      saccade bench compare before.json after.json
    """


def bench_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of everything that is measured."""
    folder = click.Path(path_type=Path)
    options = [
        click.option("--json", "json_file", type=folder, required=True, metavar="FILE", help="The figures."),
        click.option("--plot", "plot_file", type=folder, metavar="FILE.png", help="Figures as shares of their goals."),
        click.option(
            "--quick", is_flag=True, help="Tiny sizes, which show that it runs, not how fast; no goals are printed."
        ),
        click.option("--cache", type=folder, help="Folder of generated files; out/bench/workloads if not given."),
        click.option("-q", "--quiet", is_flag=True, help="No progress."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def turn_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of what is measured in turn."""
    rounds = click.option("--rounds", type=click.IntRange(min=1), help="Turns; as many as fit at most.")
    about = "No round is begun beyond it."
    minutes = click.option("--minutes", type=POSITIVE, default=7.0, show_default=True, help=about)
    return rounds(minutes(command))


def measure_and_keep(
    measure: Callable[..., Any],
    json_file: Path,
    plot_file: Path | None,
    quiet: bool,
    keeps_parts: bool = False,
    **options: Any,
) -> int:
    """Runs a benchmark with the options that were given, and prints and keeps what it found."""
    from pipeline.bench.printing import as_text, draw
    from pipeline.bench.record import check_writable, write

    for path in filter(None, (json_file, plot_file)):
        check_writable(path)
    if plot_file is not None and plot_file.suffix.lower() not in PLOTS:
        raise ConfigError(f"--plot {plot_file}: name it {', '.join(PLOTS)}")
    given = {name: value for name, value in options.items() if value is not None}
    begun_s = time.monotonic()

    def keep(report: Report) -> Report:
        """Writes the report with how long it all took, what had to be generated for it included."""
        report = replace(report, settings={**report.settings, "lasted_s": round(time.monotonic() - begun_s, 1)})
        write(json_file, report)
        return report

    if keeps_parts:
        given["keep"] = keep
    report = keep(measure(say=(lambda text: None) if quiet else say, **given))
    click.echo(as_text(report))
    if plot_file is not None:
        for note in draw(plot_file, report):
            click.echo(note)
    return 0


def _without_turns(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("rounds", "minutes")}


@bench.command("decode")
@bench_options
@turn_options
def bench_decode(**options: Any) -> int:
    """Frames out of videos: this project's reader, TorchCodec, decord, and decoding everything.

    \b
    Example:
      saccade bench decode --json decode.json
    """
    from pipeline.bench.decode import bench_decode as measure

    return measure_and_keep(measure, **options)


@bench.command("compute")
@bench_options
@turn_options
@click.option("--threads", type=click.IntRange(min=1), help="As many as the focus worker has, if not given.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="The GPU where there is one, if not given.")
@click.option("--config", "config_file", metavar="FILE", default="adafocus_activitynet", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY.SUB=VALUE", help="One setting; repeatable.")
def bench_compute(config_file: str, settings: tuple[str, ...], **options: Any) -> int:
    """The networks of a preset, beside what the machine can multiply.

    \b
    Example:
      saccade bench compute --json compute.json
      saccade bench compute --json tsm.json --config adafocus_tsm_something_v1
    """
    from pipeline.bench.compute import bench_compute as measure
    from pipeline.plan.placement import this_machine
    from pipeline.plan.resolve import network_work, resolve

    config = load_config(config_file, settings)
    plan = resolve(config.replaced({"model.untrained": config.model.checkpoint is None}), this_machine())
    work = network_work(plan.config, plan.header)
    return measure_and_keep(measure, **options, work=work, full_px=plan.config.view.crop_px, config=config)


@bench.command("schedule")
@bench_options
@turn_options
@click.option("--clips", type=click.IntRange(min=100), help="Clips of each round.")
@click.option("--exits", "exits_file", type=click.Path(path_type=Path), help="JSON list, or OUT of labels with stops.")
@click.option("--executor", type=click.Choice(["ray", "inline"]), help="Where the null workers run.")
def bench_schedule(cache: Path | None, exits_file: Path | None, **options: Any) -> int:
    """Steering: workers that do nothing behind the real loop, and the scheduler in virtual time.

    \b
    Example:
      saccade bench schedule --json schedule.json
    """
    from pipeline.bench.schedule import bench_schedule as measure
    from pipeline.bench.schedule import read_exits

    return measure_and_keep(measure, **options, exits=None if exits_file is None else read_exits(exits_file))


@bench.command("archive")
@bench_options
@turn_options
@click.option("--config", "config_file", metavar="FILE", default="adafocus_activitynet", show_default=True)
@click.option("--checkpoint", type=click.Path(), help="Weights; random ones if not given, which cost the same.")
@click.option("--set", "settings", multiple=True, metavar="KEY.SUB=VALUE", help="One setting; repeatable.")
@click.option("--executor", type=click.Choice(["ray", "inline"]), help="Where the stages run.")
@click.option("--policies", metavar="A,B,...", help="Baselines: center,random,full if not given.")
@click.option("--sweep", "is_swept", is_flag=True, help="Cost against size instead: about 20 minutes.")
def bench_archive(
    config_file: str,
    checkpoint: str | None,
    settings: tuple[str, ...],
    executor: str | None,
    policies: str | None,
    is_swept: bool,
    **options: Any,
) -> int:
    """From files to labels, beside the limit of the machine and a plain loop.

    \b
    Example:
      saccade bench archive --json archive.json
      saccade bench archive --json archive_sweep.json --sweep
    """
    from pipeline.bench.archive import bench_archive as measure
    from pipeline.bench.sweep import bench_sweep

    config = load_config(config_file, settings, checkpoint=checkpoint, executor=executor)
    if config.model.checkpoint is None:
        config = config.replaced({"model.untrained": True})
    if is_swept:
        return measure_and_keep(bench_sweep, **_without_turns(options), config=config, keeps_parts=True)
    chosen = None if policies is None else [name for name in policies.split(",") if name]
    return measure_and_keep(measure, **options, config=config, policies=chosen)


@bench.command("live")
@bench_options
@click.option("--cameras", type=click.IntRange(min=1), help="Cameras watched at once.")
@click.option("--seconds", type=POSITIVE, help="From the first label on.")
@click.option("--set", "settings", multiple=True, metavar="KEY.SUB=VALUE", help="One setting; repeatable.")
def bench_live(settings: tuple[str, ...], cache: Path | None, **options: Any) -> int:
    """Cameras from a real server: latencies, drops, memory.

    \b
    Example:
      saccade bench live --json live.json --cameras 8
    """
    wait_passively()
    from pipeline.bench.live import bench_live as measure
    from pipeline.bench.live import default_config
    from pipeline.bench.workloads import CACHE

    return measure_and_keep(measure, **options, config=default_config(*settings), cache=cache or CACHE)


@bench.command("compare")
@click.argument("first", type=click.Path(path_type=Path), metavar="A.json")
@click.argument("second", type=click.Path(path_type=Path), metavar="B.json")
def bench_compare(first: Path, second: Path) -> int:
    """Says for each figure whether A or B is better, and by how much.

    The ratio is B's value over A's, with its interval of 95 %.

    \b
    Example:
      saccade bench compare before.json after.json
    """
    from pipeline.bench.comparison import compare_text
    from pipeline.bench.record import read

    reports = read(first), read(second)
    click.echo(f"A is {first}, B is {second}")
    click.echo(compare_text(*reports))
    return 0
