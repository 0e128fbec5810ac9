"""How the rivals of `bench archive` are measured, and the figures that come of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configuration
from pipeline.bench.archive_figures import archive_figures
from pipeline.bench.limit import Stages
from pipeline.bench.rig import Part, Rig, take_parts
from pipeline.bench.rivals import Files, Rivals, likely_cost
from pipeline.bench.session import Burst
from pipeline.bench.sizes import Sizes
from pipeline.plan.resolve import resolve
from tests.bench.samples import MACHINE, quiet


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rivals", "rig"):
        monkeypatch.setattr(f"pipeline.bench.{module}.this_machine", lambda: MACHINE)


def test_the_order_of_a_parts_sides_turns_and_what_would_end_too_late_is_left_out() -> None:
    order: list[str] = []
    now_s = 0.0

    def side(name: str, takes_s: float):  # type: ignore[no-untyped-def]
        def run() -> None:
            nonlocal now_s
            now_s += takes_s
            order.append(name)

        return run

    parts = [
        Part(name="quick", sides=(side("ours", 1.0), side("theirs", 1.0))),
        Part(name="slow", sides=(side("slow", 10.0),)),
    ]
    assert take_parts(parts, rounds=3, until_s=17.0, say=quiet, clock=lambda: now_s) == []
    assert order == ["ours", "theirs", "slow", "theirs", "ours", "ours", "theirs"]

    order.clear()
    now_s = 0.0
    parts.append(Part(name="more", sides=(side("more", 5.0),), likely_s=4.0))
    parts.append(Part(name="much more", sides=(side("much more", 5.0),), likely_s=9.0))
    said: list[str] = []
    assert take_parts(parts, rounds=9, until_s=20.0, say=said.append, clock=lambda: now_s) == ["much more"]
    assert order == ["ours", "theirs", "slow", "more", "theirs", "ours"]
    # One of the first round, three of the second, all of the third, which is the last.
    assert len(said) == 1 + 3 + 4


class Canned:
    """A run, and what is beside it, without processes: notes who was asked, and answers at once."""

    def __init__(self, name: str, order: list[str], plan: Any, seconds: float) -> None:
        self.name, self.order, self.plan, self.seconds, self.start_s = name, order, plan, seconds, 9.0
        self.decoders, self.decode_s = {"long": "PyAV", "short": "OpenCV"}, {"long": 9.0, "short": 1.0}

    def timed(self, paths: list[Path], *, stretch: int, count: int, **form: Any) -> Burst:
        self.order.append(f"{self.name} {paths[0].name}")
        stretches = (self.seconds,) * count
        return Burst(
            num_clips=stretch * count, seconds_per_clip=self.seconds, stretches=stretches,
            busy={}, machine_busy=1.0, num_given=99, whole_s=9.0,
        )  # fmt: skip

    def through(self, paths: list[Path]) -> float:
        self.order.append(self.name)
        return self.seconds * len(paths)

    def plain(self, plan: Any, paths: list[Path], kind: str) -> float:
        assert all(path.name[0] == {"long": "L", "short": "s"}[kind] for path in paths)
        self.order.append(f"plain {'+'.join(path.name for path in paths)}")
        return 4.0

    def stages(self, plan: Any, paths: list[Path]) -> Stages:
        self.order.append(f"stages {plan.config.policy.kind} {len(paths)}")
        seconds = dict.fromkeys(("source", "stream", "focus", "sink"), 0.1 if plan is self.plan else 0.2)
        # A long one is read in half a second, a short one in a fiftieth.
        return Stages(seconds=seconds, sources=tuple(0.5 if path.name[0] == "L" else 0.02 for path in paths))


def rig_of_canned(small: configuration.Config, order: list[str], sizes: Sizes | None = None) -> Rig:
    files = Files(long=[Path(f"L{i}") for i in range(6)], short=[Path(f"s{i}") for i in range(30)])
    # The canned sessions are those of Ray: stages side by side.
    on_ray = small.replaced({"run.executor": "ray"})
    plans = {kind: resolve(on_ray.replaced({"policy.kind": kind}), MACHINE) for kind in ("learned", "full")}
    made: dict[str, Any] = {
        name: Canned(name, order, plans["learned"], seconds)
        for name, seconds in (("exact", 0.25), ("near", 0.1), ("inline", 0.5), ("aside", 0.0))
    }
    inline = made.pop("inline")
    rivals = Rivals(plans=lambda: plans, inline=lambda: inline, **made)
    cost = likely_cost(rivals, files)
    order.clear()
    return Rig(rivals, files, sizes or Sizes(), cost, say=quiet)


def test_what_a_clip_is_likely_to_cost_is_estimated_by_one_of_each_kind(small: configuration.Config) -> None:
    cost = rig_of_canned(small, []).cost
    # Half a second to read the long one, a fiftieth the five short ones, and 0.3 s of the other stages.
    assert cost.alone_s == pytest.approx((0.5 + 5 * 0.02) / 6 + 0.3)
    # Two cores, of which eight tenths are used: 0.8 s of the long one's stages take half a second.
    assert cost.long_s == pytest.approx(0.5)
    assert (cost.plain_short_s, cost.plain_long_s, cost.group, cost.start_s) == (4.0, 12.0, 6, 9.0)


@pytest.mark.parametrize("stretches", [1, 2, 5])
def test_fewer_samples_still_give_every_name_a_value(small: configuration.Config, stretches: int) -> None:
    rig = rig_of_canned(small, [], Sizes(stretches=stretches, groups=1))
    assert take_parts(rig.parts(), rounds=1, until_s=0.0, say=quiet) == ["policies", "inline"]
    found = {figure.name: figure for figure in archive_figures(rig, 2)}
    for name in ("clips_per_s", "share_of_limit", "vs_plain_long", "vs_plain_short", "keyframe_vs_plain_long"):
        assert found[f"archive.{name}"].n == stretches
    assert "archive.ray_vs_inline" not in found and "archive.full_vs_learned" not in found


def test_where_all_is_one_process_nothing_is_compared_with_it(small: configuration.Config) -> None:
    rig = rig_of_canned(small, [])
    rig.rivals = replace(rig.rivals, inline=None)
    assert [part.name for part in rig.parts()] == ["mix", "long", "short", "policies"]
    assert likely_cost(rig.rivals, rig.files).long_s == pytest.approx(0.8), "all stages one after another"


def test_a_stretch_without_length_is_as_long_as_the_burst_says(small: configuration.Config) -> None:
    rig = rig_of_canned(small, [])
    burst = rig.rivals.exact.timed(rig.files.mix, stretch=1, count=3)
    rig.rivals.exact.timed = lambda *a, **form: replace(burst, stretches=(0.5, 0.0, 0.1))  # type: ignore[method-assign]
    take_parts(rig.parts()[:1], rounds=1, until_s=0.0, say=quiet)
    assert rig.seconds.mix == [0.5, 0.25, 0.1]


def test_one_round_of_bench_archive_gives_every_ratio_an_interval(small: configuration.Config) -> None:
    rig = rig_of_canned(small, [])
    take_parts(rig.parts(), rounds=1, until_s=1e12, say=quiet)
    found = {figure.name: figure for figure in archive_figures(rig, 2)}
    # 0.4 CPU seconds of all stages on two cores, over 0.25 s a clip.
    assert found["archive.share_of_limit"].value == pytest.approx(0.8)
    assert found["archive.vs_plain_long"].value == found["archive.vs_plain_short"].value == pytest.approx(16.0)
    assert found["archive.keyframe_vs_plain_long"].value == pytest.approx(40.0)
    assert found["archive.ray_vs_inline"].value == pytest.approx(2.0)
    for name in ("clips_per_s", "share_of_limit", "vs_plain_long", "vs_plain_short", "keyframe_vs_plain_long"):
        assert found[f"archive.{name}"].n == 6, "fewer have no interval of 95 %"
    assert found["archive.full_vs_learned"].value == pytest.approx(0.5) and found["archive.full_vs_learned"].n == 3
    # The plain loop's 4 s over what the stages take of two cores: 0.5 + 0.3 CPU seconds, and 0.02 + 0.3.
    assert found["archive.vs_plain_long"].limit == pytest.approx(4.0 / 0.4)
    assert found["archive.vs_plain_short"].limit == pytest.approx(4.0 / 0.16)


def test_what_a_burst_is_measured_against_stands_before_and_behind_it(small: configuration.Config) -> None:
    order: list[str] = []
    rig = rig_of_canned(small, order)
    parts = {part.name: part for part in rig.parts()}

    def ran(name: str, rounds: int = 1) -> list[str]:
        order.clear()
        take_parts([parts[name]], rounds=rounds, until_s=1e12, say=quiet)
        return order

    first = ["plain L0", "plain L1", "exact L0", "plain L2", "plain L3", "near L0", "plain L4", "plain L5"]
    again = ["plain L0", "plain L1", "near L0", "plain L2", "plain L3", "exact L0", "plain L4", "plain L5"]
    assert ran("long", rounds=2) == first + again, "exact and keyframes change places"
    assert ran("mix") == ["stages learned 6"] * 3 + ["exact L0"] + ["stages learned 6"] * 3
    assert [entry.split()[1] for entry in ran("policies")] == ["learned", "full", "full", "learned", "learned", "full"]
    ran("short")
    assert order[3] == "exact s0"
    plain = [name for entry in order if entry.startswith("plain") for name in entry.split()[1].split("+")]
    assert plain == [f"s{i}" for i in range(30)], "every file has been through the plain loop"


def test_the_limit_is_of_all_files_of_the_mix(small: configuration.Config) -> None:
    rig = rig_of_canned(small, [])
    seen: list[Path] = []

    def stages(plan: Any, paths: list[Path]) -> Stages:
        seen.extend(paths)
        return Stages(seconds={"source": 1.0}, sources=(1.0,) * len(paths))

    rig.rivals.aside.stages = stages  # type: ignore[method-assign]
    take_parts(rig.parts()[:1], rounds=1, until_s=1e12, say=quiet)
    assert sorted(path.name for path in seen) == sorted(path.name for path in rig.files.mix)
    # Stretches begin at groups 0, 2 and 4, and in the second lap again.
    assert [path.name for path in seen[::6]] == ["L0", "L2", "L4", "L1", "L3", "L5"]
