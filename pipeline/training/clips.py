"""What a training stage reads: views, labels and, where there is a truth, the evidence's place. Randomness is
passed in; an epoch's order and draws follow from (seed, stage, epoch), so a run that goes on needs no saved
generator."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from operators.errors import ConfigError
from operators.networks.tensors import Normalisation, to_tensor
from operators.records import Source
from pipeline.training.frame_cache import FrameCache


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameTruth:
    """The evidence in every frame of one video."""

    visible: np.ndarray
    """bool [n]"""
    box_yxhw: np.ndarray
    """float64 [n,4]: upper left corner and size in units of the displayed frame; anything where not visible.
    """


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clips:
    """A subset of the data."""

    pixels: np.ndarray
    """uint8 [C,T,k,S,S,3]: the whole cache, a view of its file. To be read through `kept`."""
    labels: tuple[tuple[int, ...], ...]
    """[V]: class numbers of each clip, at least one."""
    kept: np.ndarray | None = None
    """int64 [V]: where in `pixels` each clip lies; None: clip v at v. An index, so that leaving one video out
    copies nothing."""
    visible: np.ndarray | None = None
    """bool [V,T,k]"""
    box_yxhw: np.ndarray | None = None
    """float64 [V,T,k,4]: the evidence in units of the cached square."""
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_steps(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def candidates(self) -> int:
        return int(self.pixels.shape[2])

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Where clips `rows` lie in `pixels`."""
        return rows if self.kept is None else self.kept[rows]

    def draw_labels(self, rows: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """int64 [B]: the clip's label; of several a random one in training, the first without a generator.

        The published loader draws too, but gives the smaller of two labels twice the weight of the other, by
        the way its swap recurses.
        """
        chosen = [self.labels[i][0 if rng is None else int(rng.integers(len(self.labels[i])))] for i in rows]
        return torch.tensor(chosen, dtype=torch.int64)


def label_numbers(sources: Sequence[Source], class_names: Sequence[str]) -> list[tuple[int, ...]]:
    """Class numbers of each source, in order; empty for one without a label."""
    numbers = {name: i for i, name in enumerate(class_names)}
    labels = []
    for source in sources:
        names = source.truth or ()
        unknown = [name for name in names if name not in numbers]
        if unknown:
            raise ConfigError(
                f"{source.video_id} is labelled {unknown[0]!r}, which is not among the {len(class_names)} class names"
            )
        labels.append(tuple(sorted({numbers[name] for name in names})))
    return labels


def make_clips(
    cache: FrameCache,
    sources: Sequence[Source],
    class_names: Sequence[str],
    truth: Mapping[str, FrameTruth] | None = None,
) -> Clips:
    """The readable, labelled clips of a cache."""
    labels = label_numbers(sources, class_names)
    rows = [i for i in cache.readable.tolist() if labels[i]]
    if not rows:
        raise ConfigError(f"none of {len(sources)} videos has a label: training needs annotations")
    clips = Clips(
        pixels=cache.pixels,
        labels=tuple(labels[i] for i in rows),
        kept=None if len(rows) == len(sources) else np.array(rows),
        names=tuple(sources[i].video_id for i in rows),
    )
    if truth is None or any(name not in truth for name in clips.names):
        return clips
    index = cache.frame_index[rows]
    visible = np.zeros(index.shape, bool)
    boxes = np.zeros((*index.shape, 4))
    for v, i in enumerate(rows):
        known = truth[sources[i].video_id]
        frames = index[v].clip(0, len(known.visible) - 1)
        y, x, h, w = cache.view_yxhw[i]
        visible[v] = known.visible[frames]
        boxes[v] = (known.box_yxhw[frames] - (y, x, 0, 0)) / (h, w, h, w)
    return dataclasses.replace(clips, visible=visible, box_yxhw=np.nan_to_num(boxes))


def seeded(seed: int, *names: str | int) -> np.random.Generator:
    """A generator of its own for every stage and epoch."""
    key = [n if isinstance(n, int) else zlib.crc32(n.encode()) for n in names]
    return np.random.default_rng([seed, *key])


def batches(
    num_clips: int, batch_size: int, rng: np.random.Generator | None, *, drop_last: bool = True
) -> Iterator[np.ndarray]:
    """Rows of each batch: shuffled with a generator, in order without. An epoch has at least one batch."""
    order = np.arange(num_clips) if rng is None else rng.permutation(num_clips)
    stop = num_clips - num_clips % batch_size if drop_last and num_clips >= batch_size else num_clips
    for start in range(0, stop, batch_size):
        yield order[start : min(start + batch_size, stop)]


def num_batches(num_clips: int, batch_size: int) -> int:
    return max(1, num_clips // batch_size)


def draw_picks(rows: np.ndarray, clips: Clips, rng: np.random.Generator | None) -> np.ndarray:
    """int64 [B,T]: which candidate each step shows; inference's own without a generator."""
    if rng is None or clips.candidates == 1:
        return np.zeros((len(rows), clips.num_steps), np.int64)
    return rng.integers(clips.candidates, size=(len(rows), clips.num_steps))


_SCALES = (1.0, 0.875, 0.75, 0.66)
_PLACES = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3))
"""Column and row of a crop in quarters of the room there is, as published. The room is that of the cached square:
published is that of the whole frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What is done to a clip's views, alike for all its frames."""

    crop_px: int
    """Side of the view that comes out."""
    is_flipped: bool = False
    is_cropped: bool = False

    def draw(self, side: int, rng: np.random.Generator | None) -> tuple[int, int, int, int, bool]:
        """(top, left, height, width, flip) of a clip whose cached square has this side."""
        if rng is None or not self.is_cropped:
            top = round((side - self.crop_px) / 2)
            flip = bool(rng is not None and self.is_flipped and rng.random() < 0.5)
            return top, top, self.crop_px, self.crop_px, flip
        pairs = [(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1]
        i, j = pairs[int(rng.integers(len(pairs)))]
        height, width = (self._snapped(int(side * _SCALES[n])) for n in (i, j))
        column, row = _PLACES[int(rng.integers(len(_PLACES)))]
        top, left = row * ((side - height) // 4), column * ((side - width) // 4)
        return top, left, height, width, bool(self.is_flipped and rng.random() < 0.5)

    def _snapped(self, size: int) -> int:
        return self.crop_px if abs(size - self.crop_px) < 3 else size


def load_views(
    clips: Clips,
    rows: np.ndarray,
    picks: np.ndarray,
    *,
    augmentation: Augmentation,
    rng: np.random.Generator | None,
) -> np.ndarray:
    """uint8 [B,T,S,S,3] of the views that the networks see."""
    cached = clips.pixels[clips.at(rows)[:, None], np.arange(clips.num_steps)[None, :], picks]
    side = cached.shape[2]
    is_changed = rng is not None and (augmentation.is_cropped or augmentation.is_flipped)
    if side == augmentation.crop_px and not is_changed:
        return cached
    size = augmentation.crop_px
    views = np.empty((*cached.shape[:2], size, size, 3), np.uint8)
    for b in range(len(cached)):
        top, left, height, width, flip = augmentation.draw(side, rng)
        crop = cached[b, :, top : top + height, left : left + width]
        if (height, width) != (size, size):
            crop = _resized(crop, size)
        views[b] = crop[:, :, ::-1] if flip else crop
    return views


def _resized(frames: np.ndarray, size: int) -> np.ndarray:
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    x = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x.permute(0, 2, 3, 1).numpy()


def cut(views: np.ndarray, corners: np.ndarray, patch_px: int) -> np.ndarray:
    """uint8 [B,T,S,S,3] and corners int64 [B,T,2] -> patches uint8 [B*T,P,P,3]."""
    flat = views.reshape(-1, *views.shape[2:])
    patches = np.empty((len(flat), patch_px, patch_px, 3), np.uint8)
    for i, (r, c) in enumerate(corners.reshape(-1, 2).tolist()):
        patches[i] = flat[i, r : r + patch_px, c : c + patch_px]
    return patches


def random_corners(shape: tuple[int, ...], free_px: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [*shape,2]: uniform over pixels, the last one excluded, as published."""
    return rng.integers(0, max(free_px, 1), size=(*shape, 2))


def salient_corners(
    maps: Tensor, weight: Tensor, labels: Tensor, *, view_px: int, patch_px: int, rng: np.random.Generator
) -> np.ndarray:
    """int64 [B,T,2]: patches about cells of the glance's map that are drawn by how much they speak for the
    class.

    maps [B,T,C,h,w], weight [K,C] of a linear layer on the mean over cells: each cell has its share in the
    logit.
    """
    evidence = torch.einsum("btchw,bc->bthw", maps, weight.to(maps)[labels])
    height, width = evidence.shape[-2:]
    # In units of the spread, so that a sharper or blunter head draws alike; 3 puts three in four of the
    # synthetic archive's patches on the evidence.
    sharpened = (3 * evidence / evidence.std().clamp_min(1e-6)).flatten(2).cpu().numpy()
    cell = (sharpened + rng.gumbel(size=sharpened.shape)).argmax(axis=2)
    side = np.array([view_px / height, view_px / width])
    within = rng.random((*cell.shape, 2))
    centre = (np.stack([cell // width, cell % width], axis=-1) + within) * side
    return np.clip(centre - patch_px / 2, 0, view_px - patch_px).astype(np.int64)


def normalised(pixels: np.ndarray, normalisation: Normalisation, device: torch.device) -> Tensor:
    """uint8 [...,H,W,3] -> [N,3,H,W]"""
    return to_tensor(pixels.reshape(-1, *pixels.shape[-3:]), normalisation=normalisation, device=device)
