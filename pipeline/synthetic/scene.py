"""What a synthetic video shows, frame by frame: NumPy and OpenCV only, nothing is written here.

Lengths are in view pixels, 1/96 of the frame's short side, so that every frame size shows the same scene to networks
that see a centre crop of 96 pixels. A fine glyph on a coloured disc (the carrier) says the class. The carrier can be
found at a third of the view's resolution; there the glyph's period of 3 view pixels is one pixel, and gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

VIEW_PX = 96
CARRIER_RADIUS = 11.0
PLATE_SIDE = 14.0
PERIOD = 3.0
"""At 4.2 a network that was shown the place read all glyphs from the 32 pixel glance, from their aliases; at 3.0, with
the stains below, 27% of five orientations. From patches both were learnt equally fast (small networks, 3,000 crops)."""
MARGIN = 14.0
"""A carrier's centre stays this far inside the centre square: a crop of 224 of 256 pixels keeps the whole plate."""

GRAIN = 3.0
"""Grey levels of pixel noise; twice this makes the files four times as large."""

STAIN = 20.0
"""Grey levels of blots three view pixels wide on a plate, new in every frame: they drown what aliases are left."""

COLOURS = {
    "red": (205, 55, 50),
    "blue": (50, 80, 210),
    "yellow": (215, 185, 45),
    "green": (45, 165, 75),
    "purple": (150, 65, 185),
    "teal": (50, 180, 185),
}
DIRECTIONS = ("right", "up-right", "up", "up-left", "left", "down-left", "down", "down-right")
ASPECTS = (1.0, 4 / 3, 16 / 9, 3 / 4, 9 / 16)
STEPS_PER_VIDEO = 12
"""Focus steps that a motion is made for. From one to the next the texture moves 0.14 to 0.2 of its period: less than
half even where frames are drawn at random within equal pieces of the video, so that the direction stays clear."""

ArchiveKind = Literal["needle", "motion"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoPlan:
    """One video before it is painted. Whatever is random in it follows from `seed`."""

    name: str
    subset: str
    label_id: int
    width: int
    height: int
    fps: int
    num_frames: int
    seed: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneLook:
    """What the scenes of one archive have in common."""

    kind: ArchiveKind
    num_classes: int
    num_hues: int
    visible: float
    """Share of the frames that show the evidence."""
    clutter: float
    """1.0: fourteen shapes, three checker boards and two distractors."""


def class_names(look: SceneLook) -> tuple[str, ...]:
    """`red-036`: stripes at 36 degrees anticlockwise from the horizontal on a red disc. Motion: the direction."""
    if look.kind == "motion":
        return DIRECTIONS[:: len(DIRECTIONS) // look.num_classes]
    per_hue = look.num_classes // look.num_hues
    hues = tuple(COLOURS)[: look.num_hues]
    return tuple(f"{hue}-{round(180 * k / per_hue):03d}" for hue in hues for k in range(per_hue))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Actor:
    """A disc that may carry a plate: where it is and what it shows in every frame."""

    rgb: tuple[int, int, int]
    centre: np.ndarray
    """float64 [F,2]: row, column in view pixels of the centre square."""
    state: np.ndarray
    """int64 [F]: _ABSENT, _BLANK or _SHOWN."""
    axes: np.ndarray
    """float64 [F,A]: the angle of each grating's stripes, radians anticlockwise from the horizontal."""
    phases: np.ndarray
    """float64 [F,A]"""
    contrast: np.ndarray
    """float64 [F]: grey levels."""


_ABSENT, _BLANK, _SHOWN = 0, 1, 2


def _runs(rng: np.random.Generator, num_frames: int, fps: int, shares: tuple[float, ...]) -> np.ndarray:
    """int64 [F,2]: state, and the number of its run. Runs of 0.15 to 0.5 s: nothing flickers."""
    shortest, longest = max(1, round(0.15 * fps)), max(1, round(0.5 * fps))
    out = np.empty((num_frames, 2), np.int64)
    frame = run = 0
    while frame < num_frames:
        stop = frame + int(rng.integers(shortest, longest + 1))
        out[frame:stop] = int(rng.choice(len(shares), p=shares)), run
        frame, run = stop, run + 1
    return out


def _seen_by_eight(state: np.ndarray) -> bool:
    """Whether the middles of eight equal pieces of the video show the evidence at least once."""
    middles = ((np.arange(8) + 0.5) * len(state) / 8).astype(np.int64)
    return bool((state[middles] == _SHOWN).any())


def _path(rng: np.random.Generator, num_frames: int, fps: int, *, is_calm: bool) -> np.ndarray:
    """float64 [F,2]: a line and a swing, reflected at the margins; calm: within a pixel of one place."""
    time_s = np.arange(num_frames)[:, None] / fps
    start = rng.uniform(MARGIN, VIEW_PX - MARGIN, 2)
    velocity = rng.uniform(-10, 10, 2) * (not is_calm)
    swing = rng.uniform(0.3, 1.0, 2) if is_calm else rng.uniform(2, 8, 2)
    rate = rng.uniform(0.15, 0.5, 2)
    raw = start + velocity * time_s + swing * np.sin(2 * np.pi * (rate * time_s + rng.uniform(0, 1, 2)))
    span = VIEW_PX - 2 * MARGIN
    folded = np.abs((raw - MARGIN) % (2 * span))
    return MARGIN + np.where(folded > span, 2 * span - folded, folded)


def _actor(
    rng: np.random.Generator,
    plan: VideoPlan,
    look: SceneLook,
    *,
    hue: int,
    class_in_hue: int,
    shares: tuple[float, ...],
    is_still: bool = False,
) -> _Actor:
    """A carrier whose plate shows the given class, in runs of the given shares (absent, blank, shown).

    is_still: its texture does not move, and so shows no class of motion.
    """
    frames = plan.num_frames
    runs = _runs(rng, frames, plan.fps, shares)
    base = np.array(list(COLOURS.values())[hue])
    red, green, blue = (int(v) for v in np.clip(base + rng.integers(-12, 13, 3), 0, 255))
    num_runs = int(runs[-1, 1]) + 1
    contrast = (95 * rng.uniform(0.35, 1.0, num_runs))[runs[:, 1]]
    if look.kind == "needle":
        spacing = np.pi / (look.num_classes // look.num_hues)
        jitter = rng.uniform(-0.12, 0.12, num_runs)[runs[:, 1]]
        axes = (spacing * (class_in_hue + jitter))[:, None]
        phases = rng.uniform(0, 2 * np.pi, (num_runs, 1))[runs[:, 1]]
    else:
        # The sum of gratings across all axes of motion looks the same for every class: only its shift tells.
        num_axes = max(2, look.num_classes // 2)
        direction = 2 * np.pi * class_in_hue / look.num_classes
        fixed = np.pi / 2 - np.pi * np.arange(num_axes) / num_axes
        per_frame = PERIOD * rng.uniform(0.14, 0.2) * STEPS_PER_VIDEO / frames * (not is_still)
        shift = per_frame * np.arange(frames)
        # In x and y, y down: stripes at angle a vary along (sin a, cos a), the motion goes along (cos d, -sin d).
        along = np.sin(fixed) * np.cos(direction) - np.cos(fixed) * np.sin(direction)
        start = rng.uniform(0, 2 * np.pi, num_axes)
        axes = np.broadcast_to(fixed, (frames, num_axes))
        phases = start - 2 * np.pi / PERIOD * shift[:, None] * along
        contrast = np.full(frames, contrast[0])
    return _Actor(
        rgb=(red, green, blue),
        centre=_path(rng, frames, plan.fps, is_calm=look.kind == "motion"),
        state=runs[:, 0],
        axes=axes,
        phases=phases,
        contrast=contrast,
    )


def _cast(rng: np.random.Generator, plan: VideoPlan, look: SceneLook) -> list[_Actor]:
    """Distractors first, the carrier of the evidence last: it is painted over everything else."""
    per_hue = look.num_classes // look.num_hues if look.kind == "needle" else look.num_classes
    hue, own = divmod(plan.label_id, per_hue)
    actors = []
    for _ in range(round(2 * look.clutter)):
        other_hue = int(rng.integers(look.num_hues, len(COLOURS)))
        wrong = (own + int(rng.integers(1, per_hue))) % per_hue if per_hue > 1 else own
        # In motion the textures of others stand still: with other directions on them, a network that begins with
        # nothing learnt none from random places (28% of four classes after 500 steps).
        is_still = look.kind == "motion"
        shares = (0.0, 0.0, 1.0) if is_still else (0.15, 0.1, 0.75)
        actors.append(_actor(rng, plan, look, hue=other_hue, class_in_hue=wrong, shares=shares, is_still=is_still))
    hidden = 1.0 - look.visible
    shares = (hidden * 35 / 60, hidden * 25 / 60, look.visible)
    while True:
        actor = _actor(rng, plan, look, hue=hue, class_in_hue=own, shares=shares)
        if _seen_by_eight(actor.state):
            return [*actors, actor]


def _dull_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [H,W,3]: three octaves of noise, nearly grey."""
    canvas = np.full((height, width, 3), rng.uniform(90, 140), np.float32)
    for cells, strength in ((4, 26), (9, 16), (20, 9)):
        grey = rng.normal(0, strength, (cells, cells, 1)) + rng.normal(0, strength / 4, (cells, cells, 3))
        canvas += cv2.resize(grey.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _backdrop(rng: np.random.Generator, height: int, width: int, scale: float, clutter: float) -> np.ndarray:
    """uint8 [H,W,3]: noise, dull shapes, and checker boards that mean nothing."""
    canvas = np.ascontiguousarray(_dull_noise(rng, height, width))
    for _ in range(round(14 * clutter)):
        colour = tuple(int(v) for v in np.clip(rng.integers(60, 180) + rng.integers(-18, 19, 3), 0, 255))
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        dx, dy = (int(v * scale) for v in rng.integers(-26, 27, 2))
        match int(rng.integers(0, 3)):
            case 0:
                cv2.line(canvas, (x, y), (x + dx, y + dy), colour, max(1, round(scale)), cv2.LINE_AA)
            case 1:
                cv2.rectangle(canvas, (x, y), (x + dx, y + dy), colour, max(1, round(scale)))
            case _:
                cv2.circle(canvas, (x, y), max(2, int(rng.uniform(3, 12) * scale)), colour, -1, cv2.LINE_AA)
    cell = max(1, round(2.1 * scale))
    for _ in range(round(3 * clutter)):
        side = round(PLATE_SIDE * scale)
        x, y = (int(rng.integers(0, max(1, size - side))) for size in (width, height))
        rows, columns = np.ogrid[:side, :side]
        board = ((rows // cell + columns // cell) % 2) * 2 - 1
        patch = 128 + board * rng.uniform(25, 80)
        canvas[y : y + side, x : x + side] = patch[: height - y, : width - x, None].astype(np.uint8)
    return canvas


def _paint(
    frame: np.ndarray,
    actor: _Actor,
    index: int,
    scale: float,
    corner: tuple[float, float],
    rng: np.random.Generator,
) -> Box | None:
    """Paint one actor as it is in frame `index`; gives its plate's box in pixels (y, x, h, w) where it shows one."""
    if actor.state[index] == _ABSENT:
        return None
    row, column = corner[0] + actor.centre[index, 0] * scale, corner[1] + actor.centre[index, 1] * scale
    # cv2 counts from pixel centres, and takes four fractional bits.
    at = (round((column - 0.5) * 16), round((row - 0.5) * 16))
    cv2.circle(frame, at, round(CARRIER_RADIUS * scale * 16), actor.rgb, -1, cv2.LINE_AA, 4)
    side = round(PLATE_SIDE * scale)
    top, left = round(row - side / 2), round(column - side / 2)
    if actor.state[index] == _BLANK:
        return None
    across = (np.arange(left, left + side) + 0.5 - column) / scale
    down = (np.arange(top, top + side) + 0.5 - row) / scale
    wave = np.zeros((side, side))
    for axis, phase in zip(actor.axes[index], actor.phases[index], strict=True):
        wave += np.sin(2 * np.pi / PERIOD * (across * np.sin(axis) + down[:, None] * np.cos(axis)) + phase)
    grey = 128 + actor.contrast[index] * np.clip(1.5 * wave / np.sqrt(len(actor.axes[index])), -1, 1)
    stain = rng.normal(0, STAIN, (5, 5)).astype(np.float32)
    grey += cv2.resize(stain, (side, side), interpolation=cv2.INTER_CUBIC)
    frame[top : top + side, left : left + side] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)[:, :, None]
    return float(top), float(left), float(side), float(side)


def render(plan: VideoPlan, look: SceneLook) -> Iterator[tuple[np.ndarray, Box | None]]:
    """Frames uint8 RGB [H,W,3], each with the evidence's box (y, x, h, w in units of the frame) or None."""
    rng = np.random.default_rng(plan.seed)
    height, width = plan.height, plan.width
    short = min(height, width)
    scale = short / VIEW_PX
    corner = ((height - short) / 2, (width - short) / 2)
    actors = _cast(rng, plan, look)
    # The camera pans over a canvas that is larger than the frame by this much on every side.
    room = 8 * scale
    extent_h, extent_w = height + 2 * int(np.ceil(room)) + 2, width + 2 * int(np.ceil(room)) + 2
    backdrop = _backdrop(rng, extent_h, extent_w, scale, look.clutter)
    swing, phase = rng.uniform(0.3, 1.0, 2) * room, rng.uniform(0, 2 * np.pi, 2)
    rate = rng.uniform(0.05, 0.15, 2)
    grain = rng.normal(0, GRAIN, (height + 32, width + 32, 1)).astype(np.int16).repeat(3, axis=2)
    for index in range(plan.num_frames):
        pan = swing * np.sin(2 * np.pi * rate * index / plan.fps + phase)
        centre = (extent_w / 2 - 0.5 + pan[1], extent_h / 2 - 0.5 + pan[0])
        frame = cv2.getRectSubPix(backdrop, (width, height), centre)
        box = None
        for actor in actors:
            box = _paint(frame, actor, index, scale, corner, rng)
        y, x = rng.integers(0, 32, 2)
        frame = cv2.add(frame, grain[y : y + height, x : x + width], dtype=cv2.CV_8U)
        yield frame, box and (box[0] / height, box[1] / width, box[2] / height, box[3] / width)
