"""The set of finished clips against Python's own, and what it weighs."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.steering.done_set import DoneSet

# Few values per half, so that equal halves and equal keys come up; and the ends of each bucket.
halves = st.sampled_from([0, 1, 2**56 - 1, 2**56, 2**63, 2**64 - 2, 2**64 - 1])
keys = st.tuples(halves, halves)


def hexed(key: tuple[int, int]) -> str:
    return f"{key[0]:016x}{key[1]:016x}"


def array(rows: list[tuple[int, int]]) -> np.ndarray:
    return np.array(rows, np.uint64).reshape(-1, 2)


@given(st.lists(keys), st.lists(st.one_of(keys, st.lists(keys, max_size=5))))
def test_it_answers_as_a_set_does(first: list, steps: list) -> None:
    ours, model = DoneSet(array(first)), set(first)
    for step in steps:
        if isinstance(step, list):
            ours.extend(array(step))
            model.update(step)
        else:
            assert ours.add(hexed(step)) == (step not in model)
            model.add(step)
        assert all(hexed(key) in ours for key in model)
    assert {(a, b) for a in (0, 2**56, 2**64 - 1) for b in (0, 1) if hexed((a, b)) in ours} == {
        (a, b) for a, b in model if a in (0, 2**56, 2**64 - 1) and b in (0, 1)
    }
    assert len(ours) == len(model)


def test_a_clip_takes_16_bytes_and_growing_never_takes_twice_as_many() -> None:
    ids = [hashlib.md5(str(number).encode()).hexdigest() for number in range(60_000)]
    tracemalloc.start()
    done = DoneSet()
    assert all(done.add(clip) for clip in ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(done) == 60_000
    assert not any(done.add(clip) for clip in ids[::100])
    assert hashlib.md5(b"another").hexdigest() not in done
    assert done.nbytes <= 16.2 * 60_000
    # The keys, the 8,192 that wait (about 130 bytes each) and their merge.
    assert peak < 16 * 60_000 + 8192 * 250


def test_a_million_keys_are_taken_over_as_they_come_from_the_sink() -> None:
    given_keys = np.random.default_rng(0).integers(0, 2**64, (1_000_000, 2), np.uint64)
    done = DoneSet(given_keys)
    assert len(done) == 1_000_000
    # 16 bytes and a bit each, and no bucket has more than a byte to spare.
    assert 16_125_000 <= done.nbytes <= 16_125_000 + 256
    assert all(hexed((int(high), int(low))) in done for high, low in given_keys[::10_007])


@given(st.lists(keys), st.lists(st.tuples(st.sampled_from(["add", "meet", "extend"]), keys)))
def test_it_knows_which_clips_this_run_was_given(first: list, steps: list) -> None:
    ours, known, given_keys = DoneSet(array(first)), set(first), set()
    for what, key in steps:
        if what == "extend":
            ours.extend(array([key]))
            known.add(key)
        elif what == "add" or key in known:
            known.add(key)
            given_keys.add(key)
        if what == "add":
            ours.add(hexed(key))
        if what == "meet":
            assert ours.meet(hexed(key)) == (key in known)
        assert all(ours.is_given(hexed(key)) == (key in given_keys) for key in known)
    assert not any(ours.is_given(hexed(key)) for key in set(first) - given_keys)


def test_what_is_not_a_clip_id_is_a_bug() -> None:
    with pytest.raises(ValueError, match="32 hex digits"):
        DoneSet().add("abcd")


def test_failures_are_counted_when_they_are_met_and_once() -> None:
    done = DoneSet(array([(1, 1), (2, 2), (3, 3)]), failed=array([(2, 2), (3, 3)]))
    assert [done.meet(hexed(key)) for key in [(1, 1), (2, 2), (2, 2), (4, 4)]] == [True, True, True, False]
    assert done.num_failed_met == 1
    done.add(hexed((4, 4)))
    assert done.meet(hexed((4, 4))) and done.num_failed_met == 1
