"""The interface of policies: observation and state in, actions and state out. Nothing here knows Ray, files or
settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch

from operators.records import Observation

Reads = Literal["glance", "classifier", "patch"]
"""What must be known before the next step can be decided. `glance`: nothing but the glances, so all steps of
a clip can be decided up front. `classifier`: its state after the step before. `patch`: the focus network's
map of the last patch. Each later one makes a clip advance step by step."""

_READS_ORDER: tuple[Reads, ...] = ("glance", "classifier", "patch")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Actions:
    """The decisions for one step of B clips, as tensors; those for all steps of the clips have the shape [B,T,...]."""

    offsets: torch.Tensor
    """float32 [B,2]: (row, column) in [0,1]; 0 is the top or left edge and 1 the bottom or right one."""
    focus: torch.Tensor
    """bool [B]: False where the step is skipped."""
    choice: torch.Tensor | None = None
    """What `log_prob` speaks of: the cell of the grid, int64 [B], or the clipped place, float32 [B,2]."""
    log_prob: torch.Tensor | None = None
    """[B], of the place; None for policies that do not learn."""
    entropy: torch.Tensor | None = None
    value: torch.Tensor | None = None
    """[B]: the critic's estimate of the return."""
    context: torch.Tensor | None = None
    """[B,hidden]: the policy's recurrent state, which the decision to skip may read."""
    skip_log_prob: torch.Tensor | None = None
    """[B], of `focus`, where the decision to skip is learned."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PolicyState:
    """The recurrent state of B clips: named tensors whose first axis is the clip. It is a value: acting makes a new
    one."""

    num_clips: int
    tensors: Mapping[str, torch.Tensor]

    def row(self, number: int) -> PolicyState:
        """Returns the state of one clip, as a view: an index would have to be sent to a GPU first."""
        rows = slice(number, number + 1)
        return PolicyState(num_clips=1, tensors={k: v[rows] for k, v in self.tensors.items()})


def join(states: Sequence[PolicyState]) -> PolicyState:
    """Makes one state from several of the same policy; the clips keep the order given."""
    if not states:
        raise ValueError("join needs at least one state")
    if any(s.tensors.keys() != states[0].tensors.keys() for s in states):
        raise ValueError("states of different policies cannot be joined")
    return PolicyState(
        num_clips=sum(s.num_clips for s in states),
        tensors={k: torch.cat([s.tensors[k] for s in states]) for k in states[0].tensors},
    )


Generators = Sequence[torch.Generator] | None
"""One generator per clip, on the CPU, so that a clip's draws do not depend on its neighbours; None draws from torch's
own."""


class Policy(Protocol):
    """Decides where to look. Row i in is row i out, and a batch of N equals N batches of one."""

    @property
    def reads(self) -> Reads: ...

    @property
    def scope(self) -> Literal["step", "clip"]:
        """Whether the policy acts at every step, or once per clip: `clip` acts on the maps of all steps joined along
        channels, and its one place serves every step."""
        ...

    def initial_state(self, num_clips: int) -> PolicyState: ...

    def encode(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Does the work that needs no state, so that a clip's steps share one call: [N,C,h,w] -> [N,...]."""
        ...

    def act(
        self,
        observation: Observation,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
        code: torch.Tensor | None = None,
    ) -> tuple[Actions, PolicyState]:
        """Decides one step. `code` is this step's row of `encode`; None encodes `observation.feature_map` here."""
        ...


class SkipRule(Protocol):
    """Decides whether a step is worth a patch, before any patch is cut."""

    @property
    def reads(self) -> Reads: ...

    def initial_state(self, num_clips: int) -> PolicyState: ...

    def decide(
        self,
        observation: Observation,
        context: torch.Tensor | None,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, PolicyState]:
        """Returns focus, bool [B], its log-probability, [B] or None, and the new state."""
        ...


class Skipping:
    """A policy that is made of a policy for the place and a rule for skipping."""

    def __init__(self, *, place: Policy, skip: SkipRule) -> None:
        if place.reads == "patch" or place.scope == "clip":
            raise ValueError("a policy that reads patches, or chooses one place per clip, cannot skip steps")
        self.place = place
        self.skip = skip

    @property
    def reads(self) -> Reads:
        return max(self.place.reads, self.skip.reads, key=_READS_ORDER.index)

    @property
    def scope(self) -> Literal["step", "clip"]:
        return self.place.scope

    def initial_state(self, num_clips: int) -> PolicyState:
        return self._merge(self.place.initial_state(num_clips), self.skip.initial_state(num_clips))

    def encode(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.place.encode(feature_map)

    def act(
        self,
        observation: Observation,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
        code: torch.Tensor | None = None,
    ) -> tuple[Actions, PolicyState]:
        place_state, skip_state = self._split(state)
        actions, place_state = self.place.act(observation, place_state, greedy=greedy, generators=generators, code=code)
        focus, log_prob, skip_state = self.skip.decide(
            observation, actions.context, skip_state, greedy=greedy, generators=generators
        )
        actions = replace(actions, focus=actions.focus & focus, skip_log_prob=log_prob)
        return actions, self._merge(place_state, skip_state)

    @staticmethod
    def _merge(place: PolicyState, skip: PolicyState) -> PolicyState:
        tensors = {f"place.{k}": v for k, v in place.tensors.items()}
        tensors |= {f"skip.{k}": v for k, v in skip.tensors.items()}
        return PolicyState(num_clips=place.num_clips, tensors=tensors)

    @staticmethod
    def _split(state: PolicyState) -> tuple[PolicyState, PolicyState]:
        def part(prefix: str) -> PolicyState:
            tensors = {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
            return PolicyState(num_clips=state.num_clips, tensors=tensors)

        return part("place."), part("skip.")


@runtime_checkable
class ActsAhead(Protocol):
    """A policy whose greedy actions need not take turns, because nothing that is chosen comes back in."""

    def act_ahead(self, codes: torch.Tensor, state: PolicyState) -> tuple[Actions, PolicyState]:
        """Returns the actions [B,T,...] for codes [B,T,...] of `encode`, without what only learning reads."""
        ...


def act_all(
    policy: Policy,
    feature_maps: torch.Tensor,
    state: PolicyState,
    *,
    greedy: bool = True,
    generators: Generators = None,
    truth_yx: torch.Tensor | None = None,
) -> tuple[Actions, PolicyState]:
    """Decides every step of B clips at once, for policies that read glances only.

    feature_maps [B,T,C,h,w], truth_yx [B,T,2]; the actions' tensors are [B,T,...].
    """
    if policy.reads != "glance":
        raise ValueError(f"a policy that reads the {policy.reads} cannot decide all steps up front")
    num_clips, num_steps = feature_maps.shape[:2]
    codes = policy.encode(feature_maps.flatten(0, 1)).unflatten(0, (num_clips, num_steps))
    if greedy and isinstance(policy, ActsAhead) and not torch.is_grad_enabled():
        return policy.act_ahead(codes, state)
    taken: list[Actions] = []
    for t in range(num_steps):
        observation = Observation(
            feature_map=feature_maps[:, t], step=t, truth_yx=None if truth_yx is None else truth_yx[:, t]
        )
        actions, state = policy.act(observation, state, greedy=greedy, generators=generators, code=codes[:, t])
        taken.append(actions)
    return stack(taken), state


def stack(steps: Sequence[Actions]) -> Actions:
    """Returns the actions of T steps, each [B,...], as one [B,T,...]."""

    def column(name: str) -> torch.Tensor | None:
        values = [getattr(a, name) for a in steps]
        return None if any(v is None for v in values) else torch.stack(values, dim=1)

    return Actions(
        offsets=torch.stack([a.offsets for a in steps], dim=1),
        focus=torch.stack([a.focus for a in steps], dim=1),
        choice=column("choice"),
        log_prob=column("log_prob"),
        entropy=column("entropy"),
        value=column("value"),
        context=column("context"),
        skip_log_prob=column("skip_log_prob"),
    )


def corners(offsets: torch.Tensor, *, view_px: int, patch_px: int) -> torch.Tensor:
    """Returns the top left pixel of each patch: int64 [...,2], (row, column).

    The product is rounded to float32 before the floor, as published: float64 gives other pixels for some cells.
    """
    return torch.floor(real_corners(offsets, view_px=view_px, patch_px=patch_px)).long()


def real_corners(offsets: torch.Tensor, *, view_px: int, patch_px: int) -> torch.Tensor:
    """Returns the top left corner of each patch, which may lie between pixels: float32 [...,2], (row, column)."""
    if not 0 < patch_px <= view_px:
        raise ValueError(f"a patch of {patch_px} px does not fit a view of {view_px} px")
    # A network whose numbers are not finite looks somewhere: its clip is reported as not_finite when it is labelled.
    return torch.nan_to_num(offsets.float(), nan=0.0) * (view_px - patch_px)


def uniform(shape: tuple[int, ...], generators: Generators, device: torch.device) -> torch.Tensor:
    """Draws uniformly from [0,1), float32. The first axis is the clip; each clip draws from its own generator."""
    return _draw(torch.rand, shape, generators, device)


def normal(shape: tuple[int, ...], generators: Generators, device: torch.device) -> torch.Tensor:
    """Draws from the standard normal distribution, float32; each clip, the first axis, from its own generator."""
    return _draw(torch.randn, shape, generators, device)


def _draw(
    source: Callable[..., torch.Tensor], shape: tuple[int, ...], generators: Generators, device: torch.device
) -> torch.Tensor:
    if generators is None:
        return source(shape, device=device)
    if len(generators) != shape[0]:
        raise ValueError(f"{shape[0]} clips, {len(generators)} generators")
    if not generators:
        return torch.empty(shape, device=device)
    return torch.stack([source(shape[1:], generator=g) for g in generators]).to(device)
