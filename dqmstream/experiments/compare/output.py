"""A comparison as others read it: one JSON object, tables of all channels and readout boxes, and the map."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream import __version__
from dqmstream.errors import InputError
from dqmstream.experiments.compare.comparison import Comparison
from dqmstream.experiments.compare.figure import draw_comparison
from dqmstream.experiments.compare.separation import CONFIDENCE, Auc
from dqmstream.experiments.json_numbers import plain

SUMMARY, CHANNELS, BOXES, MAP = FILES = ("comparison.json", "channels.csv", "boxes.csv", "changes.png")

UNSEEN = (
    "Not seen: a factor common to all channels, which is luminosity or calibration; a change of gain of a channel that fires "
    "in nearly every event; a fault that comes and goes within a run."
)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """What was found, ready for JSON: both AUC, what is named, warnings. Boxes and channels by falling |pull|."""
    pair, tested, boxes = comparison.pair, comparison.channels, comparison.boxes
    sides = [
        {"name": name, "run": run, "lumisections": read, "compared": common}
        for name, run, read, common in zip(pair.names, pair.runs, pair.lumisections, comparison.common, strict=True)
    ]
    separation = comparison.separation
    return {
        "a": sides[0],
        "b": sides[1],
        "verdict": comparison.verdict,
        "warnings": comparison.warnings,
        "unseen": UNSEEN,
        "auc": _interval(separation.channels) if separation else None,
        "luminosity_auc": _interval(separation.luminosity) if separation else None,
        "confidence": CONFIDENCE,
        "test_blocks": list(separation.blocks) if separation else None,
        "method": "within rings" if comparison.by_ring else "beta-binomial" if pair.counts_events else "residual",
        "ground": comparison.ground.value,
        "comparable": comparison.comparable,
        "rate": comparison.rate,
        "overlap": comparison.overlap,
        "channels": len(pair.channels),
        "channels_tested": int(np.isfinite(tested.p).sum()),
        "boxes_tested": int(np.isfinite(boxes.p).sum()),
        "overdispersion": float(np.median(comparison.rho)) if pair.counts_events and not comparison.by_ring else None,
        "spread_of_ratios": None if comparison.by_ring else comparison.spread,
        "changed": [_channel(comparison, c) for c in tested.order if tested.changed[c]],
        "boxes": [_box(comparison, k) for k in boxes.order if boxes.changed[k]],
        "dqmstream": __version__,
    }


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write summary, tables and map into a folder: new, empty, or an older comparison's. Returns the files.

    Raises InputError if the folder holds anything else or cannot be written.
    """
    paths = [out / name for name in FILES]
    try:
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(plain(as_json(comparison)), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _table(paths[1], (_channel(comparison, c) for c in comparison.channels.order))
        _table(paths[2], (_box(comparison, k) for k in comparison.boxes.order))
        draw_comparison(paths[3], comparison)
    except OSError as error:
        raise InputError(f"cannot write {error.filename or out}: {error.strerror or error}; choose another folder") from error
    return paths


def check_folder(out: Path) -> None:
    """Raise InputError for a folder that `write` would refuse: before a comparison, so that none is made for nothing."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file: give a folder")
    strange = sorted(entry.name for entry in out.iterdir() if entry.name not in FILES)
    if strange:
        raise InputError(f"{out} holds files that no comparison wrote ({strange[0]}): give a new folder")


def box_name(name: int) -> str:
    """RBX -12 is box 12 at ieta < 0."""
    return f"RBX {name:+d}"


def _channel(comparison: Comparison, c: int) -> dict[str, Any]:
    channels, tested = comparison.pair.channels, comparison.channels
    state = "dead" if comparison.died[c] else "alive" if comparison.woke[c] else "changed" if tested.changed[c] else ""
    place = {"ieta": int(channels.ieta[c]), "iphi": int(channels.iphi[c]), "depth": int(channels.depth[c])}
    return {
        **place,
        "rbx": int(channels.box[c]),
        **_numbers(tested, c),
        "state": state,
        "overdispersion": float(comparison.rho[c]),
    }


def _box(comparison: Comparison, k: int) -> dict[str, Any]:
    name = int(comparison.box_names[k])
    state = "changed" if comparison.boxes.changed[k] else ""
    return {"rbx": name, "channels": int(comparison.box_channels[k]), **_numbers(comparison.boxes, k), "state": state}


def _numbers(tested: Any, place: int) -> dict[str, float]:
    values = {"ratio": tested.ratio, "ratio_error": tested.error, "pull": tested.pull, "p": tested.p, "q": tested.q}
    return {name: float(value[place]) for name, value in values.items()}


def _interval(auc: Auc) -> dict[str, float]:
    return {"value": auc.value, "low": auc.low, "high": auc.high}


def _table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A CSV file with a header; a number that is not finite is an empty field."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow({name: _field(value) for name, value in row.items()})


def _field(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return value
