"""The loop that one would write first, as the yardstick: decode everything, eager fp32 networks, frame after frame.

The same model and the same frames as the pipeline's, with the libraries' own defaults for threads. Nothing of ours
makes it fast; what it gives is not compared, because it resizes as OpenCV does.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from operators.media.sampling import sample_indices
from operators.records import Observation
from operators.weights.checkpoints import Checkpoint
from pipeline.config import Config
from pipeline.families.parts import learned_policy
from pipeline.run.factories import load_checkpoint
from policies.base import corners

Decode = Callable[[str, int], Iterator[np.ndarray]]
"""(path, number of frames wanted) -> the wanted frames, uint8 RGB [H,W,3]."""


def ffmpeg_version() -> str:
    """The version of the FFmpeg libraries that PyAV brings along."""
    return str(av.ffmpeg_version_info)


def with_opencv(path: str, num_frames: int) -> Iterator[np.ndarray]:
    """The wanted frames by OpenCV, which decodes everything."""
    video = cv2.VideoCapture(path)
    wanted = set(sample_indices(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), num_frames).tolist())
    number = 0
    # grab decodes; retrieve converts, and is paid for the wanted frames only.
    while video.grab():
        if number in wanted:
            yield cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB)
        number += 1
    video.release()


def with_pyav(path: str, num_frames: int, *, is_threaded: bool = True) -> Iterator[np.ndarray]:
    """The wanted frames by PyAV, which decodes everything."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO" if is_threaded else "NONE"
        wanted = set(sample_indices(stream.frames, num_frames).tolist())
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                yield frame.to_ndarray(format="rgb24")


DECODERS: dict[str, Decode] = {"OpenCV": with_opencv, "PyAV": with_pyav}


class PlainLoop:
    """AdaFocus on one frame at a time, as a notebook would have it."""

    def __init__(
        self, *, checkpoint: Checkpoint, num_frames: int, resize_px: int, crop_px: int, glance_px: int, patch_px: int
    ) -> None:
        header = checkpoint.header
        assert header.policy is not None
        self._glance: nn.Module = checkpoint.glance_network().float().eval()
        self._focus: nn.Module = checkpoint.focus_network().float().eval()
        self._classifier: Any = checkpoint.classifier_module().float().eval()
        self._policy = learned_policy(header.policy)
        self._policy.load_state_dict(checkpoint.require("policy", "the plain loop"))
        self._policy.eval()
        self._num_frames = num_frames
        self._resize_px, self._crop_px = resize_px, crop_px
        self._glance_px, self._patch_px = glance_px, patch_px
        self._mean = torch.tensor(header.preprocessing.mean).view(3, 1, 1)
        self._std = torch.tensor(header.preprocessing.std).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, path: str, decode: Decode) -> int:
        """The number of the video's class."""
        policy_state, state = self._policy.initial_state(1), self._classifier.initial_state(1)
        logits = torch.zeros(1, 1)
        for frame in decode(path, self._num_frames):
            view = self._view(frame)[None]
            small = view
            if self._glance_px != self._crop_px:
                small = F.interpolate(view, (self._glance_px, self._glance_px), mode="bilinear", align_corners=False)
            feature_map, glance = self._glance(small)
            actions, policy_state = self._policy.act(Observation(feature_map=feature_map), policy_state)
            y, x = corners(actions.offsets, view_px=self._crop_px, patch_px=self._patch_px)[0].tolist()
            _, focus = self._focus(view[:, :, y : y + self._patch_px, x : x + self._patch_px])
            state, logits = self._classifier.step(state, torch.cat((glance, focus), dim=1))
        return int(logits.argmax())

    def _view(self, frame: np.ndarray) -> torch.Tensor:
        height, width = frame.shape[:2]
        scale = self._resize_px / min(height, width)
        small = cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        top, left = (small.shape[0] - self._crop_px) // 2, (small.shape[1] - self._crop_px) // 2
        crop = small[top : top + self._crop_px, left : left + self._crop_px]
        pixels = torch.from_numpy(crop.copy()).permute(2, 0, 1).float() / 255
        return (pixels - self._mean) / self._std


@functools.lru_cache(maxsize=1)
def _loop(config_json: str, model_id: str) -> PlainLoop:
    config = Config.model_validate_json(config_json)
    return PlainLoop(
        checkpoint=load_checkpoint(config, model_id),
        num_frames=config.sampling.num_frames,
        resize_px=config.view.resize_px,
        crop_px=config.view.crop_px,
        glance_px=config.glance.size_px,
        patch_px=config.focus.patch_px,
    )


def plain_seconds(config_json: str, model_id: str, paths: list[str], num_threads: int, decoder: str) -> float:
    """How long the loop takes for these files. It wants a process of its own, whose threads nobody else has set."""
    loop = _loop(config_json, model_id)
    torch.set_num_threads(num_threads)
    begun_s = time.perf_counter()
    for path in paths:
        loop(path, DECODERS[decoder])
    return time.perf_counter() - begun_s


def fastest_decoder(path: str, num_frames: int, *, share: float = 1.0, tries: int = 3) -> tuple[str, float]:
    """Which of the two decodes a file like this sooner, and its seconds for the whole file: the least of several tries
    in turn. Only the first `share` of the wanted frames is decoded, and the seconds are scaled to all of them."""
    count = max(1, round(share * num_frames))
    seconds = dict.fromkeys(DECODERS, math.inf)
    for _ in range(tries):
        for name, decode in DECODERS.items():
            begun_s = time.perf_counter()
            for _ in itertools.islice(decode(path, num_frames), None if count == num_frames else count):
                pass
            seconds[name] = min(seconds[name], time.perf_counter() - begun_s)
    name = min(seconds, key=lambda name: seconds[name])
    return name, seconds[name] * num_frames / count
