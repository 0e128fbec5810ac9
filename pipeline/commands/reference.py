"""The configuration reference, made from the schema.

`python -m pipeline.commands.reference > docs/configuration.md` writes it.
"""

from __future__ import annotations

import types
import typing
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from pipeline.config import Config, presets
from pipeline.config.sections import Section, leaves
from pipeline.config.training_motion import MotionSettings
from pipeline.config.training_presets import ALL_PRESETS

_HEAD = """# Configuration

This page is generated from the schema in pipeline/config/settings.py by `python -m pipeline.commands.reference`. A test
fails where the two differ.

A setting can be given in several places. The first of these that has it counts:

1. a flag of the command, such as `--checkpoint` or `--executor`
2. `--set section.name=value`
3. the `--config` file or preset
4. the checkpoint's own header, which has, for example, the frame size, the patch size and the number of frames
5. the default in the tables below; `none` means that the setting is not given

A config file holds sections with their settings: `focus: {{patch_px: 96}}` is the same as `--set focus.patch_px=96`.
Every run writes its resolved config to `OUT/run/config.yaml`.

`--config NAME` takes one of these presets: {presets}.
"""


_TRAIN = """These settings belong to `train`. They come from pipeline/config/training.py and training_motion.py, and the
columns have the values of each preset. `train.preset` decides which family is trained, and with it which settings there
are; - means that the family of this preset has no such setting.

`glance`, `focus`, `warmup`, `policy`, `finetune` and `skip` are the stages 0a, 0b, 1, 2, 3 and skip. `full` is the
comparison that is trained on whole views. A rate or a share that a stage does not use has no effect there. A setting
that several stages have is described at the first of them."""


def reference() -> str:
    parts = [_HEAD.format(presets=", ".join(f"`{name}`" for name in presets()))]
    for name, field in Config.model_fields.items():
        section = field.annotation
        if name == "train":
            parts.append(_training())
            continue
        if not (isinstance(section, type) and issubclass(section, Section)):
            parts.append(f"## {name}\n\n{field.description}\n")
            continue
        rows = [f"## {name}\n"]
        own = (section.__doc__ or "").strip()
        if own and own != (Section.__doc__ or "").strip():
            rows.append(f"{own}\n")
        rows.append("| setting | values | default | meaning |\n|---|---|---|---|")
        for key, setting in section.model_fields.items():
            description = setting.description or ""
            rows.append(f"| `{name}.{key}` | {_values(setting)} | `{_default(setting)}` | {description} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _training() -> str:
    """One table: the settings of the training stages, with what each preset has."""
    made = {name: preset() for name, preset in ALL_PRESETS.items()}
    head = ["setting", "values", *(f"`{name}`" for name in made), "meaning"]
    rows = [f"## train\n\n{_TRAIN}\n", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    described: set[str] = set()
    for path, setting in leaves(MotionSettings).items():
        values = [_value_at(settings, path) for settings in made.values()]
        text = " ".join((setting.description or "").split())
        # The stages' groups are of few kinds: each kind's settings are described once.
        shown = "" if text in described else text
        described.add(text)
        rows.append("| " + " | ".join([f"`train.{path}`", _values(setting), *values, shown]) + " |")
    return "\n".join(rows) + "\n"


def _value_at(settings: Any, path: str) -> str:
    for name in path.split("."):
        if not hasattr(settings, name):
            return "-"
        settings = getattr(settings, name)
    return f"`{_shown(settings)}`"


def _default(setting: FieldInfo) -> str:
    return _shown(setting.get_default(call_default_factory=True))


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _values(setting: FieldInfo) -> str:
    bounds = []
    for limit in setting.metadata:
        match limit:
            case Ge():
                bounds.append(f">= {limit.ge}")
            case Gt():
                bounds.append(f"> {limit.gt}")
            case Le():
                bounds.append(f"<= {limit.le}")
            case Lt():
                bounds.append(f"< {limit.lt}")
    return " ".join([_kind(setting.annotation), *bounds])


def _kind(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " / ".join(f"`{value}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        return _kind(next(arg for arg in args if arg is not type(None)))
    if origin in (list, tuple):
        return f"list of {_kind(args[0])}"
    return {int: "whole number", float: "number", bool: "true / false", str: "text"}.get(annotation, str(annotation))


if __name__ == "__main__":
    print(reference(), end="")
