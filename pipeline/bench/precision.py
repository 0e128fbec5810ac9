"""Whether labels in bf16 are those in fp32, on a synthetic test set and with the weights that ship."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline import config as configuration
from pipeline.bench.figures import Figure, measured
from pipeline.bench.workloads import CACHE
from pipeline.config import Config
from pipeline.inputs import sources as inputs
from pipeline.plan.measuring import held_threads
from pipeline.plan.placement import this_machine
from pipeline.run.archive import label_archive
from pipeline.scoring.read_labels import read_predictions
from pipeline.scoring.scores import Predictions
from pipeline.synthetic.archive import generate
from pipeline.synthetic.video_plans import SynthSettings

Say = Callable[[str], None]
SEED = 606
"""A seed that no weights were trained on."""
VIDEOS = 200
SAME_GOAL, CHANGE_GOAL = 0.995, 0.2


def bf16_figures(
    *, device: str, cache: Path | None, say: Say, quick: bool = False, config: Config | None = None
) -> list[Figure]:
    """Labels each video twice, inline, and compares. `config` may name other weights than those that ship."""
    videos = 8 if quick else VIDEOS
    folder = (cache or CACHE) / f"synth-{videos}-{SEED}"
    settings = SynthSettings(videos=videos, shares=(0, 0, 1), seed=SEED)
    generate(folder, settings, workers=this_machine().num_cores)
    config = config or configuration.load("demo")
    found = {}
    for precision in ("fp32", "bf16"):
        how = {"run.executor": "inline", "compute.precision": precision, "compute.device": device}
        found[precision] = _labelled(config.replaced(how), folder)
        say(f"{precision}: {videos} synthetic videos labelled")
    return compared(found["fp32"], found["bf16"])


def compared(full: Predictions, half: Predictions) -> list[Figure]:
    """The figures of the same videos labelled in fp32 and in bf16."""
    rows = {name: row for row, name in enumerate(half.video_ids)}
    order = np.array([rows[name] for name in full.video_ids])
    ours, theirs, truth = half.logits.argmax(1)[order], full.logits.argmax(1), full.truth[:, 0]
    same, num = int((ours == theirs).sum()), len(truth)
    right = {"fp32": int((theirs == truth).sum()), "bf16": int((ours == truth).sum())}
    change = 100 * abs(right["bf16"] - right["fp32"]) / num
    about = (
        f"{right['fp32']} of {num} videos are right in fp32 and {right['bf16']} in bf16; one of them is "
        f"{100 / num:.2g} points"
    )
    return [
        measured(
            "compute.bf16_same_labels",
            [same / num],
            unit="",
            limit=1.0,
            goal=SAME_GOAL,
            about=f"{same} of {num} videos of a synthetic test set have the same label, by the weights that ship",
        ),
        measured(
            "compute.bf16_accuracy_change",
            [change],
            unit="points",
            goal=CHANGE_GOAL,
            goal_is="at_most",
            about=about,
        ),
    ]


def _labelled(config: Config, folder: Path) -> Predictions:
    listing = [str(folder / "annotations.json")]
    # The workers of an inline run set the threads of this process.
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as out, held_threads(torch.get_num_threads()):
        label_archive(
            config,
            lambda names: inputs.sources(listing, videos=folder / "videos", class_names=names),
            out=Path(out),
        )
        return read_predictions(Path(out) / "labels")
