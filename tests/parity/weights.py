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
    # EfficientNet and MobileNetV3: their gates halve what passes, so without this nothing of the image would reach the
    # end.
    gated = ".blocks." in name or "conv_stem" in name or "conv_head" in name
    if len(shape) == 1:
        return rng.normal(0, 0.5 if gated and ".bn" in name else 0.05, shape).astype(np.float32)
    fan = int(np.prod(shape[1:]))
    weight = rng.standard_normal(shape, dtype=np.float32) * math.sqrt(2.0 / fan)
    if "state_encoder" in name or "actor" in name:
        # What all inputs share is cancelled, so that the chosen action moves from frame to frame.
        gain = 2 if shape == (2, 256) else 8
        weight = (weight - weight.mean(axis=tuple(range(1, weight.ndim)), keepdims=True)) * gain
    for part, gain in (("spatial_policy.", 1.5), ("temporal_policy.", 2), ("policy_stn.", 3)):
        if part in name:
            # AdaFocus's successors, for the same reason; the last layer keeps its size.
            gain = 1 if shape[0] == 2 else gain
            weight = (weight - weight.mean(axis=tuple(range(1, weight.ndim)), keepdims=True)) * gain
    return (weight * np.float32(1.15) if gated else weight).astype(np.float32)
