"""The stages that run networks, made as for a run and driven in one process, against the networks alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from operators.records import FrameBatch, Source, SourceFacts, Window
from pipeline.bench.alone import label_pieces, workers_of
from pipeline.bench.figures import Figure, ratio
from pipeline.bench.lab import Lab, Say, Side, fastest_convolutions, turns
from pipeline.config import Config
from pipeline.plan.network_choice import Choice, NetworkWork
from pipeline.plan.placement import this_machine
from pipeline.plan.resolve import network_work, resolve
from pipeline.plan.run_plan import RunPlan
from pipeline.steering.scheduler import SOURCE

PIPELINE_GOAL = 0.85
"""The goal, which is a GPU's; a CPU has none."""


def pipeline_share(lab: Lab, choice: Choice, config: Config, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """Times the stream and the focus worker, as a run makes them, against both networks alone: what is lost is what it
    takes to decide, to cut patches out and to classify. On a GPU "alone" also means without the way there and back."""
    plan = planned(config, choice, lab.device)
    # The work of this model, which need not be what the other figures are of.
    work = network_work(plan.config, plan.header)
    bare = Lab(work, device=lab.device, threads=lab.threads, frames=work.glances)
    stages = stages_alone(plan, work, lab.threads)
    sides = {"stages": stages}
    if lab.device == "cuda":
        sides["glance"] = bare.standalone(choice.precision, batch=choice.glance_batch, glance=True)
        sides["focus"] = bare.standalone(choice.precision, batch=choice.focus_batch)
    else:
        sides["glance"] = bare.glance(choice.precision, compiled=choice.is_compiled, batch=choice.glance_batch)
        sides["focus"] = bare.focus(choice.precision, compiled=choice.is_compiled, batch=choice.focus_batch)
    with fastest_convolutions():
        took = turns(lab, sides, rounds, budget_s, say)
    per_image = {name: [s / sides[name].images for s in samples] for name, samples in took.items()}
    alone = [
        work.glances * glance + work.patches * focus
        for glance, focus in zip(per_image["glance"], per_image["focus"], strict=True)
    ]
    about = (
        f"{stages.images} clips of {work.glances} glances and {work.patches} patches go from frames to labels in "
        f"one process; alone, the networks run on {choice.glance_batch} views and {choice.focus_batch} patches a pass"
    )
    return [
        ratio(
            "compute.pipeline_share_of_standalone", alone, per_image["stages"],
            unit="of the rate", limit=1.0, goal=PIPELINE_GOAL if lab.device == "cuda" else None, about=about,
        )
    ]  # fmt: skip


def planned(config: Config, choice: Choice, device: str) -> RunPlan:
    """The plan of a run that runs its networks as was chosen."""
    how: dict[str, Any] = {
        "compute.device": device,
        "compute.precision": choice.precision,
        "compute.compile": choice.compile,
        "focus.batch_size": choice.focus_batch,
    }
    if config.model.checkpoint is None:
        how["model.untrained"] = True
    return replace(resolve(config.replaced(how), this_machine()), tuned=choice)


def stages_alone(plan: RunPlan, work: NetworkWork, threads: int) -> Side:
    """Clips of noise from their frames to their labels; the side's images are clips here."""
    workers = workers_of([spec for spec in plan.worker_specs() if spec.stage != SOURCE], num_threads=threads)
    # A run's batcher fills passes with patches of several calls; here a call brings enough of them.
    together = max(plan.placement.clips_per_call, -(-plan.rows_per_batch // work.patches))
    view_px = plan.config.view.crop_px
    pieces = [(noise(f"{n:032x}", work, view_px, seed=n), (f"{n:032x}",)) for n in range(2 * together)]
    sizes = {"clips_per_call": together, "rows_per_pass": plan.rows_per_batch}

    def ask(stage: str, method: str, *arguments: Any) -> Any:
        return getattr(workers[stage], method)(*arguments)

    def run() -> object:
        return list(label_pieces(ask, pieces, **sizes))

    return Side(run=run, macs=0.0, images=len(pieces))


def noise(clip: str, work: NetworkWork, px: int, *, seed: int) -> FrameBatch:
    """The frames of one clip, as a source worker would hand them over."""
    count = work.glances
    views = np.random.default_rng(seed).integers(0, 256, (count, px, px, 3), dtype=np.uint8)
    rows = np.arange(count)
    focus_rows = rows
    if work.focus_segments and work.patches != count:
        focus_rows = np.linspace(0, count - 1, work.patches).round().astype(np.int64)
    window = Window(clip_id=clip, start_s=0.0, end_s=1.0, glance_rows=rows, candidate_rows=focus_rows)
    return FrameBatch(
        source=Source(source_id=clip, uri=f"/noise/{clip}", video_id=clip),
        pixels=views,
        pts_s=np.linspace(0.0, 1.0, count, endpoint=False),
        frame_index=rows,
        view_yxhw=(0.0, 0.0, 1.0, 1.0),
        facts=SourceFacts(width=px, height=px, num_frames=count),
        windows=(window,),
    )
