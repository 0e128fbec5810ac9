"""Precision, compilation and batch sizes: chosen by measuring once, remembered, and never against what was asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from operators.errors import ConfigError
from operators.networks.compiled import can_compile
from pipeline.config import load
from pipeline.plan import processor, tuning
from pipeline.plan.network_choice import Choice, NetworkWork, by_rule
from pipeline.plan.tuning import cache_folder, choose
from pipeline.run.factories import prepare
from tests.support.timed_trials import SMALL, SlowTrials, TimedTrial, never

NO_KERNELS = "fp16"

needs_onednn = pytest.mark.skipif(not can_compile("cpu", torch.float32), reason="this torch has no oneDNN")


def quick(work: NetworkWork = SMALL, **options: object) -> Choice:
    return choose(work, **{"device": "cpu", "threads": 1, "limit_s": 0.2, **options})  # type: ignore[arg-type]


def timed(**options: object) -> Choice:
    """Chooses by times that take no time."""
    return quick(**{"limit_s": 60.0, "make_trial": TimedTrial, **options})


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
def test_the_way_that_was_chosen_and_the_others_are_shown_in_one_line():
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


def test_a_second_run_remembers_and_does_not_measure(tmp_path):
    said: list[str] = []
    first = timed(cache=tmp_path, doing=said.append)
    assert first.how == "measured"
    second = timed(cache=tmp_path, doing=said.append, make_trial=never)
    assert second == replace(first, how="remembered")
    assert said == ["measuring networks"]


def test_what_time_cut_short_is_measured_once_more_with_four_times_as_much_of_it(tmp_path):
    whole, slow = timed(), SlowTrials(timing_s=1.0)
    options = {"cache": tmp_path, "make_trial": slow, "clock": slow.clock, "limit_s": 6.0}
    first = timed(**options)
    assert first.how == "cut short" and "(cut short" in first.line()
    begun_s = slow.now_s
    second = timed(**options)
    assert 6.0 < slow.now_s - begun_s < 24.0
    assert second == replace(whole, how="measured") and second.glance_batch != first.glance_batch
    assert timed(**{**options, "make_trial": never}).how == "remembered"


def test_where_there_is_no_time_at_all_batches_go_by_rule():
    choice, rule = timed(limit_s=-1.0), by_rule(SMALL, device="cpu")
    assert choice.how == "cut short"
    assert (choice.glance_batch, choice.focus_batch) == (rule.glance_batch, rule.focus_batch)


def test_a_machine_that_is_always_too_slow_measures_twice_and_not_for_ever(tmp_path):
    assert timed(cache=tmp_path, limit_s=-1.0).how == "cut short"
    assert timed(cache=tmp_path, limit_s=-1.0).how == "measured"
    assert timed(cache=tmp_path, limit_s=-1.0, make_trial=never).how == "remembered"


def test_time_runs_from_when_the_device_is_awake():
    slow = SlowTrials(wake_s=100.0)
    assert timed(limit_s=1.0, make_trial=slow, clock=slow.clock).how == "measured"


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
def test_another_question_is_measured_for_itself(tmp_path, other):
    timed(cache=tmp_path)
    timed(cache=tmp_path, **other)
    assert len(kept(tmp_path)) == 2


def test_another_torch_or_machine_is_another_question(tmp_path, monkeypatch):
    timed(cache=tmp_path)
    monkeypatch.setattr(torch, "__version__", "0.0")
    timed(cache=tmp_path)
    monkeypatch.setattr(tuning, "machine_facts", lambda device="cpu": {"cpu": "another", "flags": ""})
    timed(cache=tmp_path)
    assert len(kept(tmp_path)) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"choice": {"precision": "bf16"}}', '{"choice": 3}'])
def test_a_broken_file_is_measured_again_and_replaced(tmp_path, text):
    timed(cache=tmp_path)
    [path] = kept(tmp_path)
    path.write_text(text)
    assert timed(cache=tmp_path).how == "measured"
    assert json.loads(path.read_text())["question"]["work"]["focus"] == "small_focus"


def test_a_folder_that_cannot_be_made_costs_only_the_memory(tmp_path):
    (tmp_path / "file").write_text("")
    assert timed(cache=tmp_path / "file").how == "measured"


def test_kernels_that_do_not_exist_are_refused_where_they_were_asked_for():
    with pytest.raises(ConfigError, match=r"compute\.compile=on: there are no kernels for fp16 on cpu"):
        quick(precision=NO_KERNELS, compile="on")


def test_half_precision_goes_by_rule_where_the_processor_multiplies_in_it(monkeypatch):
    monkeypatch.setattr(processor, "machine_facts", lambda device="cpu": {"cpu": "one", "flags": "avx2 fma"})
    assert by_rule(SMALL, device="cpu").precision == "fp32"
    monkeypatch.setattr(processor, "machine_facts", lambda device="cpu": {"cpu": "two", "flags": "avx2 avx512_bf16"})
    expected = "bf16" if can_compile("cpu", torch.bfloat16) else "fp32"
    assert by_rule(SMALL, device="cpu").precision == expected
    assert by_rule(SMALL, device="cuda").precision == "bf16"


def test_batches_hold_whole_clips_where_a_shift_works_on_them():
    choice = by_rule(replace(SMALL, glance_segments=12, focus_segments=5), device="cpu")
    # 4 or 8 views are less than one clip of 12; 32 patches are six clips of 5 and two patches.
    assert (choice.glance_batch, choice.focus_batch) == (12, 30)
    choice = quick(replace(SMALL, focus_segments=3))
    assert choice.focus_batch % 3 == 0


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
