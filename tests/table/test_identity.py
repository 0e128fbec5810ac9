"""Labels of another model, config or version of the table are never mixed with new ones."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from operators.errors import SinkError
from operators.table.identity import read_identity
from operators.table.output import inspect_table
from operators.table.schema import SCHEMA_VERSION, part_paths, summarize
from tests.table.table_rows import IDENTITY, clip, failed, rows, sink, videos


def test_labels_of_another_config_are_refused_with_the_option_that_decides(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0)])
    other = {"model_id": "m1", "config_id": "c2", "config": {"focus.patch_px": 128, "compute.seed": 0}}
    with pytest.raises(SinkError, match=r"focus.patch_px 96 -> 128\. .*-o.*--no-resume"):
        sink(tmp_path, "run2", identity=other).__enter__()
    assert videos(tmp_path) == {"v0": None}
    with pytest.raises(SinkError, match=r"model_id m1 -> m2"):
        sink(tmp_path, "run2", identity=IDENTITY | {"model_id": "m2"}).__enter__()


def test_labels_whose_identity_file_is_lost_are_still_not_mixed(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0)])
    (tmp_path / "run/identity.json").unlink()
    with pytest.raises(SinkError, match="config_id c1 -> c2"):
        sink(tmp_path, "run2", identity=IDENTITY | {"config_id": "c2"}).__enter__()
    with sink(tmp_path, "run2"):
        assert read_identity(tmp_path) == IDENTITY | {"run_id": "run2", "schema": SCHEMA_VERSION}


def _begun_by_the_first_version(out: Path) -> None:
    """Makes a table as it was before there were versions: neither its parts nor its identity has one."""
    with sink(out) as table:
        table.write(0, [clip(0)])
    (part,) = part_paths(out / "labels")
    pq.write_table(pq.read_table(part).replace_schema_metadata(None), part)
    identity = json.loads((out / "run/identity.json").read_text())
    del identity["schema"]
    (out / "run/identity.json").write_text(json.dumps(identity))


@pytest.mark.parametrize("has_identity", [True, False])
def test_a_table_of_an_earlier_version_is_refused_with_the_way_out_and_still_read(
    tmp_path: Path, has_identity: bool
) -> None:
    _begun_by_the_first_version(tmp_path)
    if not has_identity:
        (tmp_path / "run/identity.json").unlink()
    with pytest.raises(SinkError, match=r"schema 1 and this version writes 2.*-o.*--no-resume"):
        sink(tmp_path, "run2").__enter__()
    with pytest.raises(SinkError, match="schema 1"):
        inspect_table(tmp_path).check(IDENTITY)
    assert videos(tmp_path) == {"v0": None} and summarize(tmp_path / "labels").num_clips == 1
    with sink(tmp_path, "run2", resume=False) as fresh:
        fresh.write(0, [clip(1)])
    assert videos(tmp_path) == {"v1": None}


def test_a_table_without_labels_may_change_its_config(tmp_path: Path) -> None:
    with sink(tmp_path):
        pass
    with sink(tmp_path, "run2", identity=IDENTITY | {"config_id": "c2"}) as table:
        table.write(0, [clip(0)])
    assert rows(tmp_path)[0]["config_id"] == "c2"


def test_who_settles_the_config_by_what_is_there_sees_it_under_the_lock(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0)])
    with sink(tmp_path, "run2", identity=None) as later:
        assert later.found_identity == IDENTITY | {"run_id": "run1", "schema": SCHEMA_VERSION}
        later.begin(IDENTITY)
        later.write(0, [clip(1)])
    assert videos(tmp_path) == {"v0": None, "v1": None}


def test_no_resume_begins_a_fresh_table_and_loses_nothing(tmp_path: Path) -> None:
    with sink(tmp_path) as table:
        table.write(0, [clip(0), failed(1)])
    other = IDENTITY | {"config_id": "c2"}
    with sink(tmp_path, "run2", identity=other, resume=False) as fresh:
        assert fresh.found_identity is None
        assert len(fresh.done()) == 0
        fresh.write(0, [clip(0)])
    with sink(tmp_path, "run2", identity=other, resume=False) as restarted:
        assert len(restarted.done()) == 1, "a sink that died is not another run"
    assert videos(tmp_path) == {"v0": None}
    assert videos(tmp_path / "previous/run1") == {"v0": None, "v1": "corrupt"}
    assert json.loads((tmp_path / "previous/run1/identity.json").read_text())["config_id"] == "c1"
