"""The cameras file: names and addresses of cameras, and what each does otherwise than the settings say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, ValidationError

from operators.errors import ConfigError
from operators.passwords import without_password
from pipeline.config.files import read_yaml
from pipeline.config.sections import Section

_CAMERA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Camera(Section):
    """A camera of the cameras file."""

    model_config = ConfigDict(hide_input_in_errors=True)

    name: str
    url: str = Field(repr=False)
    transport: Literal["tcp", "udp", "auto"] | None = None
    analysis_fps: float | None = Field(None, gt=0, le=240)
    window_s: float | None = Field(None, gt=0)
    stride_s: float | None = Field(None, gt=0)


def load_cameras(path: Path, *, environment: Mapping[str, str] = os.environ) -> list[Camera]:
    """The cameras of a YAML file; `${VAR}` in a URL comes from the environment."""
    tree = read_yaml(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("cameras"), dict) or not tree["cameras"]:
        raise ConfigError(f"{path}: expected `cameras:` with one entry per camera, each with a `url`")
    unknown = sorted(map(str, set(tree) - {"cameras"}))
    if unknown:
        raise ConfigError(f"{path}: unknown key {without_password(unknown[0])}; only `cameras` stands at the top")
    cameras = []
    for name, entry in tree["cameras"].items():
        if not _CAMERA_NAME.fullmatch(str(name)):
            shown = without_password(str(name))
            raise ConfigError(f"{path}: camera name {shown!r} must be letters, digits, _ and -, not first a digit")
        if not isinstance(entry, dict) or "url" not in entry:
            raise ConfigError(f"{path}: camera {name} needs a `url`")
        try:
            url = re.sub(r"\$\{(\w+)\}", lambda m: environment[m[1]], str(entry["url"]))
        except KeyError as exc:
            raise ConfigError(f"{path}: camera {name}: {exc.args[0]} is not set in the environment") from exc
        try:
            cameras.append(Camera.model_validate({**entry, "name": name, "url": url}))
        except ValidationError as exc:
            first = exc.errors()[0]
            key = without_password(".".join(str(part) for part in first["loc"]))
            # pydantic's own text has the value that was given.
            raise ConfigError(f"{path}: camera {name}: {key}: {first['msg']}") from None
    return cameras
