"""The error tree. A PipelineError is the world's fault and is shown in one line; a ValueError is a bug."""

from __future__ import annotations

import enum


class ErrorCode(enum.StrEnum):
    """The values that `error_code` of a row may have; docs/errors.md has what helps against each."""

    MISSING = "missing"
    EMPTY = "empty"
    NOT_MEDIA = "not_media"
    NO_VIDEO = "no_video"
    UNSUPPORTED_CODEC = "unsupported_codec"
    ENCRYPTED = "encrypted"
    NO_FRAMES = "no_frames"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    TIMEOUT = "timeout"
    WORKER_DIED = "worker_died"
    NOT_FINITE = "not_finite"
    """The network's answer is not a number."""
    INTERNAL = "internal"


class PipelineError(Exception):
    """The world is not as it should be: the text has the value that was wrong and the way out."""


class ConfigError(PipelineError):
    """A setting, a flag or a preset is wrong."""


class NoSubsetError(ConfigError):
    """The annotation has no subset of the name that was asked for."""


class SourceError(PipelineError):
    """A source cannot be read."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        # Both go into args: an exception is pickled as its class and its args when it crosses processes.
        super().__init__(message, code)
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return self.message


class CheckpointError(PipelineError):
    """A checkpoint cannot be read, or is not of the form that the run asks for."""


class SinkError(PipelineError):
    """Labels cannot be written, or do not belong to the labels that are there."""


class RefusedError(SinkError, ConfigError):
    """A run may not begin in its output folder: it cannot be written, or holds labels made with other settings."""


class StageError(PipelineError):
    """A stage of the pipeline cannot go on."""


class ClusterGone(StageError):
    """The head of the cluster that the run had joined does not answer any more."""
