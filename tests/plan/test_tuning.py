"""Precision, compilation and batch sizes: chosen by measuring once, remembered, and never against what was asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from operators.errors import ConfigError
from operators.networks.compiled import can_compile
from pipeline.config import load
from pipeline.plan import tuning
from pipeline.plan.tuning import Choice, Work, best_size, by_rule, cache_folder, choose
from pipeline.run.factories import prepare

SMALL = Work(glance="small_glance", glance_px=32, glances=4, focus="small_focus", patch_px=24, patches=4)
NO_KERNELS = "fp16"

needs_onednn = pytest.mark.skipif(not can_compile("cpu", torch.float32), reason="this torch has no oneDNN")


def quick(work: Work = SMALL, **options: object) -> Choice:
    return choose(work, **{"device": "cpu", "threads": 1, "limit_s": 0.2, **options})  # type: ignore[arg-type]


class Timed:
    """A bench in no time: images in a pass of n rows take 1 + 1/n units each, compiled ones half of it."""

    glance_macs, focus_macs = 0.3e9, 1.3e9
    made: ClassVar[list[str]] = []

    def __init__(self, work: Work, device: str) -> None:
        self.made.append(device)
        self.rows: list[int] = []

    def wake(self) -> None:
        pass

    def glance_s(self, precision: str, compile: str, rows: int) -> float:
        return (1 + 1 / rows) / (2 if compile == "on" else 1)

    focus_s = glance_s

    def clip_s(self, precision: str, compile: str) -> float:
        return self.glance_s(precision, compile, 4)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> type[Timed]:
    monkeypatch.setattr(Timed, "made", [])
    monkeypatch.setattr(tuning, "_Bench", Timed)
    return Timed


def at_once(work: Work = SMALL, **options: object) -> Choice:
    return quick(work, **{"limit_s": 60.0, **options})


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "tuning").iterdir())


def test_nothing_that_was_chosen_is_still_auto():
    choice = quick()
    assert choice.precision in ("fp32", "bf16") and choice.compile in ("on", "off")
    assert choice.glance_batch >= 1 and choice.focus_batch >= 1 and choice.how in ("measured", "cut short")


def test_what_was_asked_for_is_kept():
    choice = quick(precision="fp32", compile="off")
    assert (choice.precision, choice.compile) == ("fp32", "off")
    assert quick(precision=NO_KERNELS).compile == "off"


@needs_onednn
def test_the_way_that_was_chosen_and_the_others_are_told_in_one_line():
    line = replace(
        by_rule(SMALL, device="cpu", precision="fp32"),
        glance_batch=8,
        focus_batch=32,
        how="measured",
        seconds={"fp32 compiled": 0.25, "bf16 compiled": 0.5},
    ).line()
    assert line == (
        "networks in fp32 compiled, 8 views and 32 patches at a time (measured: 0.25 s a clip; bf16 compiled 0.5 s)"
    )


def test_a_second_run_remembers_and_does_not_measure(tmp_path, monkeypatch, timed):
    first = at_once(cache=tmp_path)
    assert first.how == "measured"

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(tuning, "_measure", never)
    second = quick(cache=tmp_path)
    assert second == replace(first, how="remembered")


def test_what_time_cut_short_is_measured_once_more_with_more_of_it(tmp_path, timed, monkeypatch):
    limits: list[float] = []
    measure = tuning._measure

    def watched(*args: object, limit_s: float, **options: object) -> Choice:
        limits.append(limit_s)
        return measure(*args, limit_s=limit_s, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "_measure", watched)
    first = quick(cache=tmp_path, limit_s=-1.0)
    assert first.how == "cut short" and "(cut short" in first.line()
    rule = by_rule(SMALL, device="cpu")
    assert (first.glance_batch, first.focus_batch) == (rule.glance_batch, rule.focus_batch)
    second = quick(cache=tmp_path, limit_s=10.0)
    assert second.how == "measured" and second.focus_batch > 4
    assert quick(cache=tmp_path).how == "remembered" and limits == [-1.0, 40.0]


def test_a_machine_that_is_always_too_slow_measures_twice_and_not_for_ever(tmp_path, timed):
    assert quick(cache=tmp_path, limit_s=-1.0).how == "cut short"
    assert quick(cache=tmp_path, limit_s=-1.0).how == "measured"
    assert quick(cache=tmp_path, limit_s=-1.0).how == "remembered"


def test_time_runs_from_when_the_device_is_awake(timed, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tuning.time, "monotonic", lambda: now[0])

    def wake(bench: Timed) -> None:
        now[0] += 100.0

    monkeypatch.setattr(timed, "wake", wake)
    assert quick(limit_s=1.0).how == "measured"


def test_a_gpu_gets_batches_of_its_own_size(timed, monkeypatch):
    def launches_only(bench: Timed, precision: str, compile: str, rows: int) -> float:
        return 1 / rows

    monkeypatch.setattr(timed, "glance_s", launches_only)
    monkeypatch.setattr(timed, "focus_s", launches_only)
    # 44 patches of ResNet-50 keep a CPU busy for a second, and a GPU hardly at all.
    options = {"threads": 1, "precision": "bf16", "compile": "auto", "limit_s": 60.0}
    for device, glance_batch, focus_batch in (("cpu", 64, 32), ("cuda", 256, 256)):
        choice = tuning._measure(SMALL, by_rule(SMALL, device=device), device=device, **options)
        assert (choice.glance_batch, choice.focus_batch) == (glance_batch, focus_batch)


@pytest.mark.parametrize(("device", "times"), [("cpu", 0), ("cuda", 1)])
def test_what_measuring_took_of_a_gpu_is_there_for_the_workers(timed, monkeypatch, device, times):
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    options = {"threads": 1, "precision": "bf16", "compile": "auto", "limit_s": 60.0}
    tuning._measure(SMALL, by_rule(SMALL, device=device), device=device, **options)
    assert len(emptied) == times


def test_a_gpu_is_probed_with_more_than_its_launches():
    rows: list[int] = []
    bench = object.__new__(tuning._Bench)
    bench._device, bench._work, bench.glance_macs, bench.focus_macs = "cuda", SMALL, 0.3e9, 1.3e9
    bench._time = lambda which, precision, compile, n: rows.append(n) or 1.0
    bench.clip_s("bf16", "on")
    assert rows == [64, 128]


def test_a_gpu_is_woken_with_whole_clips(monkeypatch):
    passes: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    bench = object.__new__(tuning._Bench)
    bench._make = lambda which, precision, compile, rows: lambda: passes.append((which, rows))
    for segments in (0, 4):
        bench._device, bench._work = "cuda", replace(SMALL, glance_segments=segments)
        bench.wake()
    assert passes == [("glance", 1), ("focus", 1), ("glance", 4), ("focus", 1)]


def test_full_precision_on_a_gpu_is_no_tf32():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = True
        prepare(torch.get_num_threads(), "cpu")
        assert cudnn.allow_tf32 and matmul.allow_tf32
        prepare(torch.get_num_threads(), "cuda")
        assert not cudnn.allow_tf32 and not matmul.allow_tf32
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@pytest.mark.parametrize(
    "other",
    [
        {"threads": 2},
        {"precision": "fp32"},
        {"compile": "off"},
        {"work": replace(SMALL, patch_px=32)},
        {"work": replace(SMALL, focus="small_glance")},
    ],
)
def test_another_question_is_measured_for_itself(tmp_path, other, timed):
    quick(cache=tmp_path)
    quick(cache=tmp_path, **other)
    assert len(kept(tmp_path)) == 2


def test_another_torch_or_machine_is_another_question(tmp_path, monkeypatch, timed):
    quick(cache=tmp_path)
    monkeypatch.setattr(torch, "__version__", "0.0")
    quick(cache=tmp_path)
    monkeypatch.setattr(tuning, "machine_facts", lambda device="cpu": {"cpu": "another", "flags": ""})
    quick(cache=tmp_path)
    assert len(kept(tmp_path)) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"choice": {"precision": "bf16"}}', '{"choice": 3}'])
def test_a_broken_file_is_measured_again_and_replaced(tmp_path, text, timed):
    quick(cache=tmp_path)
    [path] = kept(tmp_path)
    path.write_text(text)
    assert at_once(cache=tmp_path).how == "measured"
    assert json.loads(path.read_text())["question"]["work"]["focus"] == "small_focus"


def test_a_folder_that_cannot_be_made_costs_only_the_memory(tmp_path, timed):
    (tmp_path / "file").write_text("")
    assert at_once(cache=tmp_path / "file").how == "measured"


def test_threads_are_as_before(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        quick(threads=2)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_kernels_that_do_not_exist_are_refused_where_they_were_asked_for():
    with pytest.raises(ConfigError, match=r"compute\.compile=on: there are no kernels for fp16 on cpu"):
        quick(precision=NO_KERNELS, compile="on")


def test_half_precision_goes_by_rule_where_the_processor_multiplies_in_it(monkeypatch):
    monkeypatch.setattr(tuning, "machine_facts", lambda device="cpu": {"cpu": "one", "flags": "avx2 fma"})
    assert by_rule(SMALL, device="cpu").precision == "fp32"
    monkeypatch.setattr(tuning, "machine_facts", lambda device="cpu": {"cpu": "two", "flags": "avx2 avx512_bf16"})
    expected = "bf16" if can_compile("cpu", torch.bfloat16) else "fp32"
    assert by_rule(SMALL, device="cpu").precision == expected
    assert by_rule(SMALL, device="cuda").precision == "bf16"


def test_batches_hold_whole_clips_where_a_shift_works_on_them():
    choice = by_rule(replace(SMALL, glance_segments=12, focus_segments=5), device="cpu")
    # 4 or 8 views are less than one clip of 12; 32 patches are six clips of 5 and two patches.
    assert (choice.glance_batch, choice.focus_batch) == (12, 30)
    choice = quick(replace(SMALL, focus_segments=3))
    assert choice.focus_batch % 3 == 0


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


def test_measurements_lie_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "saccade"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/not/allowed")
    assert cache_folder() == Path.home() / ".cache" / "saccade"


@pytest.mark.parametrize("value", ["on", "off", "auto"])
def test_compilation_is_switched_by_the_words_that_yaml_takes_for_truth_values(value, tmp_path):
    assert load(settings=[f"compute.compile={value}"]).compute.compile == value
    (tmp_path / "mine.yaml").write_text(f"compute: {{compile: {value}}}\n")
    assert load(str(tmp_path / "mine.yaml")).compute.compile == value
