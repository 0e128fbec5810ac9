"""Generated files are what they are said to be."""

from __future__ import annotations

from pathlib import Path

from pipeline.bench.decode_count import planned
from pipeline.bench.rivals import Files
from pipeline.bench.workloads import Clips, as_sources, make
from tests.bench.samples import quiet

TINY = Clips(name="tiny", num_files=3, width=96, height=64, seconds=0.5, fps=20, gop=5, num_made=2, num_things=3)


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
