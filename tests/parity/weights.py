"""Deterministic weights from a parameter's name and shape alone.

A checkpoint of hundreds of megabytes can be made again anywhere, and only the expected outputs need to be kept.
"""

import math
import zlib

import numpy as np


def value(name: str, shape: tuple[int, ...] | list[int]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shape = tuple(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_mean"):
        return rng.normal(0, 0.05, shape).astype(np.float32)
    if name.endswith("running_var"):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    if name.endswith("weight") and len(shape) == 1:
        return rng.uniform(0.6, 1.0, shape).astype(np.float32)
    if len(shape) == 1:
        return rng.normal(0, 0.05, shape).astype(np.float32)
    fan = int(np.prod(shape[1:]))
    weight = rng.standard_normal(shape, dtype=np.float32) * math.sqrt(2.0 / fan)
    if "state_encoder" in name or "actor" in name:
        # What all inputs share is cancelled, so that the chosen action moves from frame to frame.
        weight = (weight - weight.mean(axis=tuple(range(1, weight.ndim)), keepdims=True)) * 8
    return weight.astype(np.float32)
