"""What a checkpoint was calibrated for: when a clip stops, in which rounds it goes, and what a skipped focus saves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from operators.errors import ConfigError
from operators.weights.header import Header
from pipeline.config import Config, Skip, parse
from pipeline.families import family_named
from policies.recurrent import price_for_share
from policies.stopping import Confidence, OperatingPoint, StopRule, checked_thresholds, for_budget


def stop_rule(config: Config, header: Header) -> StopRule | None:
    """The rule by which a clip is done early; None: never."""
    steps = family_named(config.model.family).num_steps(config)
    match config.stop.kind:
        case "none":
            return None
        case "confidence":
            if config.stop.thresholds is None:
                raise ConfigError("stop.kind=confidence needs stop.thresholds: one number, or one per step")
            thresholds = checked_thresholds(config.stop.thresholds, num_steps=steps)
            return Confidence(thresholds=thresholds, measure=config.stop.confidence)
        case "budget":
            assert config.stop.budget_gmacs is not None
            found = calibration(config, header)
            measure = found.get("measure", "softmax")
            rule = for_budget(operating_points(found), config.stop.budget_gmacs, measure=measure)
            if len(rule.thresholds) not in (1, steps):
                raise ConfigError(
                    f"the checkpoint is calibrated for {len(rule.thresholds)} steps, but a clip has {steps}: "
                    "leave sampling.num_frames and model.num_looks out, or calibrate again"
                )
            return rule


def calibrated_for(config: Config, header: Header) -> dict[str, Any]:
    """The settings that thresholds and costs depend on, beside the weights and the steps per round.

    Each has its value, whether it was given or left to the checkpoint. What the way of skipping does not read is None.
    """
    skip = config.skip
    is_learned = skip.kind == "learned"
    return {
        "policy.kind": config.policy.kind,
        "focus.patch_px": config.focus.patch_px,
        "skip.kind": skip.kind,
        "skip.sees": skip_sees(config, header) if is_learned else None,
        "skip.price": skip_price(config, header) if is_learned else None,
        "skip.share": skip.share if skip.kind in ("random", "uniform") else None,
    }


def made_for(found: Mapping[str, Any], header: Header) -> dict[str, Any]:
    """The `calibrated_for` of a calibration that is there."""
    made = dict(found["for"])
    given = {name: value for name, value in made.items() if name.startswith("skip.") and value is not None}
    if made.get("skip.kind") == "learned":
        # Older ones hold null for what was left to the checkpoint, and the share's default where no share was given.
        if given.get("skip.share") == Skip().share:
            del given["skip.share"]
        if header.skip is None:
            return made
    try:
        return made | {k: v for k, v in calibrated_for(parse(given), header).items() if k.startswith("skip.")}
    except ConfigError:
        # A share that was never reached: no settings lead there any more.
        return made


def calibration(config: Config, header: Header) -> Mapping[str, Any]:
    """The calibration made under these settings: from stop.calibration, or the checkpoint's header."""
    if config.stop.calibration is not None:
        known = [read_calibration(Path(config.stop.calibration))]
    else:
        known = list(header.thresholds.get("calibrations", []))
    if not known:
        raise ConfigError("stop.kind=budget needs a calibration: run `calibrate`, or use stop.kind=confidence")
    wanted = calibrated_for(config, header)
    every = config.stop.steps_per_round
    if every is not None:
        wanted["stop.steps_per_round"] = every
    nearest: list[str] | None = None
    for found in known:
        made = made_for(found, header) if "for" in found else dict(wanted)
        made["stop.steps_per_round"] = int(found.get("steps_per_round", 1))
        differ = [f"{k}={made.get(k)} there, {v} here" for k, v in wanted.items() if made.get(k) != v]
        if not differ:
            return found
        nearest = differ if nearest is None or len(differ) < len(nearest) else nearest
    assert nearest is not None
    raise ConfigError(
        f"no calibration was made under these settings ({', '.join(nearest)}): run `calibrate` with them"
    )


def read_calibration(path: Path) -> Mapping[str, Any]:
    """A calibration kept beside a checkpoint that cannot hold it."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path} is no calibration: {exc}") from exc
    if not isinstance(found, dict) or "points" not in found:
        raise ConfigError(f"{path} is no calibration: it has no points")
    return found


def operating_points(found: Mapping[str, Any]) -> list[OperatingPoint]:
    return [
        OperatingPoint(
            gmacs=point["gmacs"],
            score=point["score"],
            thresholds=tuple(point["thresholds"]),
            found_by=point.get("found_by", ""),
        )
        for point in found["points"]
    ]


def steps_per_round(config: Config, header: Header) -> int:
    """Steps between two checks: as given, as calibrated, or 1."""
    if config.stop.steps_per_round is not None:
        return config.stop.steps_per_round
    if config.stop.kind == "budget":
        return int(calibration(config, header).get("steps_per_round", 1))
    return 1


def skip_sees(config: Config, header: Header) -> Literal["glance", "classifier"]:
    """The state that the learned skip decides by."""
    assert header.skip is not None
    return config.skip.sees or header.skip.sees


def skip_price(config: Config, header: Header) -> float:
    """The price of a focus for the learned skip: as given, as measured for the share asked for, or the head's own."""
    assert header.skip is not None
    if config.skip.price is not None:
        return config.skip.price
    if "skip.share" not in config.given():
        return header.skip.price
    sees = skip_sees(config, header)
    tables = {name: dict(table) for name, table in header.skip.price_tables.items() if table}
    if sees not in tables:
        raise ConfigError(
            f"skip.share={config.skip.share:g} with skip.kind=learned needs measured prices, and the checkpoint has "
            f"none for skip.sees={sees}: set skip.price instead"
        )
    price = price_for_share(tables[sees], config.skip.share)
    if price is None:
        ranges = {name: f"{min(t.values()):.4g} to {max(t.values()):.4g}" for name, t in tables.items()}
        others = "".join(f", or set skip.sees={name} ({ranges[name]})" for name in tables if name != sees)
        raise ConfigError(
            f"skip.share={config.skip.share:g} is not a share that this checkpoint skips to with skip.sees={sees}: "
            f"give one from {ranges[sees]}{others}, or set skip.price instead"
        )
    return price
