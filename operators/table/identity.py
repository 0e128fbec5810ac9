"""A table's identity: which model, config and version of the schema its labels were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from operators.errors import RefusedError
from operators.passwords import without_password
from operators.table.schema import RETRY, SCHEMA_VERSION, ids_of, part_paths


def read_identity(out: Path) -> dict[str, Any] | None:
    """Returns what OUT/run/identity.json holds, or None.

    It is read without the lock: a run that is about to write asks the sink instead, which has the lock.
    """
    try:
        found = json.loads((out / "run" / "identity.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def table_identity(out: Path) -> dict[str, Any] | None:
    """Returns what the labels in OUT were made with; None where there are none. It is read without the lock."""
    there = [*(out / "labels").glob(f"{RETRY}*"), *part_paths(out / "labels")]
    if not there:
        return None
    found = read_identity(out)
    return found if found is not None and all(identity_ids(found)) else ids_of(there[0])


def identity_ids(identity: Mapping[str, Any]) -> tuple[str, str]:
    """Returns model_id and config_id, each empty where the identity lacks it."""
    return str(identity.get("model_id") or ""), str(identity.get("config_id") or "")


def with_schema(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the identity as the table keeps it: with the version of its schema, and without passwords."""
    return _without_passwords({**identity, "schema": SCHEMA_VERSION})


def check_identity(out: Path, found: Mapping[str, Any] | None, new: Mapping[str, Any]) -> None:
    """Refuses to go on with labels that were made with another model, config or version of the table than `new`."""
    new = with_schema(new)
    if found is None:
        return
    version = found.get("schema", 1)
    if version == new["schema"] and identity_ids(found) == identity_ids(new):
        return
    why = f"were made with other settings: {_differences(found, new)}"
    if version != new["schema"]:
        why = (
            f"were made by another version of this program: their table has schema {version} and this version writes"
            f" {new['schema']}, so what they depend on cannot be compared. They can still be read and evaluated"
        )
    raise RefusedError(
        f"{out}: the labels there {why}. Write to another folder with -o, or begin a new table with --no-resume (the"
        f" old one is moved to {out / 'previous'})"
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns the settings that differ, as `name old -> new`; the ids where no setting does."""
    found = []
    before, after = old.get("config") or {}, new.get("config") or {}
    for name in sorted(before.keys() | after.keys()) if before else ():
        if before.get(name) != after.get(name):
            found.append(f"{name} {before.get(name)} -> {after.get(name)}")
    for name in ("model_id", "config_id"):
        if old.get(name) != new.get(name) and not (name == "config_id" and found):
            found.append(f"{name} {old.get(name)} -> {new.get(name)}")
    return ", ".join(found)


def _without_passwords(value: Any) -> Any:
    match value:
        case str():
            return without_password(value)
        case Mapping():
            return {str(key): _without_passwords(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_passwords(item) for item in value]
        case None | bool() | int() | float():
            return value
        case _:
            return str(value)
