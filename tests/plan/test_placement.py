from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.plan import placement
from pipeline.plan.placement import Machine, Placement, place, this_machine

GB = 1 << 30


def machine(num_cores: int, num_gpus: int = 0) -> Machine:
    return Machine(num_cores=num_cores, memory_bytes=16 * GB, num_gpus=num_gpus)


def workers(placement: Placement) -> tuple[int, int, int]:
    return placement.source_workers, placement.stream_workers, placement.focus_workers


def threads(placement: Placement) -> tuple[int, int, int]:
    return placement.source_threads, placement.stream_threads, placement.focus_threads


@pytest.mark.parametrize(
    ("num_cores", "num_workers", "num_threads"),
    [
        (1, (1, 1, 1), (1, 1, 1)),
        (2, (2, 1, 2), (1, 1, 1)),
        (4, (2, 1, 2), (1, 1, 1)),
        (6, (3, 1, 2), (1, 1, 2)),
        (16, (8, 2, 2), (1, 2, 4)),
        (64, (32, 8, 4), (1, 2, 8)),
    ],
)
def test_cores_become_workers_and_threads(
    num_cores: int, num_workers: tuple[int, int, int], num_threads: tuple[int, int, int]
) -> None:
    placement = place(machine(num_cores))
    assert workers(placement) == num_workers
    assert threads(placement) == num_threads
    assert placement.device == "cpu"
    assert (placement.stream_gpus, placement.focus_gpus) == (0.0, 0.0)
    assert (placement.batch_size, placement.focus_depth) == (32, 1)


@pytest.mark.parametrize(
    ("num_cores", "num_gpus", "num_workers"), [(1, 0, 1), (2, 0, 2), (8, 0, 2), (32, 0, 4), (16, 1, 1), (16, 4, 4)]
)
def test_cameras_have_two_workers_where_there_are_two_cores(num_cores: int, num_gpus: int, num_workers: int) -> None:
    assert place(machine(num_cores, num_gpus)).live_workers == num_workers
    assert place(machine(num_cores, num_gpus), stream_workers=3).live_workers == 3


@pytest.mark.parametrize(("num_gpus", "num_workers", "share"), [(1, 1, 1.0), (1, 2, 0.5), (2, 3, 0.5), (4, 3, 1.0)])
def test_what_cameras_ask_of_gpus_fits_on_them(num_gpus: int, num_workers: int, share: float) -> None:
    placement = place(machine(16, num_gpus), stream_workers=num_workers)
    assert (placement.live_workers, placement.live_gpus) == (num_workers, share)


@pytest.mark.parametrize("num_cores", [1, 2, 3, 5, 8, 16, 31, 64, 200])
def test_threads_are_about_as_many_as_cores(num_cores: int) -> None:
    placement = place(machine(num_cores))
    total = sum(w * t for w, t in zip(workers(placement), threads(placement), strict=True))
    # The stages take turns, and each has one thread at least.
    assert num_cores <= total <= 1.25 * num_cores + 2.5


@pytest.mark.parametrize(("num_gpus", "num_workers"), [(1, (14, 1, 1)), (2, (14, 2, 2)), (4, (14, 4, 4))])
def test_every_gpu_has_a_stream_and_a_focus_worker(num_gpus: int, num_workers: tuple[int, int, int]) -> None:
    placement = place(machine(16, num_gpus))
    assert workers(placement) == num_workers
    assert placement.device == "cuda"
    assert (placement.stream_gpus, placement.focus_gpus) == (0.5, 0.5)
    assert (placement.batch_size, placement.focus_depth) == (256, 2)
    assert [placement.cpus(stage) for stage in ("source", "stream", "focus")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("num_gpus", "streams", "focuses", "share"),
    [(1, 1, 2, 1 / 3), (2, 1, 2, 0.5), (2, 1, 1, 1.0), (4, 1, 1, 1.0), (4, 2, 3, 0.5), (4, 1, 2, 1.0)],
)
def test_an_actor_has_a_whole_gpu_or_a_share_of_one(num_gpus: int, streams: int, focuses: int, share: float) -> None:
    placement = place(machine(16, num_gpus), stream_workers=streams, focus_workers=focuses)
    assert placement.stream_gpus == placement.focus_gpus == pytest.approx(share)


@pytest.mark.parametrize("num_gpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("num_actors", range(2, 12))
def test_all_actors_find_room_on_the_gpus(num_gpus: int, num_actors: int) -> None:
    placement = place(machine(16, num_gpus), stream_workers=1, focus_workers=num_actors - 1)
    share = placement.focus_gpus
    assert 0 < share <= 1
    assert num_gpus * int(1 / share + 1e-6) >= num_actors


def test_a_gpu_that_is_not_wanted_is_left_alone() -> None:
    placement = place(machine(16, 2), device="cpu")
    assert (placement.device, placement.focus_gpus) == ("cpu", 0.0)
    assert place(machine(16, 0), device="cuda").device == "cuda"


def test_numbers_that_somebody_gave_are_kept() -> None:
    placement = place(
        machine(16),
        threads=4,
        source_workers=3,
        stream_workers=2,
        focus_workers=5,
        batch_size=7,
        clips_per_call=1,
        max_clips_in_flight=6,
    )
    assert workers(placement) == (3, 2, 5)
    assert (placement.batch_size, placement.clips_per_call, placement.max_pieces) == (7, 1, 6)
    assert placement.max_open_clips <= 6
    assert placement.num_threads == 4


def test_in_rounds_enough_clips_are_open_for_two_batches_of_every_focus_worker() -> None:
    placement = place(machine(64), steps_in_rounds=True)
    # 4 focus workers with batches of 32 patches, 8 stream workers.
    assert placement.max_open_clips * placement.stream_workers == 2 * 4 * 32
    assert placement.max_pieces > placement.max_open_clips * placement.stream_workers


@pytest.mark.parametrize(
    ("memory_gb", "frames_mb", "store_mb"),
    [(64, 512, 1024), (2, 512, 512), (64, 64, 256), (0.25, 512, 128)],
)
def test_the_object_store_holds_the_frames_twice_but_never_takes_the_machine(
    memory_gb: float, frames_mb: int, store_mb: int
) -> None:
    small = Machine(num_cores=2, memory_bytes=int(memory_gb * GB))
    assert place(small, max_frames_bytes=frames_mb << 20).store_bytes == store_mb << 20


@pytest.mark.parametrize(("visible", "num_gpus"), [("0,1", 2), ("", 0), ("-1", 0), ("GPU-1a2b", 1)])
def test_gpus_are_counted_as_the_driver_names_them(
    monkeypatch: pytest.MonkeyPatch, visible: str, num_gpus: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert this_machine().num_gpus == num_gpus


@pytest.mark.parametrize(
    ("devices", "listed", "num_gpus"),
    [
        ([], None, 0),
        ([], ["0000:01:00.0", "0000:02:00.0"], 2),
        # A container with the devices alone, and one that was given one of the machine's two.
        (["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], None, 2),
        (["nvidia1", "nvidiactl"], ["0000:01:00.0", "0000:02:00.0"], 1),
    ],
)
def test_gpus_are_found_by_their_devices_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: list[str], listed: list[str] | None, num_gpus: int
) -> None:
    (tmp_path / "dev").mkdir()
    for name in devices:
        (tmp_path / "dev" / name).touch()
    for name in listed or []:
        (tmp_path / "list" / name).mkdir(parents=True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(placement, "DEVICES", tmp_path / "dev")
    monkeypatch.setattr(placement, "GPU_LIST", tmp_path / "list")
    assert this_machine().num_gpus == num_gpus


def test_this_machine_has_the_cores_that_the_process_may_use() -> None:
    here = this_machine()
    assert 1 <= here.num_cores <= len(os.sched_getaffinity(0))
    assert here.memory_bytes > 64 << 20
