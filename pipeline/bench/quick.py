"""The settings of `--quick`: networks and views so small that everything is over in seconds."""

from __future__ import annotations

SMALL_NETWORKS = {
    "model.glance_backbone": "small_glance",
    "model.focus_backbone": "small_focus",
    "view.resize_px": 96,
    "view.crop_px": 96,
    "glance.size_px": 32,
    "focus.patch_px": 32,
}
"""The networks of the small size that ships, on the views that they were made for."""
QUICK_SETTINGS = {
    **SMALL_NETWORKS,
    "sampling.num_frames": 4,
    # Each clip ends by itself, so that few are enough to give a rate.
    "focus.batch_size": 4,
}
