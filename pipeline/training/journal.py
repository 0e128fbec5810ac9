"""What a stage of training leaves behind while it runs: metrics as JSON lines, and a state to go on from after a kill.

Its cousin `pipeline/run/run_log.py` keeps the log of a run over an archive, which needs no state: the table is one.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from operators.durable import replaced_durably, write_durably
from operators.errors import CheckpointError, StageError


@dataclass(frozen=True, kw_only=True, slots=True)
class StageProgress:
    """How far a stage has come, for a bar."""

    stage: str
    done: int
    total: int
    """Epochs that the settings ask for, or parts of the updates."""
    values: Mapping[str, float]


class Diverged(StageError):
    """A loss, a gradient or a weight is no number."""

    def __init__(self, message: str, state: Path = Path()) -> None:
        super().__init__(message, state)
        self.message = message
        self.state = state
        """The file of the stage's last good state, if there is one yet."""

    def __str__(self) -> str:
        return self.message


class Journal:
    """The metrics and the state of one stage, in its folder. A state is gone on from only where it was made with the
    same `identity`."""

    def __init__(
        self,
        *,
        folder: Path,
        stage: str,
        identity: str,
        clock: Callable[[], float],
        progress: Callable[[StageProgress], None] | None = None,
    ) -> None:
        self.folder = folder
        self.stage = stage
        self.identity = identity
        self.clock = clock
        self.progress = progress
        self.started_s = clock()
        self.spent_s = 0.0
        """Seconds that calls before this one spent on the stage."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StageError(f"cannot write to {folder}: {exc.strerror}") from exc

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def state_path(self) -> Path:
        return self.folder / "state.pt"

    @property
    def seconds(self) -> float:
        return self.spent_s + self.clock() - self.started_s

    def log(self, *, done: int, total: int, asked: int | None = None, **values: float) -> None:
        """Writes one line of metrics after epoch or update number `done`. `asked`: how many the settings ask for, where
        the stage makes others of its own after them; progress counts these alone."""
        row: dict[str, Any] = {"stage": self.stage, "done": done, "total": total, "seconds": round(self.seconds, 3)}
        row |= {k: (round(v, 6) if math.isfinite(v) else None) for k, v in values.items()}
        with open(self.metrics_path, "a") as file:
            file.write(json.dumps(row) + "\n")
        if self.progress is not None:
            asked = total if asked is None else asked
            self.progress(StageProgress(stage=self.stage, done=min(done, asked), total=asked, values=values))

    def save(self, *, done: int, **parts: Any) -> None:
        """Saves everything that the stage goes on from: modules and optimisers by name, each with a state_dict. What is
        saved is good: weights that are no numbers are refused, whatever the loss before them was."""
        for name, part in parts.items():
            values = part.state_dict() if isinstance(part, torch.nn.Module) else {}
            for key, value in values.items():
                if not bool(torch.isfinite(value).all()):
                    raise Diverged(
                        f"{name}.{key} is not finite at the end of stage {self.stage}, epoch {done - 1}",
                        self.state_path,
                    )
        state = {name: part.state_dict() for name, part in parts.items()}
        saved = {"done": done, "identity": self.identity, "seconds": self.seconds, "state": state}
        try:
            with replaced_durably(self.state_path) as aside, open(aside, "wb") as file:
                torch.save(saved, file)
        except OSError as exc:
            raise StageError(f"cannot write {self.state_path}: {exc.strerror}") from exc

    def resume(self, **parts: Any) -> int:
        """Brings the parts to the saved state and says how much is done; 0 where there is none to go on from."""
        if not self.state_path.exists():
            self.metrics_path.unlink(missing_ok=True)
            return 0
        try:
            value = torch.load(self.state_path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as exc:
            raise CheckpointError(f"{self.state_path} is damaged: delete it to begin stage {self.stage} anew") from exc
        if value["identity"] != self.identity:
            raise CheckpointError(
                f"{self.state_path} was made with other settings or data: "
                f"delete {self.folder} to begin stage {self.stage} anew, or train into another folder"
            )
        for name, part in parts.items():
            part.load_state_dict(value["state"][name])
        self.spent_s = float(value["seconds"])
        self._forget_after(int(value["done"]))
        return int(value["done"])

    def _forget_after(self, done: int) -> None:
        """Drops the metrics of what a kill undid, which would otherwise be there twice."""
        kept = [row for row in read_metrics(self.metrics_path) if row["done"] <= done]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        try:
            write_durably(self.metrics_path, text.encode())
        except OSError as exc:
            raise StageError(f"cannot write {self.metrics_path}: {exc.strerror}") from exc

    def finish(self) -> None:
        """Removes the state, once the stage's checkpoint is written."""
        self.state_path.unlink(missing_ok=True)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that a kill cut short is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows
