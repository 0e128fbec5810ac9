"""Groups of settings: what all of them have in common, and how wrong values are refused."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from operators.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True)


Part = TypeVar("Part", bound=Section)


def validated(kind: type[Part], tree: Mapping[str, Any], prefix: str = "") -> Part:
    """A section from a tree of values. What is wrong is refused by its dotted name, before which `prefix` stands."""
    try:
        return kind.model_validate(tree)
    except ValidationError as exc:
        first = exc.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        names = [f"{prefix}{known}" for known in leaves(kind)]
        raise ConfigError(_what_is_wrong(first, f"{prefix}{name}" if name else "", names)) from exc


def _what_is_wrong(error: ErrorDetails, name: str, known: Sequence[str]) -> str:
    """Makes a message. `name`: the dotted name of what is wrong; empty where settings do not go together."""
    message = error["msg"].removeprefix("Value error, ")
    if not name:
        return message
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        return f"unknown setting {name}{f'; did you mean {near[0]}?' if near else ''}"
    if error["type"] in ("model_type", "dataclass_type"):
        part = next((other for other in known if other.startswith(f"{name}.")), name)
        return f"{name} is a group of settings (got {error['input']!r}): set one of its parts, e.g. {part}"
    return f"{name}: {message}{'' if isinstance(error['input'], Mapping) else ' (got ' + repr(error['input']) + ')'}"


def leaves(kind: type) -> dict[str, FieldInfo]:
    """The settings in a section, and in the groups within it by their dotted names. A group is a section of its own or
    a frozen record."""
    found: dict[str, FieldInfo] = {}
    for name, field in (kind.model_fields if issubclass(kind, BaseModel) else _record_fields(kind)).items():
        part = field.annotation
        if isinstance(part, type) and (issubclass(part, BaseModel) or dataclasses.is_dataclass(part)):
            found |= {f"{name}.{key}": value for key, value in leaves(part).items()}
        else:
            found[name] = field
    return found


def _record_fields(kind: type) -> dict[str, FieldInfo]:
    """The settings in a frozen record, each described by what stands under its field."""
    kinds = typing.get_type_hints(kind)
    texts = TypeAdapter(kind).json_schema()["properties"]
    return {
        name: FieldInfo(annotation=kinds[name], description=text.get("description")) for name, text in texts.items()
    }
