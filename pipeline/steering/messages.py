"""The messages between the driver and its workers: small, and without pixels.

Every call carries a list of requests and the payloads they point into; every reply answers row by row.
Payloads (frames, patches, features) are named by handles, which only an executor can open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from operators.records import ClipLabel, Source


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows start..stop of a payload; `payload` counts within the call's list of payloads."""

    payload: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Asks for a source to be read from `first_window` on; one that is open and has got there is gone on with."""

    source: Source
    first_window: int = 0


@dataclass(frozen=True, slots=True)
class ClipRef:
    """A clip that was cut from a source, by its id and its place there."""

    clip_id: str
    start_s: float
    end_s: float | None
    """None where the source was not read as far as the clip's end."""
    window: int = 0
    """The number of its window in the source, for reading again from there."""


@dataclass(frozen=True, slots=True)
class PieceInfo:
    """One FrameBatch, at `row` of the reply's payload (a list of FrameBatch)."""

    row: int
    num_bytes: int
    clips: tuple[ClipRef, ...]


@dataclass(frozen=True, slots=True)
class ReadReply:
    """What one call got out of a source; where it is neither done nor failed, the next call goes on."""

    source_id: str
    pieces: tuple[PieceInfo, ...] = ()
    is_done: bool = False
    failed: ClipLabel | None = None


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Asks for the clips of a FrameBatch, row `frames.start` of its payload, to be opened: those still wanted."""

    frames: Slice
    clip_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepRequest:
    """Hands a clip the features of all the patches that it is waiting for, in order."""

    clip_id: str
    features: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Advance:
    """A clip that was opened or stepped: it has a label, or patches start..stop of the reply's PatchBatch."""

    clip_id: str
    label: ClipLabel | None = None
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """A part of the table: labels, and the number by which a part that is sent twice is recognised."""

    sequence: int
    labels: tuple[ClipLabel, ...]


@dataclass(frozen=True, slots=True)
class CallCost:
    """The time that a call took and the items that it worked on, for the figures at the end of a run."""

    busy_s: float = 0.0
    wait_s: float = 0.0
    num_items: int = 0
    num_padded: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A worker's answer to a call, row by row as the requests were."""

    rows: tuple[Any, ...]
    work: CallCost = CallCost()
    is_spent: bool = False
    """Whether the worker holds nothing and wants a fresh process in its place."""


def distinct_payloads(handles: Sequence[Any]) -> tuple[tuple[Any, ...], list[int]]:
    """The distinct handles in order of first use, and for each given handle its place among them."""
    distinct: list[Any] = []
    places: dict[int, int] = {}
    rows: list[int] = []
    for handle in handles:
        if id(handle) not in places:
            places[id(handle)] = len(distinct)
            distinct.append(handle)
        rows.append(places[id(handle)])
    return tuple(distinct), rows
