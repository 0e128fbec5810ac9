"""Error codes: every one is documented, and in tables and logs they are plain strings."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pyarrow as pa

from operators.errors import ErrorCode, SourceError

ROOT = Path(__file__).resolve().parent.parent


def test_the_documentation_names_every_error_code_and_no_other() -> None:
    text = (ROOT / "docs" / "errors.md").read_text().split("# Exit codes")[0]
    named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(named) == sorted(ErrorCode)


def test_codes_are_plain_strings_wherever_they_are_written() -> None:
    values = pa.array([ErrorCode.TOO_LARGE, None], pa.string()).to_pylist()
    assert values == ["too_large", None] and type(values[0]) is str
    assert json.dumps({"code": ErrorCode.NOT_FINITE}) == '{"code": "not_finite"}'
    assert f"{ErrorCode.CORRUPT}" == str(ErrorCode.CORRUPT) == "corrupt"


def test_a_code_is_the_same_code_in_another_process() -> None:
    assert pickle.loads(pickle.dumps(SourceError("a.mp4 is empty", ErrorCode.EMPTY))).code is ErrorCode.EMPTY
    assert SourceError("a bug").code is ErrorCode.INTERNAL
