"""Arguments become the cameras of a live run, and their passwords are kept out of other processes."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from operators.errors import ConfigError, SourceError
from operators.passwords import without_password
from pipeline.config import Camera, Config, load_cameras
from pipeline.live.camera_process import CameraSpec
from pipeline.live.worker import CameraPlan

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_LONG = 4


def cameras_of(arguments: Sequence[str], *, environment: MutableMapping[str, str] = os.environ) -> list[Camera]:
    """Gives the cameras of CAMERA arguments: addresses, named camera_1, camera_2, ..., or YAML files that name them.

    Variables of the environment that hold passwords of theirs are gone from it afterwards: every process that is
    started later would inherit them. Those of a file are named there; into an argument the shell has put them.
    A file that is not there is refused: it is over for good, while a camera or a device may come.
    """
    from operators.media.camera_connection import camera_kind

    cameras: list[Camera] = []
    secrets: set[str] = set()
    for argument in arguments:
        path = Path(argument)
        if "://" not in argument and path.suffix.lower() in (".yaml", ".yml"):
            named = load_cameras(path, environment=environment)
            cameras += named
            variables = set(_VARIABLE.findall(path.read_text())) & set(environment)
            secrets |= {v for v in variables if any(_is_hidden(environment[v], camera.url) for camera in named)}
        else:
            cameras.append(Camera(name=f"camera_{len(cameras) + 1}", url=argument))
            secrets |= {v for v, value in environment.items() if _is_password(value, argument)}
    names = [camera.name for camera in cameras]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"camera {twice[0]} is named twice")
    for camera in cameras:
        try:
            camera_kind(camera.url)
        except SourceError as exc:
            raise ConfigError(f"camera {camera.name}: {exc}") from None
        if is_file(camera) and not os.path.exists(_path_of(camera.url)):
            # It may be an address with a password and without its scheme, which nothing else takes for one.
            shown = without_password(f"rtsp://{camera.url}").removeprefix("rtsp://")
            hint = "" if "://" in camera.url else f"; an address begins with its scheme: rtsp://{shown}"
            raise ConfigError(f"camera {camera.name}: there is no file {shown}{hint}")
    for variable in secrets:
        del environment[variable]
    # A file's path is meant from where the command was given; its reader may run elsewhere.
    return [c if "://" in c.url else c.model_copy(update={"url": os.path.abspath(c.url)}) for c in cameras]


def is_file(camera: Camera) -> bool:
    from operators.media.camera_connection import CameraKind, camera_kind

    return camera_kind(camera.url) is CameraKind.FILE


def _path_of(url: str) -> str:
    return url.removeprefix("file://")


def _is_hidden(value: str, address: str) -> bool:
    return value in address and value not in without_password(address)


def _is_password(value: str, address: str) -> bool:
    """Short values may be anywhere in a password by chance, OMP_NUM_THREADS=1 say: they have to be one."""
    is_whole = re.search(rf"[:=]{re.escape(value)}(?:[@&]|$)", address) is not None
    return _is_hidden(value, address) and (is_whole or len(value) >= _LONG)


def camera_plans(config: Config, cameras: Sequence[Camera]) -> list[CameraPlan]:
    """Plans each camera by its own settings or the run's. Frames are taken in turn, not all at one moment."""
    live, view = config.live, config.view
    plans = []
    for i, camera in enumerate(cameras):
        spec = CameraSpec(
            name=camera.name,
            uri=camera.url,
            transport=camera.transport or live.transport,
            analysis_fps=camera.analysis_fps or live.analysis_fps,
            resize_px=view.resize_px,
            crop_px=view.crop_px,
            square_pixels=view.square_pixels,
            interpolation=view.interpolation,
            open_timeout_s=live.open_timeout_s,
            read_timeout_s=live.watchdog_s,
            gap_s=live.gap_s,
            phase=i / len(cameras) if len(cameras) > 1 else None,
            max_waiting=live.max_waiting_frames,
        )
        plan = CameraPlan(
            spec=spec, window_s=camera.window_s or live.window_s, stride_s=camera.stride_s or live.stride_s
        )
        if plan.stride_s * spec.analysis_fps < 1:
            raise ConfigError(
                f"camera {camera.name}: stride_s={plan.stride_s:g} is shorter than the time between two analysed "
                f"frames at analysis_fps={spec.analysis_fps:g}; give at least {1 / spec.analysis_fps:g}"
            )
        plans.append(plan)
    return plans
