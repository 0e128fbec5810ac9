"""Every setting, where it may come from, and how wrong ones are refused."""

from pipeline.config.cameras import Camera, load_cameras
from pipeline.config.files import CONFIGS, check_weights, load, presets, presets_with_weights, read_yaml
from pipeline.config.settings import Config, Decode, Skip, known_settings, parse

__all__ = [
    "CONFIGS",
    "Camera",
    "Config",
    "Decode",
    "Skip",
    "check_weights",
    "known_settings",
    "load",
    "load_cameras",
    "parse",
    "presets",
    "presets_with_weights",
    "read_yaml",
]
