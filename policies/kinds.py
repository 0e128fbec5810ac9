"""The table of policies: the name of each and what it needs. Nothing heavy is imported here.

A policy's name is a value of the setting `policy.kind`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from policies.base import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyKind:
    """The facts that a run needs of a policy before it is made."""

    patch: Literal["part", "whole", "none"] = "part"
    """Whether the focus network sees a part of the view, all of it, or nothing."""
    is_learned: bool = False
    """Whether it has weights in the checkpoint; its work is then counted."""
    needs_truth: bool = False
    """Whether it is given the place of the evidence."""
    place: str | None = None
    """The class of a policy that is not learned, as "module:name"."""


KINDS = {
    "learned": PolicyKind(is_learned=True),
    "center": PolicyKind(place="policies.fixed:Center"),
    "random": PolicyKind(place="policies.fixed:Random"),
    "full": PolicyKind(patch="whole", place="policies.fixed:Full"),
    "glance": PolicyKind(patch="none", place="policies.fixed:GlanceOnly"),
    "oracle": PolicyKind(needs_truth=True, place="policies.fixed:Oracle"),
}
FIXED = tuple(name for name, kind in KINDS.items() if not kind.is_learned)


def fixed_policy(name: str, *, patch_share: float, num_actions: int | None = None) -> Policy:
    """Makes a policy that is not learned. The oracle alone reads the arguments.

    `patch_share` is the side of a patch in units of the view's, and `num_actions` the number of cells of the grid that
    places are taken from; None takes the exact place.
    """
    kind = KINDS[name]
    if kind.place is None:
        raise ValueError(f"the policy {name} is learned: it is made from a checkpoint")
    module, _, attribute = kind.place.partition(":")
    made = getattr(importlib.import_module(module), attribute)
    return made(patch_share=patch_share, num_actions=num_actions) if kind.needs_truth else made()
