"""The figures of the fault benchmark: each detector's, with intervals, over all faults and by kind of fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.faults.cell import FaultCell
from dqmstream.experiments.faults.detection_metrics import CAPTURES, PREVALENCES, Tally, precision
from dqmstream.experiments.faults.spec import FaultSpec
from dqmstream.experiments.faults.track import ALL, KINDS
from dqmstream.experiments.simulator.streams import seed_use
from dqmstream.experiments.statistics import ClusteredInterval, Figures, clustered_figures

CAUGHT = (*(f"fpr_{capture:g}" for capture in CAPTURES), "auc")
PRECISE = tuple(f"precision_{capture:g}_{share:g}" for capture in CAPTURES for share in PREVALENCES)
FLAGGED = ("capture", "fpr", *(f"precision_{share:g}" for share in PREVALENCES))
NAMED = ("iou", "recall", "precision")
DELAY = ("delay", "at_once", "never")
ALARMS = ("alarms", "channel_alarms")
"""Names of the figures of lumisections and channels (two groups), of lumisections flagged with thresholds from past good data,
of channels named, of delays, and of false alarms."""


def summarise(spec: FaultSpec, records: Mapping[FaultCell, Record]) -> dict[str, Any]:
    """All figures, ready for JSON.

    "detectors" has an entry for each detector. Its "kinds" has by kind of fault, and for "all", the groups "lumisections" and
    "channels" (false-positive rates, AUC, precisions), "flagged", "named" and "delays"; each figure is {"estimate", "low",
    "high"}. "cost" has the mean over streams of what `Track.results` says.
    """
    finished = [(cell, record) for cell, record in records.items() if "error" not in record]
    by_detector = {name: [record for cell, record in finished if cell.detector == name] for name in spec.detectors}
    return {
        "seeds": list(spec.seeds),
        "use": seed_use(spec.seeds),
        "spec": asdict(spec),
        "kinds": list(KINDS),
        "detectors": [_of_detector(name, of_detector) for name, of_detector in by_detector.items() if of_detector],
        "failed": [
            f"failed: {cell.detector}, seed {cell.seed}: {record['error']}"
            for cell, record in records.items()
            if "error" in record
        ],
    }


def _of_detector(name: str, records: Sequence[Record]) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        kinds[kind] = {
            side: _intervals(records, [_caught(record[side][kind]) for record in records], (*CAUGHT, *PRECISE))
            for side in ("lumisections", "channels")
        }
        kinds[kind]["flagged"] = _intervals(records, [_flagged(record["flagged"][kind]) for record in records], FLAGGED)
        kinds[kind]["named"] = _intervals(records, [_named(record["named"][kind]) for record in records], NAMED)
        kinds[kind]["delays"] = _intervals(records, [_delays(record, kind) for record in records], DELAY)
    forgetting = [record["replayed"]["forgetting"] for record in records if record["replayed"]["forgetting"] is not None]
    costs = [record["cost"] for record in records]
    return {
        "detector": name,
        "cells": len(records),
        "kinds": kinds,
        "alarms": _intervals(records, [_alarms(record["alarms"]) for record in records], ALARMS),
        "replayed": [record["replayed"] for record in records],
        "forgetting": float(np.mean(forgetting)) if forgetting else None,
        "cost": {
            what: None if any(cost[what] is None for cost in costs) else float(np.mean([cost[what] for cost in costs]))
            for what in costs[0]
        },
        "seconds": {step: float(np.mean([record["seconds"][step] for record in records])) for step in ("look", "learn")},
    }


def _intervals(records: Sequence[Record], figures: Sequence[Figures], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    intervals = clustered_figures(figures, [len(record["runs"]) for record in records])
    return {name: _as_json(interval) for name, interval in zip(names, intervals, strict=True)}


def _as_json(interval: ClusteredInterval) -> dict[str, Any]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _caught(tally: Mapping[str, Any]) -> Figures:
    return Tally(np.array(tally["faulty"]), np.array(tally["good"])).figures


def _flagged(rows: Sequence[Sequence[int]]) -> Figures:
    faulty, caught, good, wrong = np.array(rows, dtype=np.float64).T

    def figures(weights: np.ndarray) -> np.ndarray:
        capture, rate = _ratio(weights, caught, faulty), _ratio(weights, wrong, good)
        return np.stack([capture, rate, *(precision(capture, rate, share) for share in PREVALENCES)], axis=1)

    return figures


def _named(rows: Sequence[Sequence[float]]) -> Figures:
    n, iou, recall, precision, some = np.array(rows, dtype=np.float64).T
    return lambda weights: np.stack(
        [_ratio(weights, iou, n), _ratio(weights, recall, n), _ratio(weights, precision, some)], axis=1
    )


def _delays(record: Record, kind: str) -> Figures:
    faults, found, sum_of_delays, at_once = np.zeros((4, len(record["runs"])))
    for run, of_kind, delay in record["faults"]:
        if kind in (of_kind, ALL):
            faults[run] += 1
            found[run] += delay is not None
            sum_of_delays[run] += delay or 0
            at_once[run] += delay == 0
    return lambda weights: np.stack(
        [_ratio(weights, sum_of_delays, found), _ratio(weights, at_once, faults), _ratio(weights, faults - found, faults)],
        axis=1,
    )


def _alarms(rows: Sequence[Sequence[float]]) -> Figures:
    share, lumisections, channels = np.array(rows, dtype=np.float64).T
    return lambda weights: np.stack([_ratio(weights, lumisections, share), _ratio(weights, channels, share)], axis=1)


def _ratio(weights: np.ndarray, over: np.ndarray, under: np.ndarray) -> np.ndarray:
    below = weights @ under
    return np.divide(weights @ over, below, out=np.full(len(weights), np.nan), where=below > 0)
