"""The command from video files to Parquet, as a user runs it: on Ray, killed and interrupted, and run again."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from operators.media.encode import write_video
from tests.support.processes import Command, saccade, wait_for

SMALL = ("--config", "demo")


def table(out: Path) -> dict[str, dict[str, object]]:
    """The labels by clip_id; a clip twice is a failure of its own."""
    rows = ds.dataset(str(out / "labels"), format="parquet").to_table().to_pylist()
    by_clip = {row["clip_id"]: row for row in rows}
    assert len(by_clip) == len(rows), "a clip has two rows"
    return by_clip


def answers(out: Path) -> dict[str, tuple[object, ...]]:
    return {clip: (row["label"], row["error_code"], row["frames_total"]) for clip, row in table(out).items()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty short H.264 files of moving noise."""
    folder = tmp_path_factory.mktemp("archive")
    for number in range(60):
        rng = np.random.default_rng(number)
        noise = rng.integers(0, 256, (14, 17, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        write_video(folder / f"video_{number:03d}.mp4", (np.roll(noise, t, 1) for t in range(12)), fps=12)
    return folder


@pytest.fixture(scope="module")
def labelled(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run in one process."""
    out = tmp_path_factory.mktemp("undisturbed")
    code, _, err = saccade("label", archive, "-o", out, *SMALL, "--executor", "inline", "--set", "output.logits=true")
    assert code == 0, err
    return out


def test_ray_and_inline_give_the_same_labels(archive: Path, labelled: Path, tmp_path: Path) -> None:
    command = Command("label", archive, "-o", tmp_path, *SMALL, "--set", "output.logits=true", "--json")
    code, out, err = command.wait()
    assert code == 0, err
    summary = json.loads(out)
    assert summary["clips"] == 60
    assert summary["patch_wait_s"] >= 0 and 0 <= summary["focus_idle_share"] <= 1
    ours, theirs = table(tmp_path), table(labelled)
    assert ours.keys() == theirs.keys()
    for clip in ours:
        assert ours[clip]["label"] == theirs[clip]["label"]
        np.testing.assert_allclose(ours[clip]["logits"], theirs[clip]["logits"], atol=1e-4)
    assert command.is_gone()


def test_a_folder_of_good_broken_and_odd_files_gives_a_row_for_every_input(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = (archive / "video_000.mp4").read_bytes()
    (folder / "good.mp4").write_bytes(good)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "page.mp4").write_text("<html><body>404 Not Found</body></html>")
    (folder / "cut.mp4").write_bytes(good[: len(good) // 2])
    (folder / "notes.txt").write_text("not a video")
    still = np.zeros((40, 60, 3), np.uint8)
    import cv2

    cv2.imwrite(str(folder / "still.png"), still)
    frames = folder / "frames"
    frames.mkdir()
    for number in range(1, 6):
        cv2.imwrite(str(frames / f"image_{number:05d}.jpg"), still)
    (tmp_path / "list.txt").write_text("nowhere.mp4\n")
    code, out, err = saccade(
        "label", folder, tmp_path / "list.txt", "-o", tmp_path / "out", *SMALL, "--executor", "inline", "--json"
    )
    assert code == 3, err
    rows = {row["video_id"]: row["error_code"] for row in table(tmp_path / "out").values()}
    assert rows.pop("cut") in ("not_media", "corrupt", "no_frames")
    assert rows == {
        "good": None,
        "empty": "empty",
        "page": "not_media",
        "still": None,
        "frames": None,
        "nowhere": "missing",
    }
    summary = json.loads(out)
    assert (summary["clips"], summary["failed"]) == (3, 4)
    assert summary["skipped_files"] == {".txt": 1}


def test_running_again_labels_only_what_is_missing(archive: Path, labelled: Path, tmp_path: Path) -> None:
    arguments = ("-o", tmp_path, *SMALL, "--executor", "inline", "--json")
    code, _, err = saccade("label", archive, *arguments, "--limit", 20)
    assert code == 0, err
    parts = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "labels").iterdir()}
    code, out, err = saccade("label", archive, *arguments)
    assert code == 0, err
    assert (json.loads(out)["clips"], json.loads(out)["done_before"]) == (40, 20)
    assert answers(tmp_path).keys() == answers(labelled).keys()
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "labels").iterdir()}
    assert parts.items() <= now.items(), "what was committed was written again"


def test_other_settings_are_not_mixed_in(archive: Path, labelled: Path) -> None:
    arguments = ("label", archive, "-o", labelled, *SMALL, "--executor", "inline", "--set", "output.logits=true")
    code, _, err = saccade(*arguments, "--set", "focus.patch_px=48")
    assert code == 2
    assert "focus.patch_px" in err and "--no-resume" in err
    assert [line.startswith("error: ") for line in err.strip().splitlines()][-2:] == [False, True]


def test_no_input_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = saccade("label", tmp_path / "empty", "-o", tmp_path / "out", *SMALL, "--executor", "inline")
    assert code == 4
    assert "no input" in err


def test_a_wrong_setting_is_reported_in_one_line(tmp_path: Path) -> None:
    code, _, err = saccade("label", tmp_path, "-o", tmp_path / "out", *SMALL, "--set", "focus.patchpx=3")
    assert code == 2
    assert err.strip() == "error: unknown setting focus.patchpx; did you mean focus.patch_px?"


def test_a_list_comes_from_standard_input(archive: Path, tmp_path: Path) -> None:
    lines = "".join(f"{archive / f'video_{n:03d}.mp4'} class_{n:03d}\n" for n in (1, 2)).encode()
    code, _, err = saccade("label", "-", "-o", tmp_path, *SMALL, "--executor", "inline", stdin=lines)
    assert code == 0, err
    assert sorted(row["truth"][0] for row in table(tmp_path).values()) == ["class_001", "class_002"]


def kill_one(command: Command, title: str) -> bool:
    """Kills the process of one stage's worker; false where there is none."""
    for pid, line in command.family().items():
        if title in line:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def test_killed_workers_are_replaced_and_no_clip_is_lost(archive: Path, labelled: Path, tmp_path: Path) -> None:
    command = Command("label", archive, "-o", tmp_path, *SMALL, "--set", "output.logits=true", "--json")
    killed = []
    for stage in ("source", "stream", "focus"):
        title = f"saccade-{stage}"
        if wait_for(lambda title=title: any(title in line for line in command.family().values()), 40):  # type: ignore[misc]
            time.sleep(0.3)
            killed.append(kill_one(command, title))
    code, _, err = command.wait()
    assert code == 0, err
    assert any(killed)
    assert answers(tmp_path) == answers(labelled)
    assert command.is_gone()


def test_a_run_killed_again_and_again_ends_with_the_same_table(
    archive: Path, labelled: Path, tmp_path: Path
) -> None:
    draw = random.Random(7)
    arguments = ("label", archive, "-o", tmp_path, *SMALL, "--set", "output.logits=true")
    slow = ("--set", "output.rows_per_part=5")
    for _ in range(3):
        command = Command(*arguments, *slow)
        wait_for(lambda: command.process.poll() is not None, 6 + 4 * draw.random())  # noqa: B023
        command.process.kill()
        command.wait()
        assert command.is_gone(40), f"left behind: {command.family()}"
    code, _, err = saccade(*arguments, *slow)
    assert code == 0, err
    assert answers(tmp_path) == answers(labelled)
    leftovers = [p.name for p in (tmp_path / "labels").iterdir() if p.suffix != ".parquet"]
    assert leftovers == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drains_and_the_next_run_goes_on(
    number: signal.Signals, code: int, archive: Path, labelled: Path, tmp_path: Path
) -> None:
    arguments = ("label", archive, "-o", tmp_path, *SMALL, "--executor", "inline", "--set", "output.logits=true")
    command = Command(*arguments, "--set", "output.rows_per_part=2")
    assert wait_for(lambda: any((tmp_path / "labels").glob("*.parquet")), 60)
    command.process.send_signal(number)
    ended, _, err = command.wait()
    assert ended == code, err
    committed = len(table(tmp_path))
    assert 0 < committed <= 60
    assert saccade(*arguments, "--set", "output.rows_per_part=2")[0] == 0
    assert answers(tmp_path) == answers(labelled)


@pytest.fixture(scope="module")
def needles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty videos of the synthetic archive, of which the small networks know some at the first look."""
    folder = tmp_path_factory.mktemp("needles")
    code, _, err = saccade("synth", folder, "--videos", 20, "--shares", 0, 0, 1, "--seed", 5, "--workers", 2, "-q")
    assert code == 0, err
    return folder


def stopped_early(needles: Path, out: Path, *, executor: str, workers: int, batch: int) -> dict[str, dict[str, object]]:
    """The labels of a run whose clips leave when they are sure."""
    arguments = ("--videos", needles / "videos", "--subset", "test", "-o", out, *SMALL, "--executor", executor)
    settings = {
        "stop.kind": "confidence",
        "stop.thresholds": "[0.6]",
        "run.focus_workers": workers,
        "focus.batch_size": batch,
        "compute.precision": "fp32",
        "output.logits": "true",
        "output.step_logits": "true",
    }
    options = [option for key, value in settings.items() for option in ("--set", f"{key}={value}")]
    code, _, err = saccade("label", needles / "annotations.json", *arguments, *options)
    assert code == 0, err
    return table(out)


def test_labels_and_exits_do_not_depend_on_how_clips_were_batched(needles: Path, tmp_path: Path) -> None:
    runs = [("inline", 1, 1), ("inline", 1, 64), ("ray", 3, 7)]
    first, *others = (
        stopped_early(needles, tmp_path / f"{name}-{workers}-{batch}", executor=name, workers=workers, batch=batch)
        for name, workers, batch in runs
    )
    exits = {row["stopped_at"] for row in first.values()}
    assert len(exits) > 2, "clips leave at different steps"
    for row in first.values():
        assert len(row["patches"]) == row["stopped_at"], "no later frame was focused"
    for other in others:
        assert other.keys() == first.keys()
        for clip, row in first.items():
            same = ("label", "stopped_at", "frames_focused", "gmacs", "patches")
            assert {name: other[clip][name] for name in same} == {name: row[name] for name in same}
            np.testing.assert_allclose(other[clip]["logits"], row["logits"], atol=1e-4)


def test_policies_stand_side_by_side_and_full_may_have_networks_of_its_own(needles: Path, tmp_path: Path) -> None:
    arguments = ("--videos", needles / "videos", "--subset", "test", "-o", tmp_path, "--executor", "inline", "--json")
    weights = Path(__file__).parents[2] / "configs" / "weights" / "small_synth.safetensors"
    # Three clips have three classes of ten: the names of the others are known all the same.
    compared = ("--limit", 3, "--compare", "learned,full", "--full-checkpoint", weights)
    code, out, err = saccade("eval", needles / "annotations.json", *arguments, *SMALL, *compared)
    assert code == 0, err
    found = json.loads(out)
    assert found.keys() == {"learned", "full"}
    assert all(each["scores"]["num_clips"] == 3 for each in found.values())
    assert found["full"]["gmacs"] > 5 * found["learned"]["gmacs"]


def test_a_dry_run_of_eval_or_calibrate_labels_nothing(needles: Path, tmp_path: Path) -> None:
    arguments = (needles / "annotations.json", "--videos", needles / "videos", "--subset", "test", "-o", tmp_path / "o")
    for command, runs in (("eval", {"center"}), ("calibrate", {"calibration"})):
        code, out, err = saccade(
            command, *arguments, *SMALL, "--dry-run", "--json", "--limit", 4, "--set", "policy.kind=center"
        )
        assert code == 0, err
        estimates = json.loads(out)
        assert estimates.keys() == runs
        assert all(figures["inputs"] == 4 and figures["gmacs"] > 0 for figures in estimates.values())
        assert not (tmp_path / "o").exists()
