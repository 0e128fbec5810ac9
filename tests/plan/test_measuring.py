"""How networks are timed, and which way of running them is the best that is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.plan.measuring import NetworkTrial, best_size, measure
from pipeline.plan.network_choice import Choice, by_rule
from pipeline.plan.tuning import choose
from tests.support.timed_trials import SMALL, TimedTrial


class LaunchesOnly(TimedTrial):
    """A pass takes the same time however many images it has."""

    def glance_s(self, precision: str, compile: str, rows: int) -> float:
        return 1 / rows


def measured(device: str, trial: type[TimedTrial]) -> Choice:
    options = {"threads": 1, "precision": "bf16", "compile": "auto", "limit_s": 60.0}
    return measure(SMALL, by_rule(SMALL, device=device), device=device, make_trial=trial, **options)


def test_a_gpu_gets_batches_of_its_own_size():
    # 44 patches of ResNet-50 keep a CPU busy for a second, and a GPU hardly at all.
    for device, glance_batch, focus_batch in (("cpu", 64, 32), ("cuda", 256, 256)):
        choice = measured(device, LaunchesOnly)
        assert (choice.glance_batch, choice.focus_batch) == (glance_batch, focus_batch)


@pytest.mark.parametrize(("device", "times"), [("cpu", 0), ("cuda", 1)])
def test_what_measuring_took_of_a_gpu_is_there_for_the_workers(monkeypatch, device, times):
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    measured(device, TimedTrial)
    assert len(emptied) == times


def test_a_gpu_is_probed_with_more_than_its_launches(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    made: list[int] = []
    trial = NetworkTrial(SMALL, "cuda", lambda which, precision, compile, rows: lambda: made.append(rows))
    trial.clip_s("bf16", "on")
    assert list(dict.fromkeys(made)) == [64, 128]


def test_a_gpu_is_woken_with_whole_clips(monkeypatch):
    passes: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for segments in (0, 4):
        work = replace(SMALL, glance_segments=segments)
        trial = NetworkTrial(
            work, "cuda", lambda which, precision, compile, rows: lambda: passes.append((which, rows))
        )
        trial.wake()
    assert passes == [("glance", 1), ("focus", 1), ("glance", 4), ("focus", 1)]


def test_threads_are_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        choose(SMALL, device="cpu", threads=2, limit_s=0.2)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({4: 1.0, 8: 0.9, 16: 0.8, 32: 0.7, 64: 0.6}, 64),
        # A hundredth less is not worth it.
        ({4: 1.0, 8: 0.9, 16: 0.895, 32: 0.89}, 8),
        # Two in a row that are no better: the third is not tried.
        ({4: 1.0, 8: 1.0, 16: 1.1, 32: 0.1}, 4),
        ({4: 1.0, 8: 0.9}, 8),
        ({4: 1.0}, 4),
        # The other way round large ones are preferred.
        ({32: 1.0, 16: 0.99, 8: 1.0}, 32),
        ({32: 1.0, 16: 0.9, 8: 0.95, 4: 1.0}, 16),
    ],
)
def test_the_batch_that_is_preferred_stays_unless_another_is_faster_by_enough(seconds, best):
    assert best_size(list(seconds), seconds.__getitem__, lambda: True) == best


def test_where_time_is_up_before_the_best_size_is_known_the_rule_says_it():
    assert best_size((4, 8), {4: 1.0}.__getitem__, lambda: False) is None
