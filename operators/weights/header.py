"""The header of a checkpoint: everything that is needed to run it, as frozen values that go to JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from operators.errors import CheckpointError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

FORMAT = 1
"""The number is raised when a program that read the last form of the header can no longer read this one."""

_CLOSED = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""The settings of every record here: a field that this version does not know is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkSpec:
    """A backbone and the form of its input."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    name: str
    """The name is a key of BACKBONES."""
    size_px: int | None = None
    """The side of the glance's input, or of a patch. None: the file does not have it, so the configuration must."""
    num_segments: int = 0
    """The number of frames per clip for the temporal shift; 0 for none."""
    num_classes: int = 0
    """The size of the network's own linear head; 0 where it has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySpec:
    """The recurrent policy, which decides where to look. The fields are the arguments of its constructor."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    kind: Literal["grid", "continuous"]
    encoder: Literal["conv", "mlp", "clip", "tanh"]
    """conv: 1x1 convolution, linear (AdaFocus, GFNet's small families). mlp: two linear layers on the flat map
    (GFNet's ResNet). clip: like conv with batch norms, over the maps of all of a clip's frames (AdaFocus-TSM). tanh:
    like conv with batch norms and tanh, without a critic (AdaFocusV2)."""
    map_channels: int
    """The channels of the map; for `clip`, of all of a clip's maps together."""
    map_side: int
    """The number of cells along each side of the map."""
    hidden: int
    """The size of the GRU's state."""
    width: int
    """The number of channels after the 1x1 convolution, or outputs of the first linear layer."""
    num_actions: int = 49
    """The number of cells of the grid, a square; it has no meaning for a continuous policy."""
    std: float = 0.25
    """The spread of a continuous policy's draws when it is trained."""
    reads: Literal["glance", "patch"] = "glance"


@dataclass(frozen=True, kw_only=True, slots=True)
class SkipSpec:
    """The head that decides, before a patch is cut, whether a step is worth focusing on."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    policy_hidden: int
    """The size of the policy's state, which the head reads."""
    classifier_hidden: int
    """The size of the classifier's state, which the head reads too where `sees` is `classifier`; it then decides step
    by step."""
    hidden: int = 64
    sees: Literal["glance", "classifier"] = "classifier"
    price: float = 0.01
    """The price of a focus where the configuration gives none."""
    price_tables: dict[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """For each value of `sees`, the pairs (price, share of the steps focused) that were measured after training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierSpec:
    """The classifier, which turns the features of a clip's steps into a label."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    kind: Literal["gru", "cascaded", "average", "max"]
    num_classes: int
    in_features: int
    """The number of features of one step: of glance and focus together for AdaFocus, of one look for GFNet, of one
    patch for `average`."""
    hidden: int = 0
    """The size of the GRU's state, or the number of features whose maximum `max` keeps; 0 for the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """The steps from a frame to the view that the networks see."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    resize_px: int = 256
    """The short side after the resize."""
    crop_px: int = 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    square_pixels: bool = False
    """Whether pixels that are not square are made square first; those of the published frames were not."""
    glance_resize: Literal["nearest", "antialias", "bilinear", "bicubic"] = "nearest"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The header: how to run a checkpoint. A part that is None is not in the file."""

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    family: str
    """The name is one of the table of families, which this file does not know."""
    glance: NetworkSpec | None
    focus: NetworkSpec | None
    classifier: ClassifierSpec | None
    policy: PolicySpec | None = None
    skip: SkipSpec | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    num_steps: int = 16
    """The number of frames glanced at; for GFNet, of all looks with the glance."""
    num_focus_steps: int | None = None
    """The number of frames focused where they are others than those glanced at; None: the same frames."""
    pad: Literal["last", "first"] = "last"
    """The frame that a video shorter than the sample repeats."""
    class_names: tuple[str, ...] | None = None
    thresholds: dict[str, Any] = field(default_factory=dict)
    """The calibrated stop rules, as the calibration writes them."""
    training: dict[str, Any] = field(default_factory=dict)
    """The config, seed, commit, data and scores of the training, or the numbers in a published file."""

    @property
    def num_classes(self) -> int:
        spec = self.classifier or self.focus or self.glance
        return spec.num_classes if spec else 0

    def deciding(self) -> dict[str, Any]:
        """Returns, flat, the parts of the header that change an answer and are no setting of a run. Its texts, its
        thresholds and the record of its training are left out."""
        form = self.preprocessing
        facts: dict[str, Any] = {
            "family": self.family,
            "mean": list(form.mean),
            "std": list(form.std),
            "glance_resize": form.glance_resize,
        }
        parts = {"glance": self.glance, "focus": self.focus, "classifier": self.classifier, "policy": self.policy}
        for name, part in parts.items():
            # Sizes are settings, and the spread of a policy's draws is for its training.
            values = {} if part is None else dataclasses.asdict(part)
            facts |= {f"{name}.{k}": v for k, v in values.items() if k not in ("size_px", "std")}
        return facts

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Header:
        """Reads a header; raises a CheckpointError that names the field that is wrong."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as exc:
            raise CheckpointError(f"checkpoint header is no JSON: {exc}") from exc
        if not isinstance(values, dict):
            raise CheckpointError("checkpoint header is no JSON object")
        number = values.pop("format", None)
        if number != FORMAT:
            raise CheckpointError(
                f"checkpoint header has format {number!r}, but this version reads {FORMAT}; "
                "use the version that wrote it"
            )
        try:
            return _ADAPTER.validate_json(json.dumps(values), strict=True)
        except ValidationError as exc:
            raise CheckpointError(_describe_error(exc.errors()[0])) from exc


def _describe_error(error: ErrorDetails) -> str:
    """Describes the first thing that is wrong with a header, by its place in it."""
    where = ".".join(("header", *map(str, error["loc"])))
    value = error["input"]
    match error["type"]:
        case "unexpected_keyword_argument":
            near = difflib.get_close_matches(str(error["loc"][-1]), _FIELDS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"{where} of the checkpoint is nothing that this version knows{hint}"
        case "missing" | "missing_keyword_only_argument":
            return f"{where} of the checkpoint is missing"
        case "dataclass_type" | "dataclass_exact_type":
            return f"{where} of the checkpoint is {value!r}, not an object"
    return f"{where} of the checkpoint is {value!r}: {error['msg']}"


_ADAPTER = TypeAdapter(Header)
_FIELDS = sorted(
    {
        part.name
        for kind in (Header, NetworkSpec, PolicySpec, SkipSpec, ClassifierSpec, Preprocessing)
        for part in dataclasses.fields(kind)
    }
)
