"""FFmpeg is kept from following an RTSP camera's redirect: a camera must not choose whom its reader talks to.

FFmpeg's RTSP client follows every redirect and has no option against it, unlike its HTTP client (`max_redirects`). It
does log the redirect, from the opening thread and before it makes the new connection; at that moment the process is
forbidden to open any further file or socket, so that the connection cannot be made.
"""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Iterator

import av

_LOGGER = logging.getLogger("libav")
_SIGN = ": Redirecting to "
"""The words that libavformat/rtsp.c logs; a test with a real connection notices when it logs others."""


class _Barrier(logging.Handler):
    """A handler of FFmpeg's log that lets the process open nothing more once a redirect is announced."""

    def __init__(self) -> None:
        super().__init__()
        self.has_fallen = False

    def emit(self, record: logging.LogRecord) -> None:
        if _SIGN in record.getMessage():
            self.has_fallen = True
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))


class Redirected(OSError):
    """The camera answered with a redirect, which was not followed."""


@contextlib.contextmanager
def no_redirects() -> Iterator[None]:
    """Makes an opening within the context fail with Redirected where an RTSP camera answers with a redirect.

    For a process that does nothing else meanwhile. FFmpeg's log reaches Python within the context alone, and goes no
    further: its lines hold addresses with their passwords, and its callback wants the interpreter lock, which is free
    while FFmpeg opens a source and is not always free later.
    """
    barrier = _Barrier()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = _LOGGER.level, _LOGGER.propagate
    _LOGGER.addHandler(barrier)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
    # A line equal to the one before would be left out, and it may be the one that matters.
    av.logging.set_skip_repeated(False)
    av.logging.set_level(av.logging.INFO)
    try:
        yield
    except (OSError, ValueError):
        if barrier.has_fallen:
            raise Redirected from None
        raise
    finally:
        av.logging.set_level(None)
        _LOGGER.removeHandler(barrier)
        _LOGGER.level, _LOGGER.propagate = before
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
