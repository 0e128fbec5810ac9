"""A frame becomes the view that networks see: upright, resized once, centre cropped. Patches are cut out of views.

The resize is the published preprocessing's: antialiased, equal to Pillow's within one grey level. Bicubic weights are
negative in part, so there Pillow's order counts too: along the rows of the displayed frame first, rounded and clipped
to 0..255 in between. Only what the crop shows is resized.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_BLOCK = 8
"""Output pixels per block of a resize: the weights are a band, and short blocks skip its zeros. 1280x720 to a view
on one AVX-512 core: 0.7 ms with blocks of 8, 1.9 ms with 32, 11 ms with the whole matrix."""

_ROWS = 128
"""Rows per pass of a resize along rows: as floats they stay in a core's cache."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """The way in which a coded picture is shown: mirrored left to right or not, then turned clockwise."""

    rotation: int = 0
    """Degrees clockwise: 0, 90, 180, 270."""
    is_mirrored: bool = False
    pixel_aspect: Fraction = Fraction(1)
    """Width of a coded pixel over its height."""

    def __post_init__(self) -> None:
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"rotation must be 0, 90, 180 or 270, not {self.rotation}")
        if self.pixel_aspect <= 0:
            raise ValueError(f"pixel_aspect must be positive, not {self.pixel_aspect}")


UPRIGHT = Orientation()


@dataclass(frozen=True, slots=True)
class Region:
    """Rows and columns of the coded frame; half open."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class _Band:
    """One axis of a resize: which source pixels make which output pixels."""

    start: int
    stop: int
    blocks: tuple[tuple[slice, slice, np.ndarray], ...] | None
    """(source relative to start, output, float32 [outputs, sources]); None where nothing is resized."""
    size: int


@dataclass(frozen=True, slots=True)
class _Geometry:
    region: Region
    rows: _Band
    columns: _Band
    column_blocks: tuple[tuple[slice, slice, np.ndarray], ...] | None
    """The column weights over interleaved RGB, transposed: one matrix product does three channels."""
    is_turned: bool
    """Whether the rows of the displayed frame are the columns of the coded one."""
    box_yxhw: tuple[float, float, float, float]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}


def _band(source: int, target: int, first: int, size: int, interpolation: str) -> _Band:
    """The weights that make output pixels first..first+size of a resize from `source` to `target` pixels."""
    if source == target:
        return _Band(start=first, stop=first + size, blocks=None, size=size)
    kernel, radius = _FILTERS[interpolation]
    scale = source / target
    stretch = max(scale, 1.0)
    support = radius * stretch
    taps: list[tuple[int, np.ndarray]] = []
    for i in range(first, first + size):
        centre = (i + 0.5) * scale
        # Pillow rounds both ends by adding a half and truncating; the same pixels need the same taps.
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), source)
        weights = kernel((np.arange(low, high) - centre + 0.5) / stretch)
        taps.append((low, weights / weights.sum()))
    start = taps[0][0]
    stop = max(low + len(weights) for low, weights in taps)
    blocks = []
    for begin in range(0, size, _BLOCK):
        part = taps[begin : begin + _BLOCK]
        low = part[0][0]
        high = max(at + len(weights) for at, weights in part)
        matrix = np.zeros((len(part), high - low), np.float32)
        for row, (at, weights) in enumerate(part):
            matrix[row, at - low : at - low + len(weights)] = weights
        blocks.append((slice(low - start, high - start), slice(begin, begin + len(part)), matrix))
    return _Band(start=start, stop=stop, blocks=tuple(blocks), size=size)


def _over_rgb(band: _Band) -> tuple[tuple[slice, slice, np.ndarray], ...] | None:
    if band.blocks is None:
        return None
    return tuple(
        (
            slice(source.start * 3, source.stop * 3),
            slice(output.start * 3, output.stop * 3),
            np.ascontiguousarray(np.kron(matrix, np.eye(3, dtype=np.float32)).T),
        )
        for source, output, matrix in band.blocks
    )


def _rows(x: np.ndarray, geometry: _Geometry) -> np.ndarray:
    """[H,W*3] -> [crop,W*3], float32 where anything is resized"""
    rows = geometry.rows
    if rows.blocks is None:
        return x
    result = np.empty((rows.size, x.shape[1]), np.float32)
    for source, output, matrix in rows.blocks:
        np.matmul(matrix, x[source].astype(np.float32), out=result[output])
    return result


def _columns(x: np.ndarray, geometry: _Geometry) -> np.ndarray:
    """[H,W*3] -> [H,crop*3], float32 where anything is resized"""
    if geometry.column_blocks is None:
        return x
    result = np.empty((x.shape[0], geometry.columns.size * 3), np.float32)
    for top in range(0, x.shape[0], _ROWS):
        part = x[top : top + _ROWS].astype(np.float32)
        for source, output, matrix in geometry.column_blocks:
            np.matmul(part[:, source], matrix, out=result[top : top + _ROWS, output])
    return result


def _rounded(x: np.ndarray) -> np.ndarray:
    """To the nearest grey level, halves up, as Pillow rounds."""
    if x.dtype == np.uint8:
        return x
    x += 0.5
    return np.clip(x, 0.0, 255.5, out=x).astype(np.uint8)


class Viewer:
    """Makes views out of full-size RGB frames. Any number of threads may share one."""

    def __init__(
        self,
        *,
        resize_px: int = 256,
        crop_px: int = 224,
        square_pixels: bool = True,
        interpolation: str = "bilinear",
    ) -> None:
        """`resize_px`: the short side after the resize, `crop_px`: the side of the centre crop."""
        if not 0 < crop_px <= resize_px:
            raise ValueError(f"need 0 < crop_px <= resize_px, not {crop_px} and {resize_px}")
        if interpolation not in _FILTERS:
            raise ValueError(f"interpolation must be one of {', '.join(_FILTERS)}, not {interpolation!r}")
        self.resize_px = resize_px
        self.crop_px = crop_px
        self.square_pixels = square_pixels
        self.interpolation = interpolation

    def resized_size(self, height: int, width: int, orientation: Orientation = UPRIGHT) -> tuple[int, int]:
        """(height, width) of the whole displayed frame after the resize: the short side is resize_px."""
        if height <= 0 or width <= 0:
            raise ValueError(f"a frame has positive sides, not {width}x{height}")
        aspect = orientation.pixel_aspect if self.square_pixels else Fraction(1)
        # Integers in the ratio of the displayed sides: the long side is truncated once, from exact numbers.
        high, wide = height * aspect.denominator, width * aspect.numerator
        if orientation.rotation in (90, 270):
            high, wide = wide, high
        if wide < high:
            return int(self.resize_px * high / wide), self.resize_px
        return self.resize_px, int(self.resize_px * wide / high)

    def box(self, height: int, width: int, orientation: Orientation = UPRIGHT) -> tuple[float, float, float, float]:
        """(y, x, h, w) of the view in the displayed frame, in units of its height and width."""
        return self._geometry(height, width, orientation).box_yxhw

    def region(self, height: int, width: int, orientation: Orientation = UPRIGHT) -> Region:
        """The part of the coded frame that the view depends on, and that `view_region` takes."""
        return self._geometry(height, width, orientation).region

    def __call__(self, frame: np.ndarray, orientation: Orientation = UPRIGHT) -> np.ndarray:
        """The view, uint8 [crop_px,crop_px,3], of a coded frame, uint8 RGB [H,W,3]."""
        height, width = frame.shape[:2]
        at = self.region(height, width, orientation)
        return self.view_region(frame[at.top : at.bottom, at.left : at.right], height, width, orientation)

    def view_region(
        self, pixels: np.ndarray, height: int, width: int, orientation: Orientation = UPRIGHT
    ) -> np.ndarray:
        """The view that a call with the whole frame [height,width,3] gives, made from its `region` alone."""
        geometry = self._geometry(height, width, orientation)
        at = geometry.region
        if pixels.shape != (at.bottom - at.top, at.right - at.left, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"need uint8 RGB of {at}, not {pixels.dtype} {pixels.shape}")
        view = self._resized(pixels, geometry)
        if orientation.is_mirrored:
            view = view[:, ::-1]
        if orientation.rotation:
            view = np.rot90(view, -orientation.rotation // 90)
        return np.ascontiguousarray(view)

    def _resized(self, pixels: np.ndarray, geometry: _Geometry) -> np.ndarray:
        if geometry.rows.blocks is None and geometry.column_blocks is None:
            return pixels
        x = pixels.reshape(pixels.shape[0], -1)
        if self.interpolation == "bicubic":
            for resize in (_rows, _columns) if geometry.is_turned else (_columns, _rows):
                x = _rounded(resize(x, geometry))
        else:
            # The order and the rounding in between change one level at most. Rows first is faster: what lies between
            # is then [crop, region width], the smaller of the two.
            x = _columns(_rows(x, geometry), geometry)
            x += 0.5
            x = x.astype(np.uint8)
        return x.reshape(geometry.rows.size, geometry.columns.size, 3)

    def _geometry(self, height: int, width: int, orientation: Orientation) -> _Geometry:
        return _geometry(
            height,
            width,
            orientation,
            self.resized_size(height, width, orientation),
            self.crop_px,
            self.interpolation,
        )


@functools.lru_cache(maxsize=32)
def _geometry(
    height: int, width: int, orientation: Orientation, shown: tuple[int, int], side: int, interpolation: str
) -> _Geometry:
    """Kept for all viewers and threads: making the weights costs as much as five views."""
    shown_h, shown_w = shown
    # Python's round is the banker's rounding that the published transform used.
    top, left = round((shown_h - side) / 2), round((shown_w - side) / 2)
    box = (top / shown_h, left / shown_w, side / shown_h, side / shown_w)
    # The crop's corner in the picture as coded, so that only the small view is turned.
    match orientation.rotation:
        case 0:
            coded_h, coded_w, row, column = shown_h, shown_w, top, left
        case 90:
            coded_h, coded_w, row, column = shown_w, shown_h, shown_w - left - side, top
        case 180:
            coded_h, coded_w, row, column = shown_h, shown_w, shown_h - top - side, shown_w - left - side
        case _:
            coded_h, coded_w, row, column = shown_w, shown_h, left, shown_h - top - side
    if orientation.is_mirrored:
        column = coded_w - column - side
    rows = _band(height, coded_h, row, side, interpolation)
    columns = _band(width, coded_w, column, side, interpolation)
    return _Geometry(
        region=Region(top=rows.start, bottom=rows.stop, left=columns.start, right=columns.stop),
        rows=rows,
        columns=columns,
        column_blocks=_over_rgb(columns),
        is_turned=orientation.rotation in (90, 270),
        box_yxhw=box,
    )


def crop_patches(views: np.ndarray, rows: np.ndarray, corners: np.ndarray, *, patch_px: int) -> np.ndarray:
    """uint8 [N,P,P,3]: patch i is cut out of views[rows[i]], uint8 [F,S,S,3], at corners[i] (row, column)."""
    num = len(rows)
    if len(corners) != num:
        raise ValueError(f"{num} rows but {len(corners)} corners")
    patches = np.empty((num, patch_px, patch_px, views.shape[3]), views.dtype)
    limit_y, limit_x = views.shape[1] - patch_px, views.shape[2] - patch_px
    for i in range(num):
        y, x = int(corners[i][0]), int(corners[i][1])
        if not (0 <= y <= limit_y and 0 <= x <= limit_x):
            raise ValueError(f"a patch of {patch_px} px at ({y}, {x}) leaves a view of {views.shape[1:3]}")
        patches[i] = views[int(rows[i]), y : y + patch_px, x : x + patch_px]
    return patches


def crop_between_pixels(
    views: np.ndarray, rows: np.ndarray, corners: np.ndarray, *, patch_px: int
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N,P+1,P+1,3] and float32 [N,2]: the pixels of which each patch is mixed that begins at real-valued
    corners[i] (row, column), and how far after the first of them it begins. The patch is smaller than the view."""
    free = np.array(views.shape[1:3]) - patch_px
    for y, x in corners[((corners < 0) | (corners > free)).any(1)]:
        raise ValueError(f"a patch of {patch_px} px at ({y:g}, {x:g}) leaves a view of {views.shape[1:3]}")
    # A patch at the very end begins a whole pixel after its first one: beyond it there is nothing to read.
    first = np.minimum(np.floor(corners), free - 1).astype(np.int64)
    return crop_patches(views, rows, first, patch_px=patch_px + 1), (corners - first).astype(np.float32)


def place_in_frame(
    box_yxyx: tuple[float, float, float, float], view_yxhw: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """(y, x, h, w) in units of the displayed frame, of a box given in [0,1] of the view."""
    y0, x0, y1, x1 = box_yxyx
    y, x, h, w = view_yxhw
    if not all(math.isfinite(value) for value in (*box_yxyx, *view_yxhw)):
        raise ValueError(f"boxes must be finite: {box_yxyx}, {view_yxhw}")
    return y + y0 * h, x + x0 * w, (y1 - y0) * h, (x1 - x0) * w
