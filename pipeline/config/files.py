"""The only reader of YAML: config files, presets, and `key=value` settings become a config.

Precedence: flags, then --set, then the file, then the checkpoint's own header, then the defaults.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from operators.errors import ConfigError
from operators.passwords import without_password
from pipeline.config.settings import Config, parse

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
"""The folder of the presets, in a checkout and in an installed program."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a mapping with equal keys: PyYAML would keep the last value in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self.construct_object(key), key.start_mark.line + 1
            if name in first:
                problem = f"the key {key.value}, which line {first[name]} has, is given again"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            first[name] = line
        return node


def read_yaml(path: Path) -> Any:
    try:
        text = path.read_text()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not YAML: {exc}") from None
    return _parsed(text, str(path))


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as exc:
        # Not its whole text, nor as the cause: it quotes the line, which may hold an address with its password.
        mark = exc.problem_mark
        place = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{where}: not YAML: {without_password(exc.problem or '')}{place}") from None
    except yaml.YAMLError as exc:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(exc).split())}") from None


def presets() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def presets_with_weights() -> list[str]:
    """The presets that run as they are: the weights that they name are there."""
    found = [(name, load(name).model.checkpoint) for name in presets() if not name.startswith("train_")]
    return [name for name, checkpoint in found if checkpoint is not None and os.path.isfile(checkpoint)]


def check_weights(config: Config) -> None:
    """Refuses a config that leads to no weights, and says what to add."""
    if config.model.checkpoint is None and not config.model.untrained:
        here = " or ".join(f"--config {name}" for name in presets_with_weights())
        raise ConfigError(
            f"no weights are given for the {config.model.family} model: add --checkpoint FILE"
            + (f", or take a preset that comes with weights: {here}" if here else "")
        )


def find_file(name: str) -> Path:
    """A preset by its bare name, or a config file by its path, which has a suffix or a slash."""
    is_bare = not Path(name).suffix and "/" not in name
    path = CONFIGS / f"{name}.yaml" if is_bare else Path(name)
    if path.is_file():
        return path
    if is_bare and Path(name).is_file():
        raise ConfigError(f"no preset is named {name}; if the file here is meant, write ./{name}")
    near = difflib.get_close_matches(name, presets(), n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; presets are {', '.join(presets())}"
    raise ConfigError(f"no config file and no preset named {name}{hint}")


def load(
    file: str | None = None, *, settings: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """The config of a command: file, then `key.sub=value` settings, then flags by dotted names."""
    flat: dict[str, Any] = {}
    if file is not None:
        path = find_file(file)
        tree = read_yaml(path) or {}
        if not isinstance(tree, dict) or not all(isinstance(v, dict) for v in tree.values()):
            raise ConfigError(f"{path}: a config file holds sections, each with its settings")
        for section, values in tree.items():
            flat.update({f"{section}.{key}": value for key, value in values.items()})
        if isinstance(flat.get("model.checkpoint"), str) and path.parent == CONFIGS:
            flat["model.checkpoint"] = str(CONFIGS.parent / flat["model.checkpoint"])
    for setting in settings:
        name, sep, text = setting.partition("=")
        if not sep:
            raise ConfigError(f"--set {setting}: write it as section.name=value")
        flat[name.strip()] = _parsed(text, f"--set {name.strip()}") if text.strip() else None
    flat.update(flags or {})
    return parse(flat)
