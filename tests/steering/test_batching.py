from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.steering.batching import Batcher, PatchRows, round_to_shape


def rows(num: int, *, clip: object = "clip", since_s: float = 0.0, is_suspect: bool = False) -> PatchRows:
    return PatchRows(clip, "handle", 0, num, since_s, is_suspect)


def sizes(batch: list[PatchRows]) -> list[int]:
    return [len(part) for part in batch]


def test_a_full_batch_goes_though_no_worker_idles() -> None:
    batcher = Batcher(max_rows=4, max_wait_s=10.0)
    batcher.add(rows(3))
    assert batcher.take(0.0, num_idle=0) == []
    batcher.add(rows(3))
    assert sizes(batcher.take(0.0, num_idle=0)) == [3, 1]
    assert len(batcher) == 2


def test_an_old_patch_goes_in_whatever_company_there_is() -> None:
    batcher = Batcher(max_rows=100, max_wait_s=2.0)
    batcher.add(rows(1, since_s=1.0))
    batcher.add(rows(1, since_s=2.9))
    assert batcher.take(2.9, num_idle=0) == []
    assert sizes(batcher.take(3.0, num_idle=0)) == [1, 1]


def test_a_worker_that_would_idle_takes_what_there_is() -> None:
    batcher = Batcher(max_rows=100, max_wait_s=10.0)
    batcher.add(rows(3))
    assert sizes(batcher.take(0.0, num_idle=1)) == [3]
    assert batcher.take(0.0, num_idle=1) == []


def test_workers_that_would_idle_share_what_there_is() -> None:
    batcher = Batcher(max_rows=100, max_wait_s=10.0)
    batcher.add(rows(10))
    assert [sizes(batcher.take(0.0, num_idle=n)) for n in (4, 3, 2, 1)] == [[3], [3], [2], [2]]


def test_a_batch_as_large_as_the_one_before_it_queues_behind_it() -> None:
    batcher = Batcher(max_rows=100, max_wait_s=10.0)
    batcher.add(rows(5))
    assert batcher.take(0.0, num_idle=0, num_ahead=6) == []
    assert sizes(batcher.take(0.0, num_idle=0, num_ahead=5)) == [5]


def test_a_whole_shape_is_taken_rather_than_a_padded_one() -> None:
    batcher = Batcher(max_rows=64, max_wait_s=10.0, shapes=(1, 2, 4, 8, 16, 32, 64))
    batcher.add(rows(20))
    # 20 would be padded to 32; 16 now and 4 later waste nothing.
    assert sizes(batcher.take(0.0, num_idle=1)) == [16]
    assert sizes(batcher.take(0.0, num_idle=1)) == [4]


def test_little_padding_is_cheaper_than_another_pass() -> None:
    batcher = Batcher(max_rows=64, max_wait_s=10.0, shapes=(1, 2, 4, 8, 16, 32, 64))
    batcher.add(rows(30))
    assert sizes(batcher.take(0.0, num_idle=1)) == [30]


def test_no_batch_is_larger_than_the_largest_shape_allowed() -> None:
    # 100 rows would be padded to 128, beyond what was allowed.
    batcher = Batcher(max_rows=100, max_wait_s=10.0, shapes=(32, 64, 96, 128))
    batcher.add(rows(100))
    assert sizes(batcher.take(0.0, num_idle=0)) == [96]


def test_rows_that_belong_together_are_never_split() -> None:
    batcher = Batcher(max_rows=30, max_wait_s=10.0, rows_per_item=12)
    for number in range(5):
        batcher.add(rows(12, clip=number))
    assert [part.clip for part in batcher.take(0.0, num_idle=0)] == [0, 1]
    # Three clips for two workers: two whole ones for the first.
    assert [part.clip for part in batcher.take(0.0, num_idle=2)] == [2, 3]


def test_an_item_that_is_not_whole_is_refused() -> None:
    batcher = Batcher(max_rows=24, max_wait_s=10.0, rows_per_item=12)
    with pytest.raises(ValueError, match="13 patches are not items of 12"):
        batcher.add(rows(13))
    with pytest.raises(ValueError, match="0 patches"):
        batcher.add(rows(0))
    with pytest.raises(ValueError, match="at least one item of 12"):
        Batcher(max_rows=7, max_wait_s=1.0, rows_per_item=12)
    with pytest.raises(ValueError, match="no shape"):
        Batcher(max_rows=24, max_wait_s=1.0, rows_per_item=12, shapes=(1, 2, 4, 8, 16))


def test_rows_that_come_back_are_as_old_as_they_were() -> None:
    batcher = Batcher(max_rows=2, max_wait_s=10.0)
    for clip in "abc":
        batcher.add(rows(2, clip=clip))
    first, second = batcher.take(0.0, num_idle=1), batcher.take(0.0, num_idle=1)
    batcher.put_back(second)
    batcher.put_back(first)
    assert [batcher.take(0.0, num_idle=1)[0].clip for _ in range(3)] == ["a", "b", "c"]


def test_dropped_rows_never_come_out_and_those_taken_are_left_alone() -> None:
    batcher = Batcher(max_rows=3, max_wait_s=10.0)
    split, other = rows(5, clip="split"), rows(2, clip="other")
    batcher.add(split)
    batcher.add(other)
    (taken,) = batcher.take(0.0, num_idle=1)
    batcher.drop(split)
    assert (taken.start, taken.stop, taken.handle) == (0, 3, "handle")
    assert len(batcher) == 2
    assert [part.clip for part in batcher.take(0.0, num_idle=1)] == ["other"]


def test_suspects_come_out_alone_and_in_their_turn() -> None:
    batcher = Batcher(max_rows=4, max_wait_s=10.0)
    batcher.add(rows(1, clip="older"))
    batcher.add(rows(6, clip="suspect", is_suspect=True))
    batcher.add(rows(1, clip="younger"))
    assert not batcher.is_suspect_next
    assert [part.clip for part in batcher.take(0.0, num_idle=2)] == ["older"]
    assert batcher.is_suspect_next
    assert sizes(batcher.take_suspect(0.0)) == [4]
    assert sizes(batcher.take_suspect(0.0)) == [2]
    assert [part.clip for part in batcher.take(0.0, num_idle=1)] == ["younger"]
    assert batcher.take_suspect(0.0) == []


def test_the_waiting_of_patches_is_added_up() -> None:
    batcher = Batcher(max_rows=4, max_wait_s=10.0)
    batcher.add(rows(2, since_s=1.0))
    batcher.add(rows(1, since_s=2.5))
    batcher.take(3.0, num_idle=1)
    assert (batcher.num_taken, batcher.waited_s) == (3, 2 * 2.0 + 0.5)


@pytest.mark.parametrize(("num_rows", "shape"), [(1, 1), (3, 4), (8, 8), (9, 9)])
def test_sizes_are_rounded_up_to_a_shape_where_there_is_one(num_rows: int, shape: int) -> None:
    assert round_to_shape(num_rows, (1, 2, 4, 8)) == shape


class Batching(RuleBasedStateMachine):
    """Whatever is added comes out once, oldest first, in batches that keep the limits."""

    @initialize(
        unit=st.sampled_from([1, 3]),
        max_items=st.integers(1, 20),
        shapes=st.sampled_from([(), (3, 6, 12, 24, 48)]),
    )
    def begin(self, unit: int, max_items: int, shapes: tuple[int, ...]) -> None:
        self.unit, self.max_rows, self.shapes = unit, max(3, max_items * unit), shapes
        self.batcher = Batcher(max_rows=self.max_rows, max_wait_s=5.0, shapes=shapes, rows_per_item=unit)
        self.now_s = 0.0
        self.clips = 0
        self.waiting: Counter[tuple[int, int]] = Counter()
        self.held: dict[int, list[PatchRows]] = {}
        self.out: list[list[PatchRows]] = []

    @rule(items=st.integers(1, 15), is_suspect=st.booleans())
    def add(self, items: int, is_suspect: bool) -> None:
        added = PatchRows(self.clips, None, 0, items * self.unit, self.now_s, is_suspect)
        self.batcher.add(added)
        self.held[self.clips] = [added]
        self.waiting.update((self.clips, row) for row in range(added.stop))
        self.clips += 1

    @rule(passed_s=st.sampled_from([0.1, 6.0]))
    def wait(self, passed_s: float) -> None:
        self.now_s += passed_s

    @rule(num_idle=st.integers(0, 4), num_ahead=st.integers(0, 20))
    def take(self, num_idle: int, num_ahead: int) -> None:
        num_rows = self.batcher.num_rows
        batch = self.batcher.take(self.now_s, num_idle=num_idle, num_ahead=num_ahead)
        assert not any(part.is_suspect for part in batch)
        assert batch or not (num_idle and num_rows), "a worker idles while patches wait"
        others = {clip for clip, _ in self.waiting if not self.held[clip][0].is_suspect}
        assert not batch or batch[0].clip == min(others), "the oldest was not taken"
        self.went(batch)

    @rule()
    def take_suspect(self) -> None:
        batch = self.batcher.take_suspect(self.now_s)
        assert len({part.clip for part in batch}) <= 1
        assert all(part.is_suspect for part in batch)
        self.went(batch)

    def went(self, batch: list[PatchRows]) -> None:
        assert sum(sizes(batch)) <= self.max_rows
        for part in batch:
            assert len(part) % self.unit == 0
            for row in range(part.start, part.stop):
                assert self.waiting.pop((part.clip, row)) == 1
        if batch:
            self.out.append(batch)

    @precondition(lambda self: self.out)
    @rule()
    def put_back(self) -> None:
        batch = self.out.pop()
        self.batcher.put_back(batch)
        for part in batch:
            self.held[part.clip].append(part)
            self.waiting.update((part.clip, row) for row in range(part.start, part.stop))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        clip = data.draw(st.sampled_from(sorted({clip for clip, _ in self.waiting})))
        for part in self.held[clip]:
            self.batcher.drop(part)
        for key in [key for key in self.waiting if key[0] == clip]:
            del self.waiting[key]
        self.out = [[part for part in batch if part.clip != clip] for batch in self.out]
        self.out = [batch for batch in self.out if batch]

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if hasattr(self, "batcher"):
            assert len(self.batcher) == len(self.waiting)


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
