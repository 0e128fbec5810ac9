"""Checkpoints: the project's own form and the published ones."""
