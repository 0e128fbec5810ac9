"""The arguments of this process, as others see them. Loads next to nothing: it is for a command's first moment."""

from __future__ import annotations

import ctypes
import os
import sys

from operators.passwords import without_password

_ARG_START = 45
"""Among the fields of /proc/self/stat after the name: where in memory the arguments begin; then, where they end."""


def hide_arguments() -> None:
    """Overwrites the passwords among this process's arguments, which anybody on the machine can read, and which Ray
    notes down. Where that is not possible they stay.
    """
    for arguments in (sys.argv, sys.orig_argv):
        arguments[:] = [without_password(argument) for argument in arguments]
    try:
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return
    start, stop = int(fields[_ARG_START]), int(fields[_ARG_START + 1])
    before = ctypes.string_at(start, stop - start)
    shown = (without_password(os.fsdecode(argument)) for argument in before.split(b"\0"))
    after = b"\0".join(os.fsencode(argument) for argument in shown)
    if after != before:
        ctypes.memmove(start, after[: len(before) - 1].ljust(len(before), b"\0"), len(before))
