"""How much `bench archive` measures in the time that there is. Pure: what clips cost and a budget in, sizes out."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many clips a sample has: the pipeline's are those of a stretch, the others' are measured one by one."""

    stretches: int = 6
    """The stretches of a burst, and the samples of what it is measured against: fewer have no interval of 95 %."""
    groups: int = 2
    """The groups of the mix that a stretch has: three stretches of two are a lap."""
    long: int = 3
    short: int = 12
    near: int = 8
    """The long videos, by their keyframes, that a stretch has."""
    plain_short: int = 5
    policy_short: int = 2
    policy_samples: int = 3
    inline_samples: int = 2


_SMALL = Sizes(groups=1, long=1, short=4, near=4, plain_short=2, policy_short=1, policy_samples=2, inline_samples=1)
LADDER = (
    Sizes(),
    Sizes(long=2, short=8, near=6, plain_short=3),
    Sizes(groups=1, long=2, short=8, near=6, plain_short=3),
    _SMALL,
    *(replace(_SMALL, stretches=stretches) for stretches in (5, 4, 3)),
    *(replace(_SMALL, stretches=stretches, long=3) for stretches in (2, 1)),
)
"""The sizes from the largest on, for less and less time. Stretches shorter than the waves of labels would say little,
and where few clips are timed in all they may get their labels at once."""
QUICK_SIZES = Sizes(
    stretches=2, groups=1, long=1, short=2, near=2, plain_short=1, policy_short=1, policy_samples=1, inline_samples=1
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The seconds that a clip is likely to take, known before anything is timed."""

    mix_s: float
    alone_s: float
    """CPU seconds of all stages for a clip of the mix."""
    long_s: float
    short_s: float
    """The seconds of a short clip; a long video by its keyframes takes about as long."""
    plain_long_s: float
    plain_short_s: float
    group: int
    """The number of clips in a group of the mix: a long video and its short ones."""
    lead: int
    """The number of clips before what is timed of a burst, and behind it."""
    readers: int
    """The number of clips before and behind where long videos are read exactly."""
    scale: int
    """Stretches are so many times as long as their sizes say."""
    start_s: float
    """How long a run takes to start."""

    def round_s(self, sizes: Sizes) -> float:
        """The seconds of one round of what has to be measured."""

        def burst_s(clip_s: float, stretch: int, period: int, lead: int) -> float:
            return clip_s * (sizes.stretches * stretch * self.scale + period + 2 * lead)

        mix_s = burst_s(self.mix_s, sizes.groups * self.group, self.group, self.lead)
        limit_s = sizes.stretches * self.group * self.alone_s
        long_s = burst_s(self.long_s, sizes.long, self.readers, self.readers)
        near_s = burst_s(self.short_s, sizes.near, 4, self.lead)
        short_s = burst_s(self.short_s, sizes.short, 4, self.lead)
        plain_s = sizes.stretches * (self.plain_long_s + sizes.plain_short * self.plain_short_s)
        return mix_s + limit_s + long_s + near_s + short_s + plain_s

    def policies_s(self, sizes: Sizes) -> float:
        """The seconds of the learned policy and three baselines on short clips, and of making them ready: `full` costs
        as much as two of the others, and a short clip two thirds of one of the mix."""
        return 15.0 + 4 * self.alone_s * (1 + sizes.policy_samples * sizes.policy_short)

    def inline_s(self, sizes: Sizes) -> float:
        """The seconds of the same work in one process, and of its start."""
        return self.start_s + (1 + sizes.inline_samples) * self.group * self.alone_s


_DRIFT = 1.15
"""How many times as slow as a moment ago a machine may become."""


def fitting(cost: Cost, budget_s: float) -> Sizes:
    """The largest sizes for which there is time: six samples with all that can be left out, else six without it, else
    as many as there can be, at least one."""
    for sizes in LADDER:
        more_s = cost.policies_s(sizes) + cost.inline_s(sizes)
        if sizes.stretches == Sizes.stretches and _DRIFT * cost.round_s(sizes) + more_s <= budget_s:
            return sizes
    return next((sizes for sizes in LADDER if _DRIFT * cost.round_s(sizes) <= budget_s), LADDER[-1])
