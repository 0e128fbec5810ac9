"""Decides how many workers of each stage a machine gets, how many threads each of them, and what share of a GPU.

`place` is pure; `this_machine` asks the system what machine this is.

One thread budget per machine: decoders and networks share its cores, and none is left to a library's default, which
would take all cores for each of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEVICES = Path("/dev")
GPU_LIST = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The means that a run may use: this machine, or the sum of a cluster's."""

    num_cores: int
    memory_bytes: int
    num_gpus: int = 0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Workers per stage and what each may use."""

    source_workers: int
    stream_workers: int
    focus_workers: int
    live_workers: int
    """Workers of `live`, which has only one kind of them."""
    source_threads: int
    stream_threads: int
    focus_threads: int
    num_threads: int
    """How many threads work that has the machine for itself may use."""
    device: str
    stream_gpus: float = 0.0
    focus_gpus: float = 0.0
    live_gpus: float = 0.0
    clips_per_call: int = 1
    max_open_clips: int = 8
    max_pieces: int = 16
    batch_size: int = 32
    focus_depth: int = 1
    store_bytes: int = 512 << 20

    def cpus(self, stage: str) -> float:
        """How many CPUs Ray reserves for a worker. The stages take turns on few cores, so all together take what there
        is."""
        return {"source": self.source_threads, "stream": self.stream_threads, "focus": self.focus_threads}[stage]


def this_machine() -> Machine:
    """The cores that this process may run on, the memory that it may use, and the GPUs that it is given."""
    num_cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            memory = min(memory, int(text))
            break
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        most, _, period = quota.read_text().strip().partition(" ")
        if most.isdigit() and period.isdigit():
            num_cores = max(1, min(num_cores, int(most) // int(period)))
    return Machine(num_cores=num_cores, memory_bytes=memory, num_gpus=_count_gpus())


def _count_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])
    # A container may be given the devices without the driver's list, or fewer devices than the list names.
    devices = len(list(DEVICES.glob("nvidia[0-9]*")))
    return devices or (len(list(GPU_LIST.iterdir())) if GPU_LIST.is_dir() else 0)


def place(
    machine: Machine,
    *,
    device: str = "auto",
    threads: int | None = None,
    source_workers: int | None = None,
    stream_workers: int | None = None,
    focus_workers: int | None = None,
    batch_size: int | None = None,
    clips_per_call: int | None = None,
    max_clips_in_flight: int | None = None,
    max_frames_bytes: int = 512 << 20,
    steps_in_rounds: bool = False,
    in_one_process: bool = False,
) -> Placement:
    """Decides the workers for a machine; numbers that somebody gave are kept.

    `steps_in_rounds`: clips advance step by step. `in_one_process`: workers take turns there, so one of each stage has
    the threads that several would share.
    """
    budget = max(1, threads or machine.num_cores)
    if in_one_process:
        source_workers, stream_workers, focus_workers = source_workers or 1, stream_workers or 1, focus_workers or 1
    use_gpu = device == "cuda" or (device == "auto" and machine.num_gpus > 0)
    form = _beside_gpus(budget, machine.num_gpus) if use_gpu else _on_cores(budget)
    sources, streams = source_workers or form.sources, stream_workers or form.streams
    focuses, lives = focus_workers or form.focuses, stream_workers or form.lives
    if use_gpu:
        source_threads = stream_threads = focus_threads = 1
    else:
        source_threads = max(1, budget // 2 // sources)
        stream_threads = max(1, budget // 4 // streams)
        focus_threads = max(1, (budget // 2 + focuses // 2) // focuses)
    if in_one_process:
        # They wait for each other, and how many threads torch has is the process's and not a worker's.
        source_threads = max(1, budget // 2)
        stream_threads = focus_threads = source_threads if not use_gpu else 1
    networks_gpus = _share_of_gpu(streams + focuses, machine.num_gpus) if use_gpu else 0.0
    batch, together = batch_size or form.batch_size, clips_per_call or form.clips_per_call
    # In rounds a clip brings few patches at a time, so more clips have to be open to fill a batch.
    open_clips = max(together, -(-2 * batch * focuses // streams) if steps_in_rounds else 4 * together)
    pieces = max_clips_in_flight or (open_clips * streams + 2 * sources + 2 * together)
    return Placement(
        source_workers=sources,
        stream_workers=streams,
        focus_workers=focuses,
        live_workers=lives,
        source_threads=source_threads,
        stream_threads=stream_threads,
        focus_threads=focus_threads,
        num_threads=budget,
        device="cuda" if use_gpu else "cpu",
        stream_gpus=networks_gpus,
        focus_gpus=networks_gpus,
        live_gpus=_share_of_gpu(lives, machine.num_gpus) if use_gpu else 0.0,
        clips_per_call=together,
        max_open_clips=min(open_clips, pieces),
        max_pieces=pieces,
        batch_size=batch,
        focus_depth=form.focus_depth,
        # Frames in flight, their patches and what is about to be freed.
        store_bytes=min(max(256 << 20, 2 * max_frames_bytes), max(128 << 20, machine.memory_bytes // 4)),
    )


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Workers and sizes where nobody gave a number."""

    sources: int
    streams: int
    focuses: int
    lives: int
    batch_size: int
    clips_per_call: int
    focus_depth: int


def _beside_gpus(budget: int, num_gpus: int) -> _Form:
    """Networks run on the GPUs, and the cores decode."""
    networks = max(1, num_gpus)
    return _Form(
        sources=max(1, budget - 2),
        streams=networks,
        focuses=networks,
        lives=networks,
        batch_size=256,
        clips_per_call=8,
        focus_depth=2,
    )


def _on_cores(budget: int) -> _Form:
    """Networks and decoders share the cores."""
    return _Form(
        # Decoding is most of the work, so on two cores it may have both, and gives way when frames pile up: 6 videos of
        # 2 min and 30 clips of 10 s took 0.53 s a clip with two source workers and 1.02 s with one.
        sources=max(min(budget, 2), budget // 2),
        streams=max(1, budget // 8),
        # With few frames decoded most of the work is the focus network's, and one worker of it would leave cores idle:
        # short clips with full-size networks on 2 cores, 1.9 and 1.8 a second with two, 1.5 and 1.4 with one.
        focuses=max(min(budget, 2), budget // 16),
        # Threads of one worker wait for each other after every layer, and for readers that take their core. 8 cameras
        # on 2 busy cores: labels after 0.5 s (median) with two workers, 1.1 and 2.1 s with one.
        lives=max(min(budget, 2), budget // 8),
        batch_size=32,
        clips_per_call=2,
        focus_depth=1,
    )


def _share_of_gpu(workers: int, num_gpus: int) -> float:
    """The share of a GPU that each worker has. An actor has a whole GPU or a share of one, never parts of two: of 3
    actors on 2 GPUs, 2 are on one of them."""
    return 1 / -(-workers // num_gpus) if num_gpus else 0.0
