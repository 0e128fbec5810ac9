"""Frames that every machine makes the same."""

import numpy as np


def frames(t: int = 16, h: int = 256, w: int = 256, seed: int = 7) -> np.ndarray:
    """uint8 [t,h,w,3] with structure at several scales, from integers only."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (h // 16 + 8, w // 16 + 8, 3))
    fine = rng.integers(0, 64, (h // 2 + 16, w // 2 + 16, 3))
    out = []
    for i in range(t):
        rough = coarse[i // 4 : i // 4 + h // 16, i % 8 : i % 8 + w // 16].repeat(16, 0).repeat(16, 1)
        grain = fine[i % 16 : i % 16 + h // 2, (2 * i) % 16 : (2 * i) % 16 + w // 2].repeat(2, 0).repeat(2, 1)
        frame = (rough * 3 // 4 + grain).clip(0, 255)
        y, x = (i * 37) % (h - 48), (i * 53) % (w - 48)
        frame[y : y + 48, x : x + 48] = rng.integers(0, 256, 3)
        out.append(frame.astype(np.uint8))
    return np.stack(out)
