"""Processes that work side by side and end with the one that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def process_pool(num_workers: int) -> ProcessPoolExecutor:
    """Spawned, not forked: the caller may have threads."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=follow_parent)


def follow_parent() -> None:
    """In a process of a pool: a parent that is killed cannot end it, so it watches the parent itself."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
