"""Examines what this machine has and lacks for a run, a line each: `ok`, `warn` with what follows from it, `fail`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from pipeline.plan.placement import Machine, place, this_machine
from pipeline.steering.executor import Call, Executor, WorkerSpec
from pipeline.steering.messages import WriteRequest

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "prores", "mjpeg", "png")


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    state: str
    """ok, warn or fail"""
    text: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(*, start_ray: bool = True) -> list[Finding]:
    """All findings; starting Ray takes some seconds."""
    machine = this_machine()
    findings = [_machine(machine), _memory(machine), *_libraries(), _codecs(), _gpu(machine), _shared_memory(machine)]
    findings += [_threads(machine), _kernels(), _open_files()]
    if start_ray:
        findings.append(_ray(machine))
    return findings


def _machine(machine: Machine) -> Finding:
    placement = place(machine)
    return Finding(
        "cores",
        "ok",
        f"{machine.num_cores}: {placement.source_workers} source, {placement.stream_workers} stream, "
        f"{placement.focus_workers} focus worker(s); {placement.live_workers} for cameras",
    )


def _memory(machine: Machine) -> Finding:
    gib = machine.memory_bytes / 2**30
    state = "ok" if gib >= 4 else "warn"
    return Finding("memory", state, f"{gib:.1f} GiB" + ("" if state == "ok" else "; 4 GiB is the least for Ray"))


def _libraries() -> list[Finding]:
    findings = []
    for name in ("torch", "av", "ray", "numpy", "pyarrow", "opencv-python-headless"):
        try:
            findings.append(Finding(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, "fail", "not installed; run make install"))
    return findings


def _codecs() -> Finding:
    from operators.media.decode import missing_decoders

    missing = missing_decoders(CODECS)
    if missing:
        return Finding("codecs", "warn", f"no decoder for {', '.join(missing)}: such files become unsupported_codec")
    return Finding("codecs", "ok", ", ".join(CODECS))


def _gpu(machine: Machine) -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("gpu", "ok", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    if machine.num_gpus:
        return Finding(
            "gpu", "warn", f"{machine.num_gpus} in the machine, but this torch ({torch.__version__}) does not see it"
        )
    return Finding("gpu", "ok", "none: networks run on the CPU")


def _shared_memory(machine: Machine) -> Finding:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Finding("shared memory", "warn", "no /dev/shm: Ray's object store falls back to slow files")
    free, wanted = shutil.disk_usage(shm).free, place(machine).store_bytes
    if free < wanted:
        return Finding(
            "shared memory",
            "warn",
            f"{free >> 20} MiB free in /dev/shm, {wanted >> 20} MiB wanted: Ray falls back to slow files; "
            "in Docker give --shm-size, or lower run.max_frames_mb",
        )
    return Finding("shared memory", "ok", f"{free >> 20} MiB free, {wanted >> 20} MiB used at most")


def _threads(machine: Machine) -> Finding:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > machine.num_cores:
            return Finding("threads", "warn", f"{name}={value} is more than the {machine.num_cores} cores")
    return Finding("threads", "ok", "set from one budget per machine")


def _kernels() -> Finding:
    import torch

    from operators.networks.compiled import can_compile
    from pipeline.plan.processor import has_fast_bf16

    if not can_compile("cpu", torch.float32):
        has_onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
        lack = f"torch {torch.__version__} has other oneDNN operations than those used here"
        why = lack if has_onednn else "this torch has no oneDNN"
        return Finding("kernels", "warn", f"{why}: on the CPU networks run layer by layer, slower")
    half = "multiplies in bfloat16" if has_fast_bf16() else "does not multiply in bfloat16: networks run in fp32"
    return Finding("kernels", "ok", f"fused, made without a C++ compiler; the processor {half}")


def _open_files() -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    state = "ok" if soft >= 1024 else "warn"
    return Finding("open files", state, f"limit {soft}" + ("" if state == "ok" else "; ulimit -n 4096 is advised"))


def _ray(machine: Machine) -> Finding:
    from operators.errors import PipelineError
    from pipeline.run.ray_executor import RayExecutor

    try:
        executor = RayExecutor(num_cpus=machine.num_cores, store_bytes=128 << 20)
    except PipelineError as exc:
        return Finding("ray", "fail", str(exc))
    try:
        return try_writing(executor)
    except PipelineError as exc:
        return Finding("ray", "fail", str(exc))
    finally:
        executor.close()


def try_writing(executor: Executor) -> Finding:
    """A worker of this executor writes a part of one row, and it is read."""
    from operators.records import ClipLabel, clip_id
    from operators.table.schema import summarize
    from pipeline.run.session import call_worker

    label = ClipLabel(video_id="doctor", clip_id=clip_id("doctor", 0.0), source_uri="doctor")
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"out": folder, "run_id": "doctor", "resume": True, "retry_failed": False}
        executor.start(WorkerSpec(stage="sink", factory="pipeline.run.sink_worker:sink_worker", arguments=arguments))
        executor.wait_ready()
        requests = {
            "open": (),
            "begin": ({"model_id": "doctor", "config_id": "doctor"},),
            "write": (WriteRequest(sequence=0, labels=(label,)),),
            "finish": (),
        }
        for method, request in requests.items():
            call_worker(executor, Call(stage="sink", worker=0, method=method, requests=request))
        if summarize(Path(folder) / "labels").num_clips != 1:
            return Finding("ray", "fail", f"what its worker wrote to {folder} is not there: another machine's disk?")
    return Finding("ray", "ok", "starts, and a worker of its writes labels that can be read")


def worst(findings: list[Finding]) -> str:
    order: Callable[[Finding], int] = lambda finding: ("ok", "warn", "fail").index(finding.state)  # noqa: E731
    return max(findings, key=order).state
