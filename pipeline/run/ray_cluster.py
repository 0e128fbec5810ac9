"""Ray on this machine, or a cluster that was started elsewhere: starting, joining, leaving, and what is free there.

Ray would take over the driver's signals and write to its standard output. Both are prevented here for as long as Ray is
up, and no longer.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import state as ray_state
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from operators.errors import ClusterGone, ConfigError, StageError
from pipeline.run.nodes import Node
from pipeline.run.reaper import MARK

CODE = Path(__file__).resolve().parents[2]
"""The folder of our packages: a checkout, or where the program was installed, beside much that is not ours."""
_OUR_CODE: dict[str, Any] = {
    "py_modules": [str(CODE / name) for name in ("operators", "pipeline", "policies")],
    "excludes": ["**/__pycache__"],
}
"""What goes to the machines of a cluster."""
_ANSWER_S = 5.0
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
_REFUSALS = (ConnectionError, RuntimeError, ValueError, TimeoutError)
"""What Ray raises where it cannot start or join."""
_SET_SIGTERM_HANDLER = ray_utils.set_sigterm_handler
_PRINT_TO_STDSTREAM = ray_worker.print_to_stdstream


class LocalRay:
    """Ray on this machine for one run. Once it is closed no process and no file of it stays behind."""

    def __init__(self, *, num_cpus: int, num_gpus: int, store_bytes: int) -> None:
        # Socket paths are limited to 107 bytes, so the folder has to lie high up.
        self.folder = tempfile.mkdtemp(prefix="saccade-", dir="/tmp")
        self._reaper: subprocess.Popen[bytes] | None = _start_reaper(self.folder)
        try:
            _start_ray(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                object_store_memory=store_bytes,
                include_dashboard=False,
                _temp_dir=self.folder,
            )
        except _REFUSALS as exc:
            self.close()
            raise StageError(f"Ray does not start on this machine: {one_line(exc)}") from exc

    def close(self) -> None:
        """Has whatever Ray left behind ended, and its folder removed."""
        if self._reaper is not None:
            os.environ.pop(MARK, None)
            assert self._reaper.stdin is not None
            self._reaper.stdin.close()
            self._reaper.wait()
            self._reaper = None


def _start_ray(**options: Any) -> None:
    """ray.init, which leaves the driver's signals and standard output alone."""
    # It would log its token in two lines at every start; what goes wrong is raised.
    logging.getLogger("ray").setLevel(logging.ERROR)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # The first signal is for draining. Ray's handler would end the driver in the middle of a start, with a code of its
    # own.
    ray_utils.set_sigterm_handler = lambda handler: None
    # Standard output is for results; a thread of Ray's would print there that a worker died, for as long as it is up.
    ray_worker.print_to_stdstream = lambda *args, **kwargs: None
    try:
        ray.init(**_QUIET, **options)
    finally:
        ray_utils.set_sigterm_handler = _SET_SIGTERM_HANDLER
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if not ray.is_initialized():
            ray_worker.print_to_stdstream = _PRINT_TO_STDSTREAM


def leave() -> None:
    """Ends Ray on this machine, or this process's part in a cluster; does nothing where that has been done."""
    ray.shutdown()
    ray_worker.print_to_stdstream = _PRINT_TO_STDSTREAM


def abandon() -> None:
    """Gives a cluster up whose head is gone: leaving would wait a minute for it, and then end this process with a text
    of Ray's own."""
    atexit.unregister(ray_worker.shutdown)


@contextlib.contextmanager
def joined(address: str) -> Iterator[dict[str, float]]:
    """Joins a running cluster with our code, and gives what is free there, by Ray's names."""
    join(address)
    try:
        yield dict(ray.available_resources())
    except ClusterGone:
        abandon()
        raise
    except BaseException:
        leave()
        raise
    leave()


def free_resources(address: str) -> dict[str, float]:
    """What is free in a running cluster, by Ray's names. The cluster is left again."""
    _join(address)
    try:
        return dict(ray.available_resources())
    finally:
        leave()


def join(address: str) -> None:
    """Joins a running cluster with our code, unless this process has joined it already."""
    if not ray.is_initialized():
        _join(address, runtime_env=_OUR_CODE)


def _join(address: str, **options: Any) -> None:
    if "://" in address:
        raise ConfigError(f"--ray-address {address}: give HOST:PORT of the cluster's head, or auto")
    host, _, port = address.rpartition(":")
    if address not in ("auto", "local") and not (host and port.isdigit()):
        raise ConfigError(f"--ray-address {address}: give HOST:PORT of the cluster's head, or auto")
    try:
        if host:
            # Ray would try for half a minute where nobody listens.
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except OSError as exc:
        raise StageError(f"no Ray cluster answers at {address}: {exc}") from exc
    try:
        _start_ray(address=address, **options)
    except _REFUSALS as exc:
        raise StageError(f"no Ray cluster answers at {address}: {one_line(exc)}{_token_hint()}") from exc


def _token_hint() -> str:
    """Ray's clusters want a token unless they were started without; to an address that is named, none is sent."""
    if os.environ.get("RAY_AUTH_MODE"):
        return ""
    return "; if it asks for a token, set RAY_AUTH_MODE=token (the token is in RAY_AUTH_TOKEN or ~/.ray/auth_token)"


def free_cpus(address: str) -> float:
    """How many CPUs are free in the cluster that was joined; where there is none, the cluster is left."""
    free = float(ray.available_resources().get("CPU", 0.0))
    if free <= 0:
        leave()
        raise StageError(f"the Ray cluster at {address} has no CPU free; try again when other work there has ended")
    return free


def head_address() -> tuple[str, int]:
    """The host and port of the head of the cluster that was joined."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host.strip("[]"), int(port)


def list_nodes() -> list[Node]:
    """The machines of the cluster, as Ray's head lists them."""
    free = ray_state.available_resources_per_node()
    return [
        Node(
            node_id=node["NodeID"],
            address=node["NodeManagerAddress"],
            port=node["NodeManagerPort"],
            is_alive=node["Alive"],
            free=free.get(node["NodeID"], {}),
            total=node.get("Resources", {}),
        )
        for node in ray.nodes()
    ]


def _start_reaper(folder: str) -> subprocess.Popen[bytes]:
    """Starts the reaper. From here on every process that this one starts carries the mark by which it knows them."""
    mark = uuid.uuid4().hex
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py")), mark, folder, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    os.environ[MARK] = mark
    return reaper


def one_line(exc: BaseException) -> str:
    """The text of an exception of Ray's, which may have many lines, as one."""
    return " ".join(str(exc).split())[:500]
