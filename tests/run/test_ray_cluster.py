"""A cluster that somebody started: a run joins it from anywhere, and fits into what is free there."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from operators.errors import ConfigError, StageError
from operators.media.encode import write_video
from pipeline.config import load
from pipeline.run import ray_cluster
from pipeline.run.nodes import share_of
from pipeline.run.ray_cluster import free_resources
from pipeline.run.ray_executor import RayExecutor
from pipeline.run.session import open_cluster
from tests.support.processes import saccade
from tests.ways import netns_cluster

pytestmark = pytest.mark.ray


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head with two CPUs, fewer than the default workers' threads; it ends with the process that starts it."""
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp") as folder, (Path(folder) / "log").open("w+") as log:
        head = subprocess.Popen(
            [
                *(ray, "start", "--head", "--block", "--port", str(port), "--num-cpus", "2"),
                *("--object-store-memory", str(160 << 20), "--temp-dir", folder),
                *("--include-dashboard=false", "--disable-usage-stats"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"},
            start_new_session=True,
        )
        try:
            until = time.monotonic() + 60
            while "Ray runtime started" not in Path(log.name).read_text():
                assert head.poll() is None and time.monotonic() < until, Path(log.name).read_text()
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(30)


def test_a_run_joins_a_cluster_that_has_fewer_cores_than_its_workers_have_threads(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (14, 17, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        write_video(folder / f"{number}.mp4", (np.roll(noise, t, 1) for t in range(12)), fps=12)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    code, _, err = saccade("label", folder, "-o", tmp_path / "out", "--config", "demo", "--ray-address", address)
    assert code == 0, err
    workers = re.search(r"(\d+) source, (\d+) stream and (\d+) focus", err)
    assert workers and sum(map(int, workers.groups())) > 2, "the workers ask for no more than there is"
    rows = ds.dataset(str(tmp_path / "out" / "labels"), format="parquet").to_table().to_pylist()
    assert [row["error_code"] for row in rows] == [None] * 6


def test_a_run_joins_its_cluster_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    joins, init = [], ray_cluster.ray.init
    monkeypatch.setattr(ray_cluster.ray, "init", lambda **options: (joins.append(options), init(**options)))
    with open_cluster(load("demo", flags={"run.ray_address": address})) as machine:
        assert machine.num_cores == 2
        executor = RayExecutor(address=address, num_cpus=1, store_bytes=0)
        executor.close()
    assert [options["address"] for options in joins] == [address]


def test_an_address_where_nobody_listens_is_an_error_before_ray_would_give_up() -> None:
    begun_s = time.monotonic()
    with pytest.raises(StageError, match="no Ray cluster answers at 127"):
        free_resources(f"127.0.0.1:{free_port()}")
    assert time.monotonic() - begun_s < 15


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", ":6379"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        free_resources(address)


@pytest.mark.parametrize(
    ("num_cpus", "share", "asked"), [(2, 1.0, 2.0), (1, 0.5, 0.5), (4, 0.6, 2.0), (1, 0.333, 0.33), (0, 0.5, 0.0)]
)
def test_an_actor_asks_for_its_share_in_the_parts_that_ray_takes(num_cpus: float, share: float, asked: float) -> None:
    assert share_of(num_cpus, share) == asked


def test_a_machine_that_dies_under_the_default_plan_costs_no_row_and_the_run_ends() -> None:
    if (reason := netns_cluster.why_not()) is not None:
        pytest.skip(reason)
    assert "ended" in netns_cluster.killed(100)
