"""Every change of a camera's state goes into the log of its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.live.worker import CameraNews
from pipeline.run.run_log import RunLog

News = Mapping[str, CameraNews]


def logging_states(log: RunLog, show: Callable[[News], None]) -> Callable[[News], None]:
    """Gives a function that calls `show` with the news of cameras, and writes every change of a state to the log."""
    states: dict[str, str] = {}

    def show_and_log(cameras: News) -> None:
        for name, camera in cameras.items():
            if states.get(name) != camera.state.value:
                states[name] = camera.state.value
                log.note("camera", camera=name, state=camera.state.value, last_error=camera.last_error)
        show(cameras)

    return show_and_log
