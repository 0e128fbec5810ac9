"""The results page and how its figures are measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.bench import page
from pipeline.bench.figures import measured
from tests.bench.samples import report


def test_only_the_blocks_of_the_page_are_written_anew() -> None:
    text = (
        "# Words\n<!-- figures: decode -->\nold\n<!-- end -->\nmore words\n<!-- figures: live -->\nkept\n<!-- end -->\n"
    )
    found = page.filled_in(text, {"decode": report(measured("decode.exact_s", [2.0], unit="s"))})
    assert page.block_names(text) == ["decode", "live"]
    assert found.startswith("# Words\n<!-- figures: decode -->\n> fast enough\n")
    assert "old" not in found and "| decode.exact_s | 2 s |" in found
    assert found.endswith("more words\n<!-- figures: live -->\nkept\n<!-- end -->\n")
    assert page.filled_in(found, {}) == found


def commands_of(names: list[str], monkeypatch: pytest.MonkeyPatch, *, has_gpu: bool) -> list[list[str]]:
    """What `--measure` would run, from `bench` on, with the record's name alone."""
    ran: list[list[str]] = []

    def run(command: list[str], **form: Any) -> SimpleNamespace:
        ran.append([Path(part).name if part.endswith(".json") else part for part in command[2:]])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(page.subprocess, "run", run)
    monkeypatch.setattr(page.torch.cuda, "is_available", lambda: has_gpu)
    assert page.measure(names) == []
    return ran


def test_the_figures_of_a_gpu_do_not_take_the_place_of_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands_of(["compute"], monkeypatch, has_gpu=True)
    assert command == ["bench", "compute", "--json", "compute-gpu.json"]
    (command,) = commands_of(["compute"], monkeypatch, has_gpu=False)
    assert command == ["bench", "compute", "--json", "compute.json"]


def test_the_sweep_is_an_option_of_bench_archive_and_a_record_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands_of(["archive_sweep"], monkeypatch, has_gpu=True)
    assert command == ["bench", "archive", "--sweep", "--json", "archive_sweep.json"]
    names = page.block_names(page.PAGE.read_text())
    assert {"archive_sweep", "compute-gpu", *page.WHAT} <= set(names)


def test_the_page_says_how_long_a_bench_took() -> None:
    found = report(measured("a", [2.0], unit="s"))
    assert "took" not in page.as_markdown(found, name="decode")
    assert "; took 7.5 min. [" in page.as_markdown(replace(found, settings={"lasted_s": 450.0}), name="decode")
