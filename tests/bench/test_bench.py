"""Benchmarks: what figures say, that workloads are what they are said to be, and that stages alone do a run's work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import run_pipeline
from operators.errors import ConfigError, PipelineError
from pipeline import config as configuration
from pipeline.bench import commands, decode, page
from pipeline.bench import figures as fig
from pipeline.bench.alone import passes, slices
from pipeline.bench.archive import QUICK_SETTINGS, Files, Part, Rig, Rivals, _figures, likely_cost, take_parts
from pipeline.bench.decode import planned, reading, views
from pipeline.bench.figures import Figure, Report, compare, compare_text, interval, measured, ratio, take_turns
from pipeline.bench.limit import Stages, stage_seconds
from pipeline.bench.plain import DECODERS, fastest_decoder, plain_seconds
from pipeline.bench.schedule import FORMS, bench_schedule, null_run, read_exits
from pipeline.bench.session import Beside, Burst, Session, stretch_seconds
from pipeline.bench.sizes import Cost, Sizes, fitting
from pipeline.bench.sweep import bench_sweep
from pipeline.bench.workloads import QUICK_LONG, QUICK_SHORT, Clips, as_sources, make
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from pipeline.run.source_worker import SourceWorker
from pipeline.steering.messages import Slice

TINY = Clips(name="tiny", num_files=3, width=96, height=64, seconds=0.5, fps=20, gop=5, num_made=2, num_things=3)
MACHINE = Machine(num_cores=2, memory_bytes=4 << 30)


def quiet(text: str) -> None:
    pass


def report(*figures: Figure, what: str = "decode") -> Report:
    return Report(what=what, headline="fast enough", figures=figures, environment={"cpu": "abacus", "cores": 2})


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.bench.archive.this_machine", lambda: MACHINE)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    cache = tmp_path_factory.mktemp("workloads")
    return Files(long=make(QUICK_LONG, cache, say=quiet), short=make(QUICK_SHORT, cache, say=quiet))


@pytest.fixture(scope="session")
def small() -> configuration.Config:
    """A model of small networks, in this process."""
    settings = {**QUICK_SETTINGS, "model.untrained": True, "run.executor": "inline"}
    return configuration.parse({**settings, "compute.precision": "fp32", "compute.compile": "off"})


# Figures


def test_the_interval_of_few_samples_is_their_range() -> None:
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert interval([5.0]) == (5.0, 5.0)


def test_the_interval_of_nine_samples_leaves_out_one_at_each_end() -> None:
    # P(median below the 2nd of 9) = (1 + 9) / 512, twice that is 3.9 %; with the 3rd it would be 18 %.
    assert interval([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]) == (2.0, 8.0)


def test_a_figure_is_the_median_and_knows_whether_its_goal_is_met() -> None:
    samples = [1.0, 2.0, 6.0]
    assert measured("rate", samples, unit="1/s", goal=2.0).value == 2.0
    assert measured("rate", samples, unit="1/s", goal=2.0).met is True
    assert measured("rate", samples, unit="1/s", goal=2.1).met is False
    assert measured("wait", samples, unit="s", goal=1.9, goal_is="at_most").met is False
    assert measured("rate", samples, unit="1/s").met is None


def test_what_must_not_fall_is_met_unless_its_whole_interval_lies_below() -> None:
    assert measured("share", [0.9, 0.95, 1.01], unit="", goal=1.0, goal_is="no_less").met is True
    assert measured("share", [0.9, 0.95, 0.99], unit="", goal=1.0, goal_is="no_less").met is False


def test_the_share_of_a_limit_is_one_at_best_in_either_direction() -> None:
    assert measured("rate", [45.0], unit="1/s", limit=90.0).share_of_limit == 0.5
    assert measured("time", [4.0], unit="s", limit=1.0, goal_is="at_most").share_of_limit == 0.25


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine was twice as slow in the second round: the medians' ratio would be 3, each round's is 2 or 4.
    assert ratio("speed", [2.0, 8.0, 4.0], [1.0, 2.0, 2.0]).samples == (2.0, 4.0, 2.0)


def test_the_order_of_the_sides_turns_from_round_to_round() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = take_turns(
        {"a": lambda: side("a"), "b": lambda: side("b")}, rounds=3, budget_s=100.0, say=quiet, clock=lambda: 0.0
    )
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert samples == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_a_round_that_would_not_fit_is_not_begun() -> None:
    now_s = 0.0

    def side() -> float:
        nonlocal now_s
        now_s += 4.0
        return 4.0

    samples = take_turns({"a": side}, rounds=9, budget_s=11.0, say=quiet, clock=lambda: now_s)
    assert samples == {"a": [4.0, 4.0]}
    now_s = 0.0
    samples = take_turns({"a": side}, rounds=9, budget_s=1.0, say=quiet, clock=lambda: now_s)
    assert samples == {"a": [4.0]}, "at least one round is measured"


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = report(measured("decode.exact_s", [2.0, 1.0, 3.0], unit="s", limit=0.5, goal=4.0, goal_is="at_most"))
    fig.write(tmp_path / "sub" / "a.json", written)
    found = fig.read(tmp_path / "sub" / "a.json")
    assert found == written
    entry = json.loads((tmp_path / "sub" / "a.json").read_text())["figures"][0]
    wanted = {"name", "value", "unit", "low", "high", "n", "limit", "goal", "met"}
    assert wanted <= set(entry)
    assert (entry["value"], entry["low"], entry["high"], entry["n"]) == (2.0, 1.0, 3.0, 3)


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    fig.write(path, report(measured("a", [1.0], unit="s")))
    before = path.read_text()

    def full_disk(self: Path, text: str) -> None:
        self.touch()
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space left"):
        fig.write(path, report(measured("a", [2.0], unit="s")))
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_where_git_does_not_answer_nobody_knows_of_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fig, "_git", lambda *arguments: None)
    assert fig.environment()["git_dirty"] is None
    monkeypatch.setattr(fig, "_git", lambda *arguments: "")
    assert fig.environment()["git_dirty"] is False


def test_a_file_that_is_no_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"runs": []}')
    with pytest.raises(ConfigError, match=r"a\.json is no JSON file of `bench`"):
        fig.read(tmp_path / "a.json")


def test_the_table_says_value_limit_share_and_goal() -> None:
    text = fig.told(report(measured("decode.exact_s", [2.0], unit="s", limit=0.5, goal=1.0, goal_is="at_most")))
    assert text.splitlines()[0] == "fast enough"
    row = text.splitlines()[-1].split()
    assert row == ["decode.exact_s", "2", "s", "1", "0.5", "25%", "≤", "1", "NO"]


def test_figures_that_overlap_are_no_difference() -> None:
    first = report(measured("a", [1.0, 1.1, 0.9, 1.05, 0.95, 1.0], unit="s"), measured("only here", [1.0], unit="s"))
    same = report(measured("a", [1.02, 1.08, 0.92, 1.0, 0.97, 1.01], unit="s"))
    twice = report(measured("a", [2.0, 2.2, 1.8, 2.1, 1.9, 2.0], unit="s"))
    assert [d.verdict for d in compare(first, same)] == ["no difference"]
    (found,) = compare(first, twice)
    assert found.ratio == pytest.approx(2.0)
    assert 1.6 < found.low < 2.0 < found.high < 2.4
    assert "+100.0%" in compare_text(first, twice)


def difference(first: list[float], second: list[float]) -> fig.Difference:
    (found,) = compare(report(measured("a", first, unit="s")), report(measured("a", second, unit="s")))
    return found


def test_fewer_than_six_samples_say_nothing_of_a_difference() -> None:
    six = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert difference([1.0], [1.001]).verdict == difference(six, [2.0]).verdict == "cannot say: samples: 1"
    assert difference([1.0, 1.0, 1.1, 1.0, 1.0], [2.0] * 6).verdict == "cannot say: samples: 5"
    assert difference(six, [2.0] * 6).verdict == "+100.0%"


def test_samples_that_are_not_positive_say_nothing_of_a_ratio() -> None:
    found = difference([-0.5, 0.0, 0.4, 0.6, 0.7, 0.8], [1.0] * 6)
    assert (found.verdict, found.ratio, found.low) == ("cannot say: not all samples are above 0", 2.0, None)


def test_a_ratio_lies_in_its_interval_and_is_of_what_the_interval_is_of() -> None:
    # A camera's p95 is of all labels, its samples are of stretches: their median here is half as much.
    samples = (1.0, 1.1, 0.9, 1.0, 1.0, 1.0)
    p95 = replace(measured("p95", samples, unit="ms"), value=2.0, n=999)
    (found,) = compare(report(measured("p95", samples, unit="ms")), report(p95))
    assert found.low is not None and found.high is not None and found.ratio == 1.0
    assert found.low <= found.ratio <= found.high and found.verdict == "no difference"


def test_what_was_not_the_same_when_two_were_measured_is_said() -> None:
    settings = {"lasted_s": 9.0, "rounds": 3, "quick": False, "config": {"compute.precision": "fp32"}}
    first = replace(report(measured("a", [1.0], unit="s")), settings=settings)
    where = {"cpu": "abacus", "cores": 2, "cpu_flags": ["avx2"], "gpu": "H0"}
    how = {"lasted_s": 5.0, "rounds": 4, "quick": True, "config": {"compute.precision": "bf16"}}
    lines = compare_text(first, replace(first, environment=where, settings=how)).splitlines()[2:]
    assert lines == [
        "not the same cpu_flags: nothing and avx2",
        "not the same gpu: nothing and H0",
        "not the same quick: False and True",
        "not the same config.compute.precision: fp32 and bf16",
    ]
    assert compare_text(first, first).count("\n") == 1


def test_figures_that_cannot_be_compared_are_named() -> None:
    first = report(*(measured(name, [1.0], unit="s") for name in ("a", "b", "c", "d")))
    second = report(*(measured(name, [1.0], unit=unit) for name, unit in (("a", "s"), ("b", "ms"), ("e", "s"))))
    lines = compare_text(first, second).splitlines()[2:]
    assert lines == ["not in one unit: b, s and ms", "only in the first: c, d", "only in the second: e"]


def test_figures_that_are_zero_are_compared_too() -> None:
    none, some = (report(measured("live.frames_dropped", [n], unit="frames"), what="live") for n in (0.0, 37.0))
    assert compare_text(none, some).splitlines()[1].split() == ["live.frames_dropped", "0", "->", "37"]
    assert [d.verdict for d in compare(some, none)] == ["37 -> 0"]
    assert [d.verdict for d in compare(none, none)] == ["no difference"]


def test_reports_with_nothing_in_common_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="no figure in common"):
        compare_text(report(measured("a", [1.0], unit="s")), report(measured("b", [1.0], unit="s")))


def test_the_environment_names_the_machine_and_what_ran_on_it() -> None:
    where = fig.environment()
    assert where["cores"] >= 1 and where["torch"].startswith("2.") and where["ffmpeg"]
    assert {"cpu", "cpu_flags", "threads", "git_commit", "load_before"} <= set(where)
    assert where["threads"]["torch"] == torch.get_num_threads()


def test_with_a_gpu_the_environment_names_what_drives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "get_device_name", lambda: "H0")
    monkeypatch.setattr(cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=80 << 30))
    where = fig.environment()
    assert (where["gpu"], where["gpu_memory_gb"]) == ("H0", 80.0)
    assert {"gpu_driver", "cuda", "cudnn"} <= set(where)


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    fig.draw(tmp_path / "a.png", report(measured("a", [2.0, 3.0, 4.0], unit="x", goal=2.5)))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def shares(path: Path, *figures: Figure, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[str]]:
    """What a plot would show, and what is said beside it."""
    drawn: list[Any] = []
    monkeypatch.setattr("pipeline.scoring.plots.draw_shares", lambda path, rows, **form: drawn.extend(rows))
    return drawn, fig.draw(path, report(*figures))


def test_what_is_not_positive_is_drawn_at_the_end_of_the_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slope = measured("slope", [-0.5, -2.0, 1.0], unit="", goal=1.0, goal_is="at_most")
    rate = measured("rate", [0.0, -1.0, 3.0], unit="", goal=2.0)
    drawn, notes = shares(tmp_path / "a.png", slope, rate, monkeypatch=monkeypatch)
    assert drawn == [("slope / goal 1", 10.0, 1.0, 10.0), ("rate / goal 2", 0.01, 0.01, 1.5)]
    assert notes == []


def test_a_goal_of_nothing_has_no_share_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = measured("dropped", [37.0], unit="frames", goal=0.0, goal_is="at_most")
    drawn, notes = shares(tmp_path / "a.png", dropped, measured("a", [1.0], unit="s"), monkeypatch=monkeypatch)
    assert drawn == []
    assert notes == [
        "not drawn: dropped, 37, whose goal is 0",
        "nothing to draw: no figure of bench decode is a share of a goal or a limit",
    ]


def test_only_the_blocks_of_the_page_are_written_anew() -> None:
    text = (
        "# Words\n<!-- figures: decode -->\nold\n<!-- end -->\nmore words\n<!-- figures: live -->\nkept\n<!-- end -->\n"
    )
    found = page.filled_in(text, {"decode": report(measured("decode.exact_s", [2.0], unit="s"))})
    assert page.block_names(text) == ["decode", "live"]
    assert found.startswith("# Words\n<!-- figures: decode -->\n> fast enough\n")
    assert "old" not in found and "| decode.exact_s | 2 s |" in found
    assert found.endswith("more words\n<!-- figures: live -->\nkept\n<!-- end -->\n")
    assert page.filled_in(found, {}) == found


def commands_of(names: list[str], monkeypatch: pytest.MonkeyPatch, *, has_gpu: bool) -> list[list[str]]:
    """What `--measure` would run, from `bench` on, with the record's name alone."""
    ran: list[list[str]] = []

    def run(command: list[str], **form: Any) -> SimpleNamespace:
        ran.append([Path(part).name if part.endswith(".json") else part for part in command[2:]])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(page.subprocess, "run", run)
    monkeypatch.setattr(page.torch.cuda, "is_available", lambda: has_gpu)
    assert page.measure(names) == []
    return ran


def test_the_figures_of_a_gpu_do_not_take_the_place_of_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands_of(["compute"], monkeypatch, has_gpu=True)
    assert command == ["bench", "compute", "--json", "compute-gpu.json"]
    (command,) = commands_of(["compute"], monkeypatch, has_gpu=False)
    assert command == ["bench", "compute", "--json", "compute.json"]


def test_the_sweep_is_an_option_of_bench_archive_and_a_record_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands_of(["archive_sweep"], monkeypatch, has_gpu=True)
    assert command == ["bench", "archive", "--sweep", "--json", "archive_sweep.json"]
    names = page.block_names(page.PAGE.read_text())
    assert {"archive_sweep", "compute-gpu", *page.WHAT} <= set(names)


def test_the_page_says_how_long_a_bench_took() -> None:
    found = report(measured("a", [2.0], unit="s"))
    assert "took" not in page.as_markdown(found, name="decode")
    assert "; took 7.5 min. [" in page.as_markdown(replace(found, settings={"lasted_s": 450.0}), name="decode")


# Workloads


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    first = make(TINY, tmp_path / "a", say=quiet)
    second = make(TINY, tmp_path / "b", say=quiet)
    assert first[0].read_bytes() == second[0].read_bytes()
    assert first[0].read_bytes() != first[1].read_bytes()
    assert first[2] == first[0], "two are made and serve in turn under three names"


def test_a_workload_is_made_once_and_other_settings_are_other_files(tmp_path: Path) -> None:
    said: list[str] = []
    make(TINY, tmp_path, say=said.append)
    assert len(said) == 2
    make(TINY, tmp_path, say=said.append)
    assert len(said) == 2
    other = Clips(**{**vars(TINY), "crf": 30.0})
    assert other.folder != TINY.folder


def test_a_long_video_has_the_keyframes_that_it_is_said_to_have(files: Files) -> None:
    # 240 frames, a keyframe every 30, and 16 wanted ones: two in each group.
    plan = planned(str(files.long[0]))
    assert (plan.num_frames, plan.num_groups) == (240, 8)
    assert 16 <= plan.num_decoded < 240
    assert planned(str(files.long[0]), seek="keyframe").num_decoded == 8


def test_every_lap_hands_over_new_inputs(files: Files) -> None:
    first, second = (list(as_sources(files.short, lap=lap)) for lap in (0, 1))
    ids = {source.source_id for source in (*first, *second)}
    assert len(ids) == 2 * len(files.short)
    assert {source.uri for source in first} == {str(path) for path in files.short}


def test_the_mix_spreads_the_long_ones_evenly() -> None:
    paths = Files(long=[Path("L0"), Path("L1")], short=[Path(f"s{i}") for i in range(4)])
    assert [path.name for path in paths.mix] == ["L0", "s0", "s1", "L1", "s2", "s3"]
    assert [len(group) for group in paths.groups] == [3, 3]


# What is measured


def test_threads_do_not_change_what_is_read(files: Files) -> None:
    path = str(files.long[0])
    assert np.array_equal(views(path, num_threads=1), views(path, num_threads=2))
    assert views(path).shape == (16, 224, 224, 3)
    assert reading([path], seek="keyframe") > 0


def rivals(files: Files, ways: dict[str, Any]) -> tuple[list[Figure], list[str]]:
    """Figures of the short files, with one other library that has these modes."""
    notes: list[str] = []
    paths = [str(path) for path in files.short[:1]]
    turns = decode._Files(paths=paths, rounds=2, budget_s=60.0, say=quiet, notes=notes)
    return decode._short(turns, {"decord": ways}, 1, QUICK_SHORT), notes


def test_a_library_that_fails_loses_its_own_figures(files: Files) -> None:
    asked: list[int] = []

    def broken(paths: list[str]) -> float:
        raise RuntimeError("no such codec")

    def broken_later(paths: list[str]) -> float:
        asked.append(1)
        return 0.001 if len(asked) <= 3 else broken(paths)

    found, notes = rivals(files, {"1 threads": broken, "2 threads": broken_later})
    names = [figure.name for figure in found]
    assert names == ["decode.short_clips_per_s", "decode.short_vs_best", "decode.short_vs_sequential"]
    assert notes == [f"decord, {n} threads failed and was left out: no such codec" for n in (1, 2)]
    assert len(asked) == 4, "two tries and two turns"
    found, notes = rivals(files, {"1 threads": broken, "2 threads": lambda paths: 0.001})
    assert found[1].about == "the best of the others is decord, 2 threads" and len(notes) == 1


def test_rows_of_all_patches_are_found_again_in_theirpasses() -> None:
    assert passes(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert slices(2, 9, 4) == (Slice(0, 2, 4), Slice(1, 0, 4), Slice(2, 0, 1))
    assert slices(4, 8, 4) == (Slice(1, 0, 4),)


def test_every_stage_alone_costs_something(files: Files, small: configuration.Config) -> None:
    plan = resolve(small, MACHINE)
    # Passes of three, so that no clip's four patches lie in one of them.
    found = stage_seconds(plan.worker_specs(), (2, 3), [str(path) for path in files.short[:3]])
    assert set(found.seconds) == {"source", "stream", "focus", "sink"}
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert len(found.sources) == 3 and sum(found.sources) == pytest.approx(3 * found.seconds["source"])


def test_a_video_that_is_read_in_many_slices_is_one_clip_of_the_stages_alone(
    files: Files, small: configuration.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SourceWorker, "_has_room", lambda self, begun_s, batches: False)
    written: list[int] = []
    monkeypatch.setattr("pipeline.bench.limit._sink_seconds", lambda labels: written.append(len(labels)) or 0.1)
    stage_seconds(resolve(small, MACHINE).worker_specs(), (2, 3), [str(path) for path in files.short[:2]])
    assert written == [2]


def test_the_stages_of_one_file_are_its_own_source_and_the_rest_of_all() -> None:
    found = Stages(seconds={"source": 2.0, "focus": 3.0}, sources=(4.0, 1.0, 1.0))
    assert found.total_s == 5.0
    assert (found.total_with_s(found.sources[:1]), found.total_with_s(found.sources[1:])) == (7.0, 4.0)


def test_the_plain_loop_labels_a_video(files: Files, small: configuration.Config) -> None:
    plan = resolve(small, MACHINE)
    for decoder in ("OpenCV", "PyAV"):
        arguments = plan.config.model_dump_json(), plan.model_id, [str(files.short[0])], 1, decoder
        assert plain_seconds(*arguments) > 0


def test_the_decoder_of_the_plain_loop_is_the_best_of_several_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, read = 0.0, 0
    tries = {"OpenCV": iter([9.0, 2.0, 2.0]), "PyAV": iter([3.0, 3.0, 3.0])}

    def decoder(name: str):  # type: ignore[no-untyped-def]
        def decode(path: str, num_frames: int):  # type: ignore[no-untyped-def]
            nonlocal now_s, read
            seconds = next(tries[name])
            for number in range(num_frames):
                now_s, read = now_s + seconds / num_frames, read + 1
                yield number

        return decode

    for name in DECODERS:
        monkeypatch.setitem(DECODERS, name, decoder(name))
    monkeypatch.setattr("pipeline.bench.plain.time.perf_counter", lambda: now_s)
    # The first try was cold. A quarter of the frames tells the time of all.
    assert fastest_decoder("a.mp4", 16, share=0.25) == ("OpenCV", pytest.approx(2.0))
    assert read == 3 * 2 * 4


def test_bursts_go_through_one_run_after_another(files: Files, small: configuration.Config) -> None:
    session = Session(small)
    seen = []

    def script(session: Session):  # type: ignore[no-untyped-def]
        yield from session.through(files.short[:2])
        around = [*files.short[-2:], *files.short * 3, *files.short[:2]]
        seen.append((yield from session.burst(around, lead=2, tail=2)))

    summary = session.run(script)
    # Two to warm up, then twelve amid two and two.
    assert summary.clips == 18 and summary.failed == 0
    assert seen[0].num_given == 16
    assert 0 < seen[0].num_clips <= 12
    assert seen[0].whole_s > 0 and session.start_s > 0
    assert set(seen[0].busy) == {"source", "stream", "focus", "sink"}


def test_a_stretch_is_timed_from_period_to_period() -> None:
    # Waves of three: two clips end together, the third takes the rest of the 3 s. Then all is twice as slow.
    waves = [3.0 * wave + at for wave in range(5) for at in (0.5, 0.5, 3.0)]
    slow = [15.0 + 6.0 * wave + at for wave in range(3) for at in (1.0, 1.0, 6.0)]
    found = stretch_seconds(np.array(waves[:9]), stretch=6, period=3)
    assert found == pytest.approx((1.0,))
    # From single clip to single clip, four of the same seem a third slower.
    assert stretch_seconds(np.array(waves[1:9]), stretch=4)[0] == pytest.approx(1.375)
    found = stretch_seconds(np.array([*waves, *slow]), stretch=3, period=3)
    assert len(found) == 7
    assert found[:4] == pytest.approx((1.0,) * 4) and found[5:] == pytest.approx((2.0, 2.0))


def test_stretches_lie_amid_others_of_the_same_files(files: Files, small: configuration.Config) -> None:
    seen = []

    def script(session: Session):  # type: ignore[no-untyped-def]
        seen.append((yield from session.timed(files.short, stretch=2, count=3, period=2, lead=3)))

    summary = Session(small).run(script)
    # Three before, three stretches of two and a period, three behind.
    assert summary.clips == seen[0].num_given == 3 + 6 + 2 + 3
    assert len(seen[0].stretches) == 3 and min(seen[0].stretches) >= 0


def test_two_runs_live_beside_each_other_and_work_in_turn(files: Files, small: configuration.Config) -> None:
    with Beside(small) as first, Beside(small.replaced({"policy.kind": "center"})) as second:
        second.begin(files.short[:2])
        assert first.through(files.short[:2]) > 0
        assert second.ready() > 0
        assert len(first.timed(files.short, stretch=2, count=2, lead=2).stretches) == 2
        assert first.plan.config.policy.kind == "learned" and second.plan.config.policy.kind == "center"
        assert first.start_s > 0


def test_what_was_measured_with_clips_that_failed_is_no_figure(files: Files, small: configuration.Config) -> None:
    with pytest.raises(PipelineError, match="1 clips of the workload failed"), Beside(small) as run:
        run.through([files.short[0].with_name("nothing.mp4")])


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


# What a machine without bf16 takes, and one with it.
SLOW = Cost(
    mix_s=0.97, alone_s=1.58, long_s=2.5, short_s=0.8, plain_long_s=13.5, plain_short_s=1.64,
    group=6, lead=16, readers=2, scale=1, start_s=36.0,
)  # fmt: skip
FAST = Cost(
    mix_s=0.48, alone_s=0.9, long_s=1.7, short_s=0.27, plain_long_s=9.0, plain_short_s=0.97,
    group=6, lead=16, readers=2, scale=1, start_s=13.0,
)  # fmt: skip


def test_a_round_costs_its_bursts_and_what_is_measured_beside_them() -> None:
    sizes = Sizes(stretches=2, groups=1, long=3, short=4, near=8, plain_short=5)
    # The mix and its limit, long ones exactly, by keyframes and plainly, short ones and plainly.
    by_hand = (2 * 6 + 6 + 32) * 0.97 + 2 * 6 * 1.58 + (2 * 3 + 2 + 4) * 2.5 + (2 * 8 + 4 + 32) * 0.8
    by_hand += 2 * 13.5 + (2 * 4 + 4 + 32) * 0.8 + 2 * 5 * 1.64
    assert SLOW.round_s(sizes) == pytest.approx(by_hand)


def test_sizes_are_the_largest_for_which_there_is_time() -> None:
    assert fitting(FAST, 370.0) == Sizes(), "with all that can be left out"
    assert fitting(FAST, 350.0).groups == 2
    assert fitting(SLOW, 900.0) == Sizes()
    small = fitting(SLOW, 350.0)
    assert small.stretches >= 4 and 1.1 * SLOW.round_s(small) < 350.0
    budgets = [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 900.0]
    took = [SLOW.round_s(fitting(SLOW, budget_s)) for budget_s in budgets]
    assert took == sorted(took)
    assert fitting(SLOW, 0.0).stretches == 1, "every name has a value"


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
    plans = {kind: resolve(small.replaced({"policy.kind": kind}), MACHINE) for kind in ("learned", "full")}
    made: dict[str, Any] = {
        name: Canned(name, order, plans["learned"], seconds)
        for name, seconds in (("exact", 0.25), ("near", 0.1), ("inline", 0.5), ("aside", 0.0))
    }
    inline = made.pop("inline")
    rivals = Rivals(plans=lambda: plans, inline=lambda: inline, **made)
    cost = likely_cost(rivals, files)
    order.clear()
    return Rig(rivals, files, sizes or Sizes(), cost, say=quiet)


def test_what_a_clip_is_likely_to_cost_is_told_by_one_of_each_kind(small: configuration.Config) -> None:
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
    found = {figure.name: figure for figure in _figures(rig.files, rig, 2)}
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
    found = {figure.name: figure for figure in _figures(rig.files, rig, 2)}
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


def test_a_sweep_keeps_what_was_measured_when_a_run_fails(files: Files, small: configuration.Config) -> None:
    kept: list[Report] = []

    def broken(config: configuration.Config) -> Session:
        if config.sampling.num_frames == 2:
            raise PipelineError("no such luck")
        return Session(config)

    cache = files.short[0].parent.parent
    found = bench_sweep(small, cache=cache, say=quiet, quick=True, keep=kept.append, make_session=broken)
    names = [figure.name for figure in found.figures]
    assert names == ["archive.sweep_clips_2_s", "archive.sweep_clips_4_s", "archive.sweep_frames_4_s"]
    assert [figure.n for figure in found.figures] == [2, 1, 3]
    assert found.notes == ("frames_2 was not measured: no such luck",)
    assert [len(report.figures) for report in kept] == [2, 3]


def test_a_report_says_how_long_it_all_took(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    commands._measured(lambda **options: report(measured("a", [1.0], unit="s")), path, None, True)
    assert fig.read(path).settings["lasted_s"] >= 0


def kept(tmp_path: Path, measure: Any, **options: Any) -> int:
    return commands._measured(measure, tmp_path / "a.json", options.pop("plot_file", None), True, **options)


def test_the_table_is_printed_where_there_is_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = report(measured("a", [1.0], unit="s"), what="archive")
    assert kept(tmp_path, lambda **options: found, plot_file=tmp_path / "a.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fast enough" and lines[-1].startswith("nothing to draw")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("plot_file", ["a.doc", "", "a.json/a.png"])
def test_files_that_cannot_be_written_are_told_before_anything_is_measured(tmp_path: Path, plot_file: str) -> None:
    (tmp_path / "a.json").touch()
    with pytest.raises(ConfigError):
        kept(tmp_path, lambda **options: pytest.fail("measured"), plot_file=tmp_path / plot_file)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def code_of(*arguments: object) -> int:
    """The exit code of `saccade bench`."""
    with pytest.raises(SystemExit) as end:
        run_pipeline.main(["bench", *map(str, arguments)])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_bench_decode_and_compare_as_commands(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, cache = tmp_path / "decode.json", files.short[0].parent.parent
    assert code_of("decode", "--quick", "-q", "--json", path, "--plot", tmp_path / "a.png", "--cache", cache) == 0
    found = fig.read(path)
    names = {figure.name for figure in found.figures}
    assert {"decode.exact_vs_sequential", "decode.keyframe_vs_sequential", "decode.short_vs_best"} <= names
    assert "decode.exact_vs_torchcodec" in names or any(note.startswith("torchcodec") for note in found.notes)
    goals = {figure.name: figure.goal for figure in found.figures if figure.goal is not None}
    assert goals["decode.exact_vs_sequential"] == 4.0 and goals["decode.keyframe_vs_sequential"] == 60.0
    assert found.figure("decode.frames_equal").value == 1.0  # type: ignore[union-attr]
    assert found.settings["lasted_s"] > 0
    assert capsys.readouterr().out.startswith(found.headline)
    assert (tmp_path / "a.png").exists()

    assert code_of("compare", path, path) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 1 + len(found.figures) and "cannot say: samples: 1" in rows[1]
    assert code_of("compare", path, tmp_path / "nothing.json") == 2
    assert "nothing.json is no JSON file of `bench`" in capsys.readouterr().err
    assert code_of("decode", "--quick", "--json", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err


def test_no_time_at_all_is_a_wrong_option(capsys: pytest.CaptureFixture) -> None:
    for arguments in (["live", "--seconds", "0"], ["decode", "--minutes", "-1"]):
        assert code_of(*arguments, "--json", "a.json") == 2
        assert "is not in the range x>0" in capsys.readouterr().err


def test_a_script_that_fails_ends_its_run(small: configuration.Config) -> None:
    def script(session: Session):  # type: ignore[no-untyped-def]
        raise RuntimeError("no more")
        yield

    with pytest.raises(RuntimeError, match="no more"):
        Session(small).run(script)


def test_null_workers_label_every_clip() -> None:
    found = null_run(300, form=FORMS["schedule.clips_per_s"], executor="inline")
    assert len(found.rates) >= 1 and min(found.rates) > 0
    assert found.text.startswith("300 clips in ")


def test_bench_schedule_gives_the_names_that_others_read() -> None:
    found = bench_schedule(say=quiet, quick=True, executor="inline")
    names = {figure.name: figure for figure in found.figures}
    assert {"schedule.clips_per_s", "schedule.occupancy", "schedule.decisions_per_s"} <= set(names)
    assert 16.0 <= names["schedule.driver_bytes_per_clip"].value <= 17.0
    assert all(0.9 < names[f"schedule.occupancy_{n}"].value <= 1.0 for n in (1, 4, 16))


def test_exits_are_a_list_of_shares(tmp_path: Path) -> None:
    path = tmp_path / "exits.json"
    path.write_text("[0.5, 0.25, 0.25]")
    assert read_exits(path) == (0.5, 0.25, 0.25)
    path.write_text("[0.5, -0.25]")
    with pytest.raises(ConfigError, match="not negative"):
        read_exits(path)
    path.write_text("half")
    with pytest.raises(ConfigError, match="no JSON list"):
        read_exits(path)
