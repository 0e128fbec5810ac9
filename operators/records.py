"""The records that travel through the system, and the glossary. Read this file first.

source   a file, a folder of numbered images, a still image or a camera
frame    one picture of a source, numbered from 0 in the order in which the decoder gives them
view     what the networks see of a frame: resized and centre cropped, uint8 RGB
clip     a range of frames that gets one label; its range is a Window
step     one of the T places in a clip's sample, 0..T-1; a short video repeats frames, so two steps may show one frame
glance   the light network's look at a whole view
focus    the heavy network's look at a patch
patch    a small square cut out of a view
decision where to look at one step, or to skip it
label    the answer for a clip: one output row

On the wire arrays are NumPy; inside an operator they are tensors. Ranges are half open. Letters in shapes:
B clips, T steps, F frames, N patches, C channels, H W h w height and width, P patch side, D feature, K classes.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from operators.errors import ErrorCode
from operators.passwords import without_password


class Media(enum.StrEnum):
    """The kinds of sources."""

    VIDEO = "video"
    IMAGE = "image"
    FRAMES = "frames"
    """A folder of numbered images: one video."""


class StepKind(enum.StrEnum):
    """Whether a step is focused or skipped."""

    FOCUS = "focus"
    SKIP = "skip"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """A source: something that frames are read from."""

    source_id: str
    """32 hex digits of a hash of the absolute path, or of the URI without its password."""
    uri: str = field(repr=False)
    """The absolute path or URL that is opened, with its password. Messages and tables use `shown_uri` instead."""
    video_id: str
    media: Media = Media.VIDEO
    truth: tuple[str, ...] | None = None
    """The annotation's labels; None where there is no annotation."""

    @property
    def shown_uri(self) -> str:
        return without_password(self.uri)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SourceFacts:
    """The facts that are known of a source once it has been read."""

    width: int
    height: int
    """Coded size in pixels, before rotation and before non-square pixels are made square."""
    rotation: int = 0
    """Degrees clockwise by which the coded picture is turned for display: 0, 90, 180, 270."""
    num_frames: int = 0
    """The number of frames that the decoder gives for the whole source, as far as known."""
    num_corrupt: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Window:
    """A range of a stream that makes one clip, and the rows of a FrameBatch that its steps show."""

    clip_id: str
    """32 hex digits: a hash of source_id and the clip's start."""
    start_s: float
    end_s: float
    glance_rows: np.ndarray
    """int64 [T]: the row of the FrameBatch that each glance step shows."""
    candidate_rows: np.ndarray
    """int64 [T']: the rows of the FrameBatch among which a gaze picks, after the glance, the frames that are focused.

    The same array as `glance_rows` where a frame is focused where it was glanced at."""
    coverage: float = 1.0
    """The share of the wanted frames that were really there."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameBatch:
    """Views of distinct frames of one source, in the order of time, and the windows that are complete in it."""

    source: Source
    pixels: np.ndarray
    """uint8 RGB [F,H,W,3]"""
    pts_s: np.ndarray
    """float64 [F]: 0 is the stream's first frame."""
    frame_index: np.ndarray
    """int64 [F]: number of the frame in decoder order."""
    view_yxhw: tuple[float, float, float, float]
    """Where the view lies in the displayed frame, in units of its height and width."""
    facts: SourceFacts
    windows: tuple[Window, ...]
    decode_s: float = 0.0
    opened_unix_s: float = 0.0

    @property
    def num_bytes(self) -> int:
        return int(self.pixels.nbytes)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CameraFrame:
    """A frame of a camera that is to be analysed: its view, and its place in time.

    A segment is a stretch of a camera's stream without a gap. Its first frame is tick 0 of the grid of analysis;
    tick j lies at segment_start_s + j / analysis_fps.
    """

    pixels: np.ndarray
    """uint8 RGB [S,S,3]: the view."""
    time_unix_s: float
    """When the frame was taken: the camera's clock, repaired and tied to the wall clock by the frames' arrival."""
    received_unix_s: float
    """When its last packet arrived."""
    frame_index: int
    """Its number in decoder order since the camera was joined."""
    segment_start_s: float
    """Unix time of the segment's tick 0. Where it changes, whatever state runs along the stream starts at zero."""
    tick: int
    """Its number in the segment's grid of analysis; a number that is missing was not received, or was dropped."""
    view_yxhw: tuple[float, float, float, float]
    """Where the view lies in the displayed frame, in units of its height and width."""
    facts: SourceFacts


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraCounts:
    """Counts of what became of a camera's packets and frames since it was joined."""

    num_packets: int = 0
    num_decoded: int = 0
    num_analysed: int = 0
    """Frames that were made into views."""
    num_before_keyframe: int = 0
    """The packets and frames that were dropped before the first keyframe, after joining in the middle."""
    num_after_loss: int = 0
    """The frames that were dropped before the next keyframe, after something was lost on the way."""
    num_corrupt: int = 0
    num_joining: int = 0
    """The frames that had been waiting somewhere when the camera was joined: their arrival does not show their time."""
    num_behind: int = 0
    """The views that were dropped, oldest first, because nobody fetched them."""
    num_restamped: int = 0
    """The frames whose own time stamp was missing or wrong."""
    num_timelines: int = 0
    """The number of times that the camera's clock began anew."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Glance:
    """The light network's answer for N views, as tensors. It never leaves the stream worker."""

    feature_map: Any
    """[N,C,h,w]"""
    feature: Any
    """[N,C]"""
    logits: Any = None
    """[N,K] where the glance network's own head is part of the answer (GFNet's efficient families, AdaFocus-TSM)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Observation:
    """All that a policy may look at, for one step of B clips, as tensors."""

    feature_map: Any
    """[B,C,h,w]: the map of the glance at this step's frame, or of the last patch (GFNet)."""
    classifier_state: Any = None
    """[B,D] after the step before; None where the policy acts before anything is classified."""
    step: int = 0
    truth_yx: Any = None
    """[B,2]: the evidence's centre in units of the view; only for the oracle."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decision:
    """The decision for one step of one clip."""

    step: int
    kind: StepKind
    box_yxyx: tuple[float, float, float, float] | None = None
    """In [0,1] of the view; None unless the step is focused."""
    row: int | None = None
    """The row of the clip's FrameBatch that is focused; None unless the step is focused."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatchBatch:
    """Patches of any number of clips, all of one size."""

    pixels: np.ndarray
    """uint8 RGB [N,P,P,3]; [N,P+1,P+1,3] where there are shifts."""
    shifts: np.ndarray | None = None
    """float32 [N,2], (row, column) in [0,1]: how far after its first pixel a patch begins, where patches lie between
    pixels. The focus network's worker mixes the pixels: floats would be four times as many bytes on the way there."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatchFeatures:
    """The heavy network's answer, row by row as in the PatchBatch."""

    feature: np.ndarray
    """float32 [N,D]"""
    feature_map: np.ndarray | None = None
    """float32 [N,C,h,w] where a policy reads it (GFNet)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatchPlace:
    """The place of a patch, for the output."""

    frame: int
    pts_s: float
    y: float
    x: float
    h: float
    w: float
    """In units of the displayed frame's height and width."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipLabel:
    """One output row. A clip that failed is a row too, with error_code set, and None for whatever is not known of it:
    nothing but its start where its source was never opened."""

    video_id: str
    clip_id: str
    source_uri: str
    start_s: float = 0.0
    end_s: float | None = None
    truth: tuple[str, ...] | None = None
    camera: str | None = None
    received_at: datetime | None = None
    label: str | None = None
    label_id: int | None = None
    score: float | None = None
    topk: tuple[tuple[str, int, float], ...] = ()
    """(label, label_id, score), best first."""
    logits: np.ndarray | None = None
    """float32 [K]"""
    step_logits: np.ndarray | None = None
    """float32 [steps,K]"""
    frames_total: int | None = None
    frames_focused: int | None = None
    frames_skipped: int | None = None
    stopped_at: int | None = None
    patches: tuple[PatchPlace, ...] = ()
    gmacs: float | None = None
    gmacs_full: float | None = None
    step_gmacs: tuple[float, ...] | None = None
    """The cost of the clip up to each classified step; it is there together with step_logits."""
    decode_s: float | None = None
    latency_s: float | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    num_corrupt: int | None = None
    coverage: float | None = None
    error_code: ErrorCode | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if without_password(self.source_uri) != self.source_uri:
            raise ValueError("source_uri of a label holds a password")


def source_id(uri: str) -> str:
    """Returns the id of a source: 32 hex digits of a hash of its absolute path, or of its URI without the password."""
    return hashlib.sha256(without_password(uri).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def clip_id(source: str, start_s: float) -> str:
    """Returns the id of the clip of a source that starts at `start_s`: 32 hex digits. Resume goes by this id."""
    return hashlib.sha256(f"{source}@{start_s:.6f}".encode()).hexdigest()[:32]
