"""The configuration reference, made from the schema: `python -m pipeline.reference > docs/configuration.md`."""

from __future__ import annotations

import types
import typing
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from pipeline.config import Config, Section, presets

_HEAD = """# Configuration

Made from the schema in pipeline/config.py by `python -m pipeline.reference`; a test compares the two.

Settings come from flags, then `--set section.name=value`, then the `--config` file, then the checkpoint's own header,
then the defaults below. A setting that nobody gave is taken from the checkpoint where that knows better (frame size,
patch size, number of frames). The resolved config of a run is written to `OUT/run/config.yaml`.

Presets (`--config NAME`): {presets}.
"""


def reference() -> str:
    parts = [_HEAD.format(presets=", ".join(f"`{name}`" for name in presets()))]
    for name, field in Config.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, Section)):
            parts.append(f"## {name}\n\n{field.description}\n")
            continue
        rows = [f"## {name}\n"]
        own = (section.__doc__ or "").strip()
        if own and own != (Section.__doc__ or "").strip():
            rows.append(f"{own}\n")
        rows.append("| setting | values | default | |\n|---|---|---|---|")
        for key, setting in section.model_fields.items():
            description = setting.description or ""
            rows.append(f"| `{name}.{key}` | {_values(setting)} | `{_default(setting)}` | {description} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _default(setting: FieldInfo) -> str:
    value = setting.get_default(call_default_factory=True)
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
    if origin is list:
        return f"list of {_kind(args[0])}"
    return {int: "whole number", float: "number", bool: "true / false", str: "text"}.get(annotation, str(annotation))


if __name__ == "__main__":
    print(reference(), end="")
