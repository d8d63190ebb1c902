"""The files of a comparison: one JSON object, tables of all channels and readout boxes, and the map."""

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
from dqmstream.experiments.compare.figure import draw_comparison
from dqmstream.experiments.compare.findings import Findings
from dqmstream.experiments.compare.separation import CONFIDENCE, Auc
from dqmstream.experiments.compare.significance import ChangeTests
from dqmstream.experiments.compare.verdict import UNSEEN, verdict, warnings
from dqmstream.experiments.json_numbers import nan_as_null

SUMMARY, CHANNELS, BOXES, MAP = FILES = ("comparison.json", "channels.csv", "boxes.csv", "changes.png")


def as_json(found: Findings) -> dict[str, Any]:
    """The findings as one object for JSON, with the changed channels and boxes by falling |pull|. Numbers may be nan or inf."""
    pair, tested, boxes = found.pair, found.channel_tests, found.box_tests
    sides = [
        {"name": name, "run": run, "lumisections": read, "compared": common, "values": values.value}
        for name, run, read, common, values in zip(
            pair.names, pair.runs, pair.lumisections, found.common, pair.values, strict=True
        )
    ]
    separation = found.separation
    return {
        "a": sides[0],
        "b": sides[1],
        "verdict": verdict(found),
        "warnings": warnings(found),
        "unseen": UNSEEN,
        "auc": _interval(separation.channels) if separation else None,
        "luminosity_auc": _interval(separation.luminosity) if separation else None,
        "confidence": CONFIDENCE,
        "test_blocks": list(separation.blocks) if separation else None,
        "method": "within rings" if found.by_ring else "beta-binomial" if pair.counts_events else "residual",
        "ground": found.ground.value,
        "comparable": found.comparable,
        "rate": found.rate,
        "overlap": found.overlap,
        "channels": len(pair.channels),
        "channels_tested": int(np.isfinite(tested.p).sum()),
        "boxes_tested": int(np.isfinite(boxes.p).sum()),
        "overdispersion": float(np.median(found.rho)) if pair.counts_events and not found.by_ring else None,
        "spread_of_ratios": None if found.by_ring else found.spread,
        "changed": [_channel(found, c) for c in tested.order if tested.changed[c]],
        "boxes": [_box(found, k) for k in boxes.order if boxes.changed[k]],
        "dqmstream": __version__,
    }


def write(found: Findings, out: Path) -> list[Path]:
    """Write summary, tables and map into a folder that is new, empty, or an older comparison's, and return the files.

    Raises InputError if the folder holds anything else or cannot be written.
    """
    paths = [out / name for name in FILES]
    try:
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(nan_as_null(as_json(found)), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _table(paths[1], (_channel(found, c) for c in found.channel_tests.order))
        _table(paths[2], (_box(found, k) for k in found.box_tests.order))
        draw_comparison(paths[3], found)
    except OSError as error:
        raise InputError(f"cannot write {error.filename or out}: {error.strerror or error}; choose another folder") from error
    return paths


def check_folder(out: Path) -> None:
    """Raise InputError for a folder that `write` would refuse; to be called before a long comparison."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file: give a folder")
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in FILES)
    if foreign:
        raise InputError(f"{out} holds files that no comparison wrote ({foreign[0]}): give a new folder")


def box_name(name: int) -> str:
    """For instance RBX -12, box 12 at ieta < 0."""
    return f"RBX {name:+d}"


def _channel(found: Findings, c: int) -> dict[str, Any]:
    channels, tested = found.pair.channels, found.channel_tests
    place = {"ieta": int(channels.ieta[c]), "iphi": int(channels.iphi[c]), "depth": int(channels.depth[c])}
    return {
        **place,
        "rbx": int(channels.box[c]),
        **_numbers(tested, c),
        "state": str(found.states[c]),
        "overdispersion": float(found.rho[c]),
    }


def _box(found: Findings, k: int) -> dict[str, Any]:
    name = int(found.box_names[k])
    state = "changed" if found.box_tests.changed[k] else ""
    return {"rbx": name, "channels": int(found.box_channels[k]), **_numbers(found.box_tests, k), "state": state}


def _numbers(tested: ChangeTests, place: int) -> dict[str, float]:
    values = {"ratio": tested.ratio, "ratio_error": tested.error, "pull": tested.pull, "p": tested.p, "q": tested.q}
    return {name: float(value[place]) for name, value in values.items()}


def _interval(auc: Auc) -> dict[str, float]:
    return {"value": auc.value, "low": auc.low, "high": auc.high}


def _table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a CSV file with a header. A number that is not finite is an empty field."""
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
