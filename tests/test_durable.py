"""A durable file is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from operators.durable import replaced_durably, write_durably


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_durably(path, b"old")
    write_durably(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_durably(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_durably(path, b"old")
    with pytest.raises(KeyboardInterrupt), replaced_durably(path) as aside:
        aside.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_unfinished_part_is_no_part_and_a_writer_that_goes_by_the_ending_gets_it(tmp_path: Path) -> None:
    with replaced_durably(tmp_path / "a.parquet") as aside:
        aside.touch()
        assert not list(tmp_path.glob("*.parquet"))
    with replaced_durably(tmp_path / "a.png", suffix=".png") as aside:
        aside.touch()
        assert aside.suffix == ".png" and aside.name.startswith("_tmp-")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "a.png"]
