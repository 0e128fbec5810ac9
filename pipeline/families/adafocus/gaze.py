"""How AdaFocus looks: every step is a frame, with a place of its own in it; a recurrent classifier hears them in order.

Without a stop rule a clip's steps go in one round: all glances, all decisions, then all patches in as few passes as
possible. With one, or with a policy that wants to know what the classifier made of the last frame, it goes by rounds;
the frames of later rounds are not even glanced at before their turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from operators.networks.classify import GRUClassifier, MaxClassifier, join_features
from operators.records import Observation, PatchFeatures
from pipeline.families.clip import OpenClip, grouped, runs_of
from pipeline.families.parts import GazeParts
from policies.base import PolicyState, act_all, corners, join


@dataclass(slots=True, eq=False)
class _Memory:
    """The state of a clip between rounds."""

    rows: np.ndarray
    """[T] of the FrameBatch, in the order of the steps"""
    policy_state: PolicyState
    classifier_state: torch.Tensor
    """[1,H]"""
    stop_state: torch.Tensor
    """[1]"""
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]]
    """Row of the FrameBatch -> map [C,h,w] and feature [C], for the rows glanced at. One for all of its windows."""
    num_glanced: int = 0
    next_step: int = 0
    """The first step that is not classified yet."""
    focused: list[int] = field(default_factory=list)
    """Steps of this round that wait for features."""
    round_end: int = 0


class FrameGaze:
    """The Gaze of AdaFocus on frames one after another."""

    def __init__(self, parts: GazeParts, *, focus_features: int) -> None:
        """`focus_features`: how many numbers the focus network gives for a patch."""
        self.patch_px = parts.patch_px
        self._parts = parts
        self._glancer = parts.glancer
        self._policy = parts.policy
        self._classifier: GRUClassifier | MaxClassifier = parts.classifier
        self._stop = parts.stop
        self._focus_features = focus_features

    @torch.inference_mode()
    def open(self, clips: Sequence[OpenClip]) -> None:
        seen: dict[int, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
        for clip in clips:
            clip.num_frames = len(clip.window.glance_rows)
            stop_state = torch.zeros(1, dtype=torch.int64) if self._stop is None else self._stop.initial_state(1)
            clip.memory = _Memory(
                rows=self._rows_of_steps(clip.window.glance_rows),
                policy_state=self._policy.initial_state(1),
                classifier_state=self._classifier.initial_state(1),
                stop_state=stop_state,
                seen=seen.setdefault(id(clip.frames), {}),
            )
        self._look_on(clips)

    @torch.inference_mode()
    def step(self, clips: Sequence[OpenClip], features: Sequence[PatchFeatures]) -> None:
        # All clips' in one copy: a GPU waits for each.
        together = torch.from_numpy(np.concatenate([f.feature for f in features], dtype=np.float32))
        self._classify(clips, together.to(self._glancer.device).split([len(f.feature) for f in features]))
        self._look_on([clip for clip in clips if not clip.is_finished])

    def _rows_of_steps(self, glance_rows: np.ndarray) -> np.ndarray:
        """The row that each step shows; AdaFocus's steps go in the order of time."""
        return glance_rows

    def _corners(self, offsets: torch.Tensor) -> list:
        """The top left corners of patches, [...,2] as lists; AdaFocus's are whole pixels."""
        return corners(offsets, view_px=self._parts.view_px, patch_px=self.patch_px).tolist()

    def _classified_with(self, clip: OpenClip) -> tuple[int, ...]:
        """The key that clips share which are classified in one call; a GRU only needs rounds of one length."""
        return (clip.memory.round_end - clip.memory.next_step,)

    def _logits(
        self, clips: Sequence[OpenClip], inputs: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The classifier's logits [B,n,K] of the round's steps, and its state after them."""
        return self._parts.classifier(inputs, state)

    def _look_on(self, clips: Sequence[OpenClip]) -> None:
        """Goes through rounds until every clip waits for patches or is finished."""
        while clips:
            self._begin_round(clips)
            # Rounds without a patch need no focus network and end here and now.
            bare = [clip for clip in clips if not clip.memory.focused]
            self._classify(bare, [self._no_features()] * len(bare))
            clips = [clip for clip in bare if not clip.is_finished]

    def _no_features(self) -> torch.Tensor:
        return torch.zeros((0, self._focus_features), device=self._glancer.device)

    def _begin_round(self, clips: Sequence[OpenClip]) -> None:
        self._glance(clips)
        if self._policy.reads == "classifier":
            for _, group in grouped(clips, lambda clip: clip.memory.next_step):
                self._decide_one(group)
        else:
            for _, group in grouped(clips, lambda clip: (clip.memory.next_step, clip.num_frames)):
                self._decide_round(group)

    def _ahead(self, clip: OpenClip) -> int:
        """The end of the steps that are glanced at together."""
        if self._stop is None:
            return clip.num_frames
        rounds = clip.memory.next_step // self._parts.steps_per_round + 1
        return min(clip.num_frames, rounds * self._parts.steps_per_round)

    def _glance(self, clips: Sequence[OpenClip]) -> None:
        """All clips' frames in one pass, each frame of a FrameBatch once however many windows show it."""
        wanted: dict[tuple[int, int], OpenClip] = {}
        for clip in clips:
            for row in clip.memory.rows[clip.memory.next_step : self._ahead(clip)].tolist():
                if row not in clip.memory.seen:
                    wanted.setdefault((id(clip.frames), row), clip)
        if not wanted:
            return
        glance = self._glancer(runs_of((clip.frames.pixels, row) for (_, row), clip in wanted.items()))
        for i, ((_, row), clip) in enumerate(wanted.items()):
            clip.memory.seen[row] = (glance.feature_map[i], glance.feature[i])
            # A frame's cost is counted once, in the first clip that looks at it.
            clip.memory.num_glanced += 1

    def _decide_round(self, clips: list[OpenClip]) -> None:
        """Steps that need the glances only: all of the round at once, for clips at the same step."""
        start, stop = clips[0].memory.next_step, self._ahead(clips[0])
        maps = torch.stack(
            [torch.stack([c.memory.seen[int(row)][0] for row in c.memory.rows[start:stop]]) for c in clips]
        )
        actions, state = act_all(
            self._policy,
            maps,
            join([clip.memory.policy_state for clip in clips]),
            generators=[clip.generator for clip in clips],
            truth_yx=self._truth(clips, range(start, stop)),
        )
        places = self._corners(actions.offsets)
        is_focused = actions.focus.tolist()
        for i, clip in enumerate(clips):
            clip.memory.policy_state = state.row(i)
            for step in range(start, stop):
                self._take(clip, step, is_focused[i][step - start], places[i][step - start])
            clip.memory.round_end = stop

    def _decide_one(self, clips: list[OpenClip]) -> None:
        """One step of clips at the same step, with the classifier's state in view."""
        step = clips[0].memory.next_step
        classifier_state = None
        if step > 0:
            classifier_state = torch.cat([clip.memory.classifier_state for clip in clips])
        truth = self._truth(clips, range(step, step + 1))
        observation = Observation(
            feature_map=torch.stack([c.memory.seen[int(c.memory.rows[step])][0] for c in clips]),
            classifier_state=classifier_state,
            step=step,
            truth_yx=None if truth is None else truth[:, 0],
        )
        state = join([clip.memory.policy_state for clip in clips])
        actions, state = self._policy.act(observation, state, generators=[clip.generator for clip in clips])
        places = self._corners(actions.offsets)
        is_focused = actions.focus.tolist()
        for i, clip in enumerate(clips):
            clip.memory.policy_state = state.row(i)
            self._take(clip, step, is_focused[i], places[i])
            clip.memory.round_end = step + 1

    def _take(self, clip: OpenClip, step: int, is_focused: bool, corner: Sequence[float]) -> None:
        if not is_focused:
            clip.skip(step)
            return
        row = int(clip.memory.rows[step])
        clip.focus(step=step, row=row, corner=(corner[0], corner[1]), patch_px=self.patch_px)
        clip.memory.focused.append(step)

    def _truth(self, clips: Sequence[OpenClip], steps: range) -> torch.Tensor | None:
        places = [(clip.frames, int(clip.memory.rows[step])) for clip in clips for step in steps]
        truth = self._parts.truths(places)
        return None if truth is None else truth.unflatten(0, (len(clips), -1))

    def _classify(self, clips: Sequence[OpenClip], local: Sequence[torch.Tensor]) -> None:
        """The steps of the round that has just ended; a skipped step has zeros for its local feature."""
        pairs = list(zip(clips, local, strict=True))
        for _, group in grouped(pairs, lambda pair: self._classified_with(pair[0])):
            inputs = torch.stack([self._inputs(clip, features) for clip, features in group])
            state = torch.cat([clip.memory.classifier_state for clip, _ in group])
            logits, state = self._logits([clip for clip, _ in group], inputs, state)
            stops, stop_state = self._check([clip for clip, _ in group], logits)
            for i, (clip, _) in enumerate(group):
                memory = clip.memory
                memory.classifier_state, memory.stop_state = state[i : i + 1], stop_state[i : i + 1]
                memory.next_step, memory.focused = memory.round_end, []
                clip.step_logits += list(logits[i])
                clip.is_finished = stops[i] or memory.next_step >= clip.num_frames
                if clip.is_finished:
                    self._settle(clip)

    def _inputs(self, clip: OpenClip, local: torch.Tensor) -> torch.Tensor:
        """[n,C+D] of the round's n steps"""
        memory: _Memory = clip.memory
        steps = range(memory.next_step, memory.round_end)
        glance = torch.stack([memory.seen[int(memory.rows[step])][1] for step in steps])
        if len(memory.focused) == len(steps):
            return join_features(glance, local, self._focus_features)
        # Row by row: the numbers of the rows would have to be sent to a GPU, and the host waits with each such copy.
        seen, nothing = iter(local), glance.new_zeros(self._focus_features)
        focus = torch.stack([next(seen) if step in memory.focused else nothing for step in steps])
        return join_features(glance, focus, self._focus_features)

    def _check(self, clips: Sequence[OpenClip], logits: torch.Tensor) -> tuple[list[bool], torch.Tensor]:
        """Whether the round's logits [B,n,K] end the clips, and the rule's state after it."""
        state = torch.cat([clip.memory.stop_state for clip in clips])
        stops = torch.zeros(len(clips), dtype=torch.bool)
        if self._stop is not None:
            # The rule counts steps, so it is given each; a round is paid for whole, and its last step decides.
            for step_logits in logits.cpu().unbind(1):
                stops, state = self._stop.stop(step_logits, state)
        return stops.tolist(), state

    def _settle(self, clip: OpenClip) -> None:
        memory: _Memory = clip.memory
        steps = len(clip.step_logits)
        focused = np.cumsum([decision.box_yxyx is not None for decision in clip.decisions])
        rows = memory.rows.tolist()
        # A frame that several steps show is glanced at with the first of them; one that another window paid for, never.
        glanced = np.cumsum([row not in rows[:step] for step, row in enumerate(rows)])
        glanced = np.minimum(glanced, memory.num_glanced)
        clip.step_gmacs = [self._gmacs(int(glanced[k]), int(focused[k]), k + 1) for k in range(steps)]
        clip.gmacs = self._gmacs(memory.num_glanced, int(focused[steps - 1]), steps)
        clip.gmacs_full = self._parts.cost.gmacs_full(
            glanced=len(set(rows)), focused=clip.num_frames, classified=clip.num_frames
        )
        clip.memory = None

    def _gmacs(self, glanced: int, focused: int, steps: int) -> float:
        return self._parts.cost.gmacs(
            glanced=glanced,
            focused=focused,
            classified=steps,
            decided=steps if self._parts.decides else 0,
            skips_decided=steps if self._parts.has_skip else 0,
        )
