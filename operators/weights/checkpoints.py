"""Weights in files: this project's own form, whose header has all that is needed to run it, and the published ones."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from operators.durable import write_durably
from operators.errors import CheckpointError
from operators.networks.backbones import build, fill, restore
from operators.networks.classify import Classifier, build_classifier
from operators.networks.network import Network
from operators.weights.header import (
    ClassifierSpec,
    Header,
    NetworkSpec,
    PolicySpec,
    Preprocessing,
    SkipSpec,
)
from operators.weights.image_classifiers import difference, name_of
from operators.weights.published import Sections, backbone_weights

__all__ = [
    "Checkpoint",
    "ClassifierSpec",
    "Header",
    "NetworkSpec",
    "PolicySpec",
    "Preprocessing",
    "SkipSpec",
    "load",
    "load_backbone",
    "save",
]

SECTIONS = ("glancer", "focuser", "classifier", "policy", "skip")
_HEADER_KEY = "saccade"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A header and the weights of each part that the file holds."""

    header: Header
    sections: dict[str, dict[str, Tensor]]
    """The weights of each part; the keys are a subset of SECTIONS."""
    path: str = "checkpoint"

    @functools.cached_property
    def model_id(self) -> str:
        """The id of the weights, 32 hex digits: a hash of all names, shapes and values, without the header's texts."""
        digest = hashlib.sha256()
        for section in sorted(self.sections):
            for key, tensor in sorted(self.sections[section].items()):
                if key.endswith("num_batches_tracked"):
                    continue
                digest.update(f"{section}.{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
                tensor = tensor.detach().cpu()
                # NumPy has no bfloat16; its bits are those of an int16.
                values = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
                digest.update(values.numpy().tobytes())
        return digest.hexdigest()[:32]

    def require(self, section: str, purpose: str) -> dict[str, Tensor]:
        """Returns the weights of a part, or raises a CheckpointError that names it and its purpose."""
        if section not in self.sections:
            there = ", ".join(name for name in SECTIONS if name in self.sections) or "nothing"
            raise CheckpointError(
                f"{self.path} has no {section}, which {purpose} needs; it holds {there}. "
                "Take a checkpoint of a later training stage, or settings that do without"
            )
        return self.sections[section]

    def glance_network(self, purpose: str = "a glance") -> Network:
        return self._network("glancer", self.header.glance, purpose)

    def focus_network(self, purpose: str = "a focus") -> Network:
        return self._network("focuser", self.header.focus, purpose)

    def _network(self, section: str, spec: NetworkSpec | None, purpose: str) -> Network:
        weights = self.require(section, purpose)
        if spec is None:
            raise CheckpointError(f"{self.path} has weights of a {section}, but its header does not describe one")
        return restore(spec.name, weights, num_segments=spec.num_segments, num_classes=spec.num_classes)

    def classifier_module(self, *, dropout: float = 0.0, purpose: str = "a label") -> Classifier:
        weights = self.require("classifier", purpose)
        spec = self.header.classifier
        if spec is None:
            raise CheckpointError(f"{self.path} has weights of a classifier, but its header does not describe one")
        with torch.device("meta"):
            classifier = build_classifier(
                spec.kind,
                in_features=spec.in_features,
                num_classes=spec.num_classes,
                hidden=spec.hidden,
                num_steps=self.header.num_steps,
                dropout=dropout,
            )
        fill(classifier, weights, f"the classifier of {self.path}")
        return classifier.eval()


PublishedReader = Callable[[Mapping[str, Any], str], tuple[Header, Sections] | None]
"""Turns a published file's content and path into a header and sections in our names; None for files of others."""


def load(path: str | os.PathLike[str], *, readers: Sequence[PublishedReader] = ()) -> Checkpoint:
    """Reads a checkpoint of the project's own form, or of a form that one of the readers knows.

    Nothing in the file is executed; a file that asks for that is refused.
    """
    shown = os.fspath(path)
    if _form(shown) == "own":
        return _load_own(shown)
    content = _load_torch(shown)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{shown} holds {type(content).__name__}, not the sections of a published checkpoint")
    found = next((found for reader in readers if (found := reader(content, shown)) is not None), None)
    if found is None:
        raise CheckpointError(
            f"{shown} is no checkpoint of a known form: its sections are "
            f"{', '.join(map(str, list(content)[:6])) or 'none'}"
        )
    header, sections = found
    # What is used is copied out of the mapped file, which may be replaced while a run goes on.
    sections = {name: {key: tensor.clone() for key, tensor in part.items()} for name, part in sections.items()}
    return Checkpoint(header=header, sections=sections, path=shown)


def load_backbone(path: str | os.PathLike[str], name: str | None = None) -> dict[str, Tensor]:
    """Reads the weights of a single network to begin training from.

    The file is one of image classification, those of torchvision and timm among them, or of TSM pre-training. `name` is
    the backbone that the weights are for; those of another one are refused.
    """
    shown = os.fspath(path)
    content = _load_single(shown) if _form(shown) == "own" else _load_torch(shown)
    weights = backbone_weights(content, shown)
    if name is not None:
        _check_backbone(weights, name, shown)
    return {key: tensor.clone() for key, tensor in weights.items()}


def _load_single(path: str) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if _HEADER_KEY in (file.metadata() or {}):
                raise CheckpointError(
                    f"{path} is a whole checkpoint of this project; a single network's file is needed here"
                )
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path} is damaged: {exc}") from exc


def _check_backbone(weights: Mapping[str, Tensor], name: str, path: str) -> None:
    with torch.device("meta"):
        wrong = difference(build(name).state_dict(), weights)
    if wrong is None:
        return
    found = name_of(weights)
    if found is None:
        raise CheckpointError(f"{path} holds no weights of {name}: {wrong}. Give a file of {name}")
    raise CheckpointError(
        f"{path} holds the weights of {found}, but the backbone is {name}: give a file of {name}, or name {found} "
        "as the backbone"
    )


def save(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Writes a checkpoint whole or not at all: beside its place first, then renamed over it."""
    unknown = [name for name in checkpoint.sections if name not in SECTIONS]
    if unknown:
        raise ValueError(f"section {unknown[0]!r} is not one of {SECTIONS}")
    target = Path(path)
    tensors = {
        f"{section}.{key}": tensor.detach().cpu().contiguous()
        for section, weights in checkpoint.sections.items()
        for key, tensor in weights.items()
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not save_file: what it writes only its owner may read.
        write_durably(target, safetensors.torch.save(tensors, metadata={_HEADER_KEY: checkpoint.header.to_json()}))
    except (OSError, safetensors.SafetensorError) as exc:
        raise CheckpointError(f"{target} cannot be written: {exc}") from exc


def _form(path: str) -> Literal["own", "torch"]:
    """Returns the form of a file by its content: eight bytes of a length then JSON, or an archive or pickle of
    torch.save. The file's name does not count."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as exc:
        raise CheckpointError(f"checkpoint {path} cannot be read: {exc.strerror or exc}") from exc
    if start[8:9] == b"{":
        return "own"
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "torch"
    raise CheckpointError(f"{path} is no checkpoint: neither a safetensors file nor one that torch.save wrote")


def _load_own(path: str) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if _HEADER_KEY not in metadata:
                raise CheckpointError(
                    f"{path} has no header of this project in its metadata, so it is not known how to run it"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path} is damaged: {exc}") from exc
    sections: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = tensor
    try:
        header = Header.from_json(metadata[_HEADER_KEY])
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    return Checkpoint(header=header, sections=sections, path=path)


# NumPy's numbers, which accuracies in published files may be, under their names before and after NumPy 2.
_number = np.float64(0).__reduce__()[0]
_PLAIN_NUMBERS: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]


def _load_torch(path: str) -> Any:
    try:
        with torch.serialization.safe_globals(_PLAIN_NUMBERS):
            try:
                # Mapped, so that optimisers and second copies that are not used are never read.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:
                # Files from before torch 1.6 are no archives and cannot be mapped.
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(exc))
        raise CheckpointError(
            f"{path} is refused: it holds more than weights and plain values"
            f"{f' ({wanted.group(1)})' if wanted else ''}, and reading that could run code. "
            "Save its tensors alone with the program that wrote it"
        ) from exc
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as exc:
        raise CheckpointError(f"{path} is damaged: {next(iter(str(exc).splitlines()), type(exc).__name__)}") from exc
