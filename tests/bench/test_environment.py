"""What is said of the machine that figures were measured on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pipeline.bench.environment import environment


def test_where_git_does_not_answer_nobody_knows_of_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    where = environment()
    assert where["git_commit"] is None and where["git_dirty"] is None


def test_the_environment_names_the_machine_and_what_ran_on_it() -> None:
    where = environment()
    assert where["cores"] >= 1 and where["torch"].startswith("2.") and where["ffmpeg"]
    assert {"cpu", "cpu_flags", "threads", "git_commit", "load_before"} <= set(where)
    assert where["threads"]["torch"] == torch.get_num_threads()


def test_with_a_gpu_the_environment_names_what_drives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "get_device_name", lambda: "H0")
    monkeypatch.setattr(cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=80 << 30))
    where = environment()
    assert (where["gpu"], where["gpu_memory_gb"]) == ("H0", 80.0)
    assert {"gpu_driver", "cuda", "cudnn"} <= set(where)
