"""`train`: the training stages, one after another."""

from __future__ import annotations

from pathlib import Path

import click

from operators.json_text import json_text
from pipeline.commands.options import load_config


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="ANNOTATIONS...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints and curves.")
@click.option("--config", "config_file", metavar="FILE", default="train_synth", show_default=True)
@click.option("--classes", type=click.Path(), help="Class names in the model's order; classes.txt beside ANNOTATIONS.")
@click.option("--set", "settings", multiple=True, metavar="KEY.SUB=VALUE", help="e.g. train.seed=1; repeatable.")
@click.option("--videos", type=click.Path(path_type=Path), help="Where the videos lie.")
@click.option("--stage", "stages", default="all", show_default=True, help="all, or 0a,0b,1,2,3,skip,full.")
@click.option("--subsets", nargs=2, default=("train", "val"), show_default=True, help="To learn from, to watch.")
@click.option("--truth", type=click.Path(path_type=Path), help="truth.parquet of a synthetic archive, for scores.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of decoded frames; OUT/cache if not given.")
@click.option("--limit", type=click.IntRange(min=1), help="Take at most so many videos of each subset.")
@click.option("--json", "as_json", is_flag=True, help="The records of the stages on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def train(
    inputs: tuple[str, ...],
    out: Path,
    config_file: str,
    classes: str | None,
    settings: tuple[str, ...],
    videos: Path | None,
    stages: str,
    subsets: tuple[str, str],
    truth: Path | None,
    cache: Path | None,
    limit: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Train the stages, each from the checkpoint of the one before. Killed, the same command goes on.

    \b
    Example:
      saccade synth data/ --videos 3500 --shares 2000 500 1000
      saccade train data/annotations.json --videos data/videos --truth data/truth.parquet -o training/
    """
    from pipeline.commands.training_display import training
    from pipeline.training import command

    beside = Path(inputs[0]).with_name("classes.txt")
    if classes is None and beside.is_file():
        classes = str(beside)
    config = load_config(config_file, settings, classes=classes)
    with training(quiet=quiet) as display:
        records = command.train(
            config,
            inputs,
            videos=videos,
            out=out,
            cache=cache,
            stages=stages,
            truth=truth,
            subsets=subsets,
            limit=limit,
            on_progress=display.epoch,
            on_cache=display.decoded,
            say=display.say,
        )
    if as_json:
        click.echo(json_text(records, default=str))
    else:
        for stage, record in records.items():
            scores = ", ".join(f"{name} {value:.4g}" for name, value in record.get("scores", {}).items())
            click.echo(f"stage {stage}: {record['seconds']:.0f} s; {scores}")
        # The comparison `full` is no step on the way to the checkpoint.
        name = "checkpoint" if any(stage != "full" for stage in records) else "stage_full"
        click.echo(f"checkpoint: {out}/{name}.safetensors")
    return 0


