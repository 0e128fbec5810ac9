"""The learned policy: it decides where to look, and whether a frame is worth looking at. State in, state out.

The place policy's parameters carry the published names. The decision to skip is this project's own design: AdaFocus+
published the idea, but not the network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from operators.records import Observation
from policies.base import Actions, Generators, PolicyState, Reads, normal, uniform
from policies.ppo import categorical_entropy, categorical_log_prob, gaussian_entropy, gaussian_log_prob

PlaceKind = Literal["grid", "continuous"]
"""How a place is chosen: a cell of a grid, or any place of the view."""
Encoder = Literal["conv", "mlp", "clip", "tanh"]
"""`conv`: 1x1 convolution and one linear layer (AdaFocus, and GFNet on its efficient networks). `mlp`: two linear
layers on the flattened map (GFNet on ResNet and DenseNet). `clip`: as `conv` with batch norms, over the maps of all
of a clip's steps joined along channels (AdaFocus-TSM). `tanh`: as `conv` with batch norms and tanh (AdaFocusV2, which
learns by gradients through its patches and has no critic)."""


def grid_offsets(num_actions: int) -> torch.Tensor:
    """Returns the places of a grid's cells, float32 [A,2].

    Cell k of an n x n grid lies at row floor(k/n)/(n-1), column (k mod n)/(n-1).
    """
    n = round(num_actions**0.5)
    if n * n != num_actions or n < 2:
        raise ValueError(f"{num_actions} actions are no square grid")
    return torch.tensor([[(k // n) / (n - 1), (k % n) / (n - 1)] for k in range(num_actions)])


def make_encoder(*, encoder: Encoder, map_channels: int, map_side: int, hidden: int, width: int) -> nn.Sequential:
    """Makes the layers from maps [N,C,h,w] to codes [N,hidden].

    `width` is the number of channels of the 1x1 convolution, or of outputs of the first linear layer.
    """
    cells = map_side * map_side
    match encoder:
        case "conv":
            return nn.Sequential(
                nn.Conv2d(map_channels, width, 1, bias=False),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(width * cells, hidden),
                nn.ReLU(),
            )
        case "mlp":
            # Names count from the first linear layer, so the flattening is done by the caller.
            return nn.Sequential(nn.Linear(map_channels * cells, width), nn.ReLU(), nn.Linear(width, hidden), nn.ReLU())
        case "clip":
            return nn.Sequential(
                nn.Conv2d(map_channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(width * cells, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
            )
        case "tanh":
            return nn.Sequential(
                nn.Conv2d(map_channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.Tanh(),
                nn.Flatten(),
                nn.Linear(width * cells, hidden),
                nn.BatchNorm1d(hidden),
                nn.Tanh(),
            )


class RecurrentPolicy(nn.Module):
    """A policy that reads one map per step, keeps a GRU's state, and decides where to look.

    `reads`: `glance` for AdaFocus, `patch` for GFNet. With the encoder `clip` it acts once per clip. `std` is the
    spread with which continuous places are drawn when not greedy.
    """

    offsets: torch.Tensor

    def __init__(
        self,
        *,
        kind: PlaceKind,
        encoder: Encoder,
        map_channels: int,
        map_side: int,
        hidden: int = 1024,
        width: int | None = None,
        num_actions: int = 49,
        std: float = 0.25,
        reads: Reads = "glance",
    ) -> None:
        super().__init__()
        if width is None:
            width = {"conv": 32, "mlp": 2048, "clip": 64, "tanh": 64}[encoder]
        self.kind = kind
        self.encoder = encoder
        self.hidden = hidden
        self.num_actions = num_actions
        self.std = std
        self._reads = reads
        self.state_encoder = make_encoder(
            encoder=encoder, map_channels=map_channels, map_side=map_side, hidden=hidden, width=width
        )
        self.gru = nn.GRU(hidden, hidden)
        # A Sequential only for the name: published checkpoints call the layer `actor.0`.
        self.actor = nn.Sequential(nn.Linear(hidden, num_actions if kind == "grid" else 2))
        self.critic = None if encoder == "tanh" else nn.Sequential(nn.Linear(hidden, 1))
        if kind == "grid":
            self.register_buffer("offsets", grid_offsets(num_actions), persistent=False)

    @property
    def reads(self) -> Reads:
        return self._reads

    @property
    def scope(self) -> Literal["step", "clip"]:
        return "clip" if self.encoder == "clip" else "step"

    def initial_state(self, num_clips: int) -> PolicyState:
        zeros = self.actor[0].weight.new_zeros((num_clips, self.hidden))  # type: ignore[operator]
        return PolicyState(num_clips=num_clips, tensors={"hidden": zeros})

    def encode(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Returns the codes [N,hidden] of maps [N,C,h,w]."""
        if self.encoder == "mlp":
            feature_map = feature_map.flatten(1)
        return self.state_encoder(feature_map)

    def act(
        self,
        observation: Observation,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
        code: torch.Tensor | None = None,
    ) -> tuple[Actions, PolicyState]:
        if code is None:
            code = self.encode(observation.feature_map)
        hidden = self.gru(code.unsqueeze(0), state.tensors["hidden"].unsqueeze(0))[0].squeeze(0)
        raw = self.actor(hidden)
        choice = self._choose(raw, greedy=greedy, generators=generators)
        log_prob, entropy = self._score(raw, choice)
        actions = Actions(
            offsets=self.offsets[choice] if self.kind == "grid" else choice,
            focus=torch.ones(state.num_clips, dtype=torch.bool, device=raw.device),
            choice=choice,
            log_prob=log_prob,
            entropy=entropy,
            value=None if self.critic is None else self.critic(hidden).squeeze(-1),
            context=hidden,
        )
        return actions, PolicyState(num_clips=state.num_clips, tensors={"hidden": hidden})

    def act_ahead(self, codes: torch.Tensor, state: PolicyState) -> tuple[Actions, PolicyState]:
        """Decides all steps with one call of the GRU: its input products then share one pass over its weights, which at
        1024 units are 12.6 MB and else are read anew for every frame."""
        hidden = self._states(codes, state.tensors["hidden"])
        choice = self._choose(self.actor(hidden), greedy=True, generators=None).transpose(0, 1)
        actions = Actions(
            offsets=self.offsets[choice] if self.kind == "grid" else choice,
            focus=torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device),
            choice=choice,
            context=hidden.transpose(0, 1),
        )
        return actions, PolicyState(num_clips=state.num_clips, tensors={"hidden": hidden[-1]})

    def evaluate_choices(
        self, feature_maps: torch.Tensor, choices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns how likely past choices are now, from a zero state: log-probability, entropy, value, each [B,T].

        feature_maps [B,T,C,h,w]; choices int64 [B,T] or float32 [B,T,2].
        """
        if self.critic is None:
            raise ValueError(f"a policy with the encoder {self.encoder} has no critic: it is not learned by PPO")
        clips, steps = feature_maps.shape[:2]
        codes = self.encode(feature_maps.flatten(0, 1)).unflatten(0, (clips, steps))
        hidden = self._states(codes).transpose(0, 1)
        log_prob, entropy = self._score(self.actor(hidden), choices)
        return log_prob, entropy, self.critic(hidden).squeeze(-1)

    def logits(self, feature_maps: torch.Tensor) -> torch.Tensor:
        """Returns the actor's output before softmax or sigmoid, [B,T,A] or [B,T,2], for maps [B,T,C,h,w]."""
        clips, steps = feature_maps.shape[:2]
        codes = self.encode(feature_maps.flatten(0, 1)).unflatten(0, (clips, steps))
        return self.actor(self._states(codes)).transpose(0, 1)

    def _states(self, codes: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the GRU's state after each step, [T,B,hidden], for codes [B,T,hidden].

        Steps lie first: only then does torch multiply those of all clips by the input's weights at once.
        """
        before = None if hidden is None else hidden.unsqueeze(0)
        return self.gru(codes.transpose(0, 1).contiguous(), before)[0]

    def _choose(self, raw: torch.Tensor, *, greedy: bool, generators: Generators) -> torch.Tensor:
        if self.kind == "continuous":
            mean = torch.sigmoid(raw)
            if greedy:
                return mean
            draw = normal((len(raw), 2), generators, raw.device)
            return (mean + self.std * draw).clamp(0, 1).detach()
        if greedy:
            return raw.argmax(dim=-1)
        # One uniform draw per clip through the cumulative distribution: torch's own multinomial takes one
        # generator for the whole batch, and a clip's draws would depend on its neighbours.
        cumulative = torch.softmax(raw.detach().double(), dim=-1).cumsum(dim=-1)
        draw = uniform((len(raw), 1), generators, raw.device).double() * cumulative[:, -1:]
        return torch.searchsorted(cumulative, draw, right=True).squeeze(-1).clamp(max=self.num_actions - 1)

    def _score(self, raw: torch.Tensor, choice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.kind == "grid":
            return categorical_log_prob(raw, choice), categorical_entropy(raw)
        mean = torch.sigmoid(raw)
        return gaussian_log_prob(mean, choice, std=self.std), gaussian_entropy(mean, std=self.std)


Sees = Literal["glance", "classifier"]


class SkipHead(nn.Module):
    """A head that decides before any patch is cut whether a frame is worth one; a skipped frame costs its glance only.

    It reads the place policy's recurrent state, its own previous decision and the price of a focus. Where `sees` is
    `classifier` it also reads the classifier's state after the step before: that takes about half the focuses for the
    same accuracy, but a clip then goes step by step. Price and `sees` are inputs, and the head is trained with many
    prices and both ways of seeing: one checkpoint serves every budget and both kinds of run.
    """

    price: torch.Tensor

    def __init__(
        self,
        *,
        policy_hidden: int,
        classifier_hidden: int,
        hidden: int = 64,
        price: float = 0.01,
        sees: Sees = "classifier",
    ) -> None:
        super().__init__()
        self.classifier_hidden = classifier_hidden
        self.hidden = hidden
        self.sees: Sees = sees
        self.inputs = nn.Linear(policy_hidden + classifier_hidden + 3, hidden)
        self.gru = nn.GRU(hidden, hidden)
        self.out = nn.Linear(hidden + 2, 1)
        # The head begins by focusing on most frames: it cannot learn what a frame is worth that it skips.
        nn.init.constant_(self.out.bias, 1.0)
        self.register_buffer("price", torch.tensor(float(price)), persistent=False)

    @property
    def reads(self) -> Reads:
        return self.sees

    def with_price(self, price: float) -> SkipHead:
        """Returns this head, which decides at another price per focus from now on."""
        if not price > 0:
            raise ValueError(f"the price of a focus is {price}, not above 0")
        self.price.fill_(price)
        return self

    def initial_state(self, num_clips: int) -> PolicyState:
        weight = self.out.weight
        return PolicyState(
            num_clips=num_clips,
            tensors={
                "hidden": weight.new_zeros((num_clips, self.hidden)),
                "previous": weight.new_zeros((num_clips, 1)),
            },
        )

    def step(
        self,
        context: torch.Tensor,
        classifier_state: torch.Tensor,
        price: torch.Tensor,
        hidden: torch.Tensor,
        previous: torch.Tensor,
        *,
        is_seeing: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the logit of focusing [B] and the new hidden state.

        context [B,policy_hidden], classifier_state [B,classifier_hidden], price [B], hidden [B,hidden], previous [B,1].
        is_seeing bool [B]: where False, the classifier's state is not seen.
        """
        shown = is_seeing.to(context.dtype)
        # ln(price) is between about -6 and -2 for prices that matter: moved and scaled to about -1..1.
        scalars = torch.stack(((price.log() + 4) / 2, shown), dim=-1)
        seen = classifier_state * shown.unsqueeze(-1)
        code = torch.relu(self.inputs(torch.cat((context, seen, previous, scalars), dim=-1)))
        hidden = self.gru(code.unsqueeze(0), hidden.unsqueeze(0))[0].squeeze(0)
        # Price and `is_seeing` reach the last layer too, so that they shift the decision from the first update on.
        return self.out(torch.cat((hidden, scalars), dim=-1)).squeeze(-1), hidden

    def decide(
        self,
        observation: Observation,
        context: torch.Tensor | None,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, PolicyState]:
        if context is None:
            raise ValueError("learned skipping needs the learned place policy's state")
        seen = observation.classifier_state
        if seen is None or self.sees == "glance":
            seen = context.new_zeros((len(context), self.classifier_hidden))
        logit, hidden = self.step(
            context,
            seen,
            self.price.expand(len(context)),
            state.tensors["hidden"],
            state.tensors["previous"],
            is_seeing=torch.full((len(context),), self.sees == "classifier", device=context.device),
        )
        if greedy:
            focus = logit > 0
        else:
            focus = uniform((len(logit),), generators, logit.device) < torch.sigmoid(logit.detach())
        log_prob = nn.functional.logsigmoid(torch.where(focus, logit, -logit))
        previous = focus.to(hidden.dtype).unsqueeze(-1)
        new = PolicyState(num_clips=state.num_clips, tensors={"hidden": hidden, "previous": previous})
        return focus, log_prob, new


def price_for_share(table: Mapping[float, float], share: float) -> float | None:
    """Returns the price at which a head focuses on `share` of the frames, from a measured table price -> share.

    Between two measured prices the logarithm of the price is interpolated; a share that is outside the table by more
    than a thousandth gives None.
    """
    rows = sorted(table.items())
    if not rows:
        raise ValueError("the table of prices is empty")
    for (cheap, more), (dear, less) in itertools.pairwise(rows):
        if less <= share <= more and more > less:
            part = (more - share) / (more - less)
            return math.exp(math.log(cheap) + part * (math.log(dear) - math.log(cheap)))
    if not min(table.values()) - 1e-3 <= share <= max(table.values()) + 1e-3:
        return None
    return min(rows, key=lambda row: abs(row[1] - share))[0]
