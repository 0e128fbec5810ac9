"""Cameras: their state, their readers, the worker that watches them, and the driver."""
