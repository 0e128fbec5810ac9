"""The work of the networks on a clip, the choice of how they are run, and the rule for it where nothing is measured."""

from __future__ import annotations

from dataclasses import dataclass

from operators.errors import ConfigError
from operators.networks.compiled import can_compile
from operators.networks.tensors import DTYPES
from operators.weights.header import Header
from pipeline.plan import processor

CUT_SHORT = "cut short"


@dataclass(frozen=True, kw_only=True)
class NetworkWork:
    """The work of the networks on one clip; how fast they do it depends on nothing else of a run."""

    glance: str
    """Name of the backbone."""
    glance_px: int
    glance_segments: int = 0
    glances: int = 16
    """Views glanced at per clip; `patches` are counted per clip too."""
    focus: str
    patch_px: int
    focus_segments: int = 0
    patches: int = 16


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A decision how the networks are run."""

    precision: str
    compile: str
    """on or off"""
    glance_batch: int
    focus_batch: int
    how: str
    """measured, remembered, by rule, or cut short: what there was no time to measure went by rule"""
    seconds: dict[str, float]
    """CPU seconds per clip of each way that was measured, the chosen one among them; on a GPU its own seconds."""

    @property
    def is_compiled(self) -> bool:
        return self.compile == "on"

    def line(self) -> str:
        """A line that a run prints of the choice before it begins."""
        name = f"{self.precision}{' compiled' if self.is_compiled else ''}"
        line = f"networks in {name}, {self.glance_batch} views and {self.focus_batch} patches at a time ({self.how}"
        if name in self.seconds:
            others = [f"{other} {s:.3g} s" for other, s in self.seconds.items() if other != name]
            line += f": {self.seconds[name]:.3g} s a clip" + (f"; {', '.join(others)}" if others else "")
        return line + ")"


def work_of(header: Header, *, glance_px: int, patch_px: int, glances: int, patches: int) -> NetworkWork:
    """The work of a checkpoint's networks on a clip. Every frame counts as focused, whatever is skipped later."""
    glance, focus = header.glance or header.focus, header.focus or header.glance
    assert glance is not None and focus is not None
    return NetworkWork(
        glance=glance.name,
        glance_px=glance_px,
        glance_segments=glance.num_segments,
        glances=glances,
        focus=focus.name,
        patch_px=patch_px,
        focus_segments=focus.num_segments,
        patches=patches,
    )


def by_rule(work: NetworkWork, *, device: str, precision: str = "auto", compile: str = "auto") -> Choice:
    """Chooses what is likely best, without measuring: half precision where the processor multiplies in it."""
    if precision == "auto":
        precision = "bf16" if device == "cuda" or processor.has_fast_bf16() else "fp32"
    has_kernels = device == "cuda" or can_compile(device, DTYPES[precision])
    if compile == "on" and not has_kernels:
        raise ConfigError(f"compute.compile=on: there are no kernels for {precision} on {device}; set it to auto")
    if compile == "auto":
        compile = "on" if has_kernels else "off"
    # A pass over 224 px whose largest map takes over 32 MB gets fresh pages from the system each time: a fifth slower.
    glance, focus = (4 if precision == "fp32" else 8, 32) if device == "cpu" else (64, 256)
    return Choice(
        precision=precision,
        compile=compile,
        glance_batch=whole_clips(glance, work.glance_segments),
        focus_batch=whole_clips(focus, work.focus_segments),
        how="by rule",
        seconds={},
    )


def whole_clips(rows: int, segments: int) -> int:
    """Rounds the rows of a pass down to whole clips, at least one, where a temporal shift works on clips."""
    return max(segments, rows // segments * segments) if segments else rows
