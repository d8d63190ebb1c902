"""Rates of false alarms: what share of the test lumisections of known runs is flagged, at the rate that was asked for.

    python -m benchmarks.alarms [--seed 100 --seed 101] [--stream null ...] [--runs 10] [--lumisections 400] [--out DIR]

The new-run and fault scores run beside every learner and do not depend on its strategy. Each stream is learnt run by run:

* before a run is learnt (from the third on), its test lumisections are scored, as those of a new run;
* after the last run, the test lumisections of all runs are scored, as those of known runs.

Each block of 30 is scored with the 20 lumisections before it, as `dqmstream flags` scores a run. Prints a table (Markdown) for
the rate --alarms, then one JSON object with all rates, the last line of stdout. Finished streams are kept in DIR and reused.

Intervals: 95 %, of a binomial share (Clopper and Pearson) of as many independent lumisections as the spread between runs shows
(Korn and Graubard, Survey Methodology 24 (1998) 193), at most one a block: its windows of 30 lumisections overlap.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.experiments.simulator.streams import seed_use
from dqmstream.learners.evaluation.roc import auc
from dqmstream.learners.learnable import why_left_out
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.monitoring.novelty import Novelty
from dqmstream.learners.splits import Part, Split
from dqmstream.learners.threads import set_threads
from dqmstream.lumisection import Geometry

INSIDE = ("null", "moderate", "small", "structured", "tracks")
STREAMS = (*INSIDE, "overdispersed", "threshold", "patterns", "transient", "mixture", "campaign")
RATES = (0.05, 0.01, 0.001)
BEFORE = 20
"""Lumisections before a test block that are scored with it."""

COMPARED = 6
"""Most known runs that a new run is compared with, for its AUC."""


def blocks(run: RunData) -> list[tuple[Maps, int]]:
    """Test blocks of a run with the lumisections before them, and how many these are."""
    test = np.flatnonzero(run.parts == Part.TEST)
    found = []
    for rows in np.split(test, np.flatnonzero(np.diff(test) > 1) + 1):
        begin = int(rows[0])
        while begin > max(0, int(rows[0]) - BEFORE) and run.parts[begin - 1] == Part.GAP:
            begin -= 1
        found.append((run.maps.take(np.arange(begin, rows[-1] + 1)), int(rows[0]) - begin))
    return found


class Scored:
    """Alarms of test blocks, counted: score -> rate -> a list of (flagged, lumisections), one a block."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, list[tuple[int, int]]]] = {
            name: {f"{rate:g}": [] for rate in RATES} for name in ("new_run", "bound", "fault")
        }

    def add(self, novelty: Novelty, run: RunData, experience: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Score a run; returns its new-run and fault scores. experience: its number if it is known."""
        scores, faults = [], []
        for maps, before in blocks(run):
            found, fault = novelty.score(maps), novelty.fault_score(maps, experience)
            scores.append(found.score[before:])
            faults.append(fault.score[before:])
            blank = novelty.statistical.reference.blank(maps.counts[:, novelty.live])
            for rate in RATES:
                raised = {
                    "new_run": novelty.new_run_alarms(found, rate).raised,
                    "bound": found.bound <= rate,
                    "fault": novelty.fault_alarms(fault.score, blank, rate).raised & ~blank,
                }
                for name, flags in raised.items():
                    self.counts[name][f"{rate:g}"].append((int(flags[before:].sum()), len(flags) - before))
        return np.concatenate(scores), np.concatenate(faults)


def measured(name: str, seed: int, runs: int, lumisections: int) -> dict[str, Any]:
    """Learn a stream and count its alarms; ready for JSON."""
    novelty, known, new = Novelty(Geometry(1), seed), Scored(), Scored()
    learnt: list[RunData] = []
    new_run_auc, faulty, good = [], [np.zeros(0)], [np.zeros(0)]
    size = None if name == "campaign" else lumisections
    for simulated in stream(name, seed=seed, runs=runs, lumisections=size):
        run = as_run_data(simulated, Split())
        if why_left_out(run, as_reference=not learnt):
            continue
        if len(learnt) >= 2:
            score, fault = new.add(novelty, run, None)
            some = np.unique(np.linspace(0, len(learnt) - 1, COMPARED).round().astype(int))
            others = novelty.score_each([maps for i in some for maps, _ in blocks(learnt[i])])
            starts = [before for i in some for _, before in blocks(learnt[i])]
            of_known = [found.score[before:] for found, before in zip(others, starts, strict=True)]
            new_run_auc.append(auc(score, np.concatenate(of_known)))
            is_faulty = simulated.faulty[np.concatenate([maps.lumisection[before:] for maps, before in blocks(run)]) - 1]
            faulty.append(fault[is_faulty])
            good.append(fault[~is_faulty])
        novelty.learn(len(learnt), run, lambda number: learnt[number])
        learnt.append(run)
    for number, run in enumerate(learnt):
        known.add(novelty, run, number)
    truth = np.concatenate(faulty), np.concatenate(good)
    return {
        "stream": name,
        "seed": seed,
        "runs": len(learnt),
        "blocks_of_runs": [len(blocks(run)) for run in learnt],
        "known": known.counts,
        "new": new.counts,
        "new_run_auc": float(np.mean(new_run_auc)) if new_run_auc else None,
        "fault_auc": auc(*truth) if all(map(len, truth)) else None,
        "alarms": novelty.alarms_summary(),
        "calibrated": {f"{rate:g}": novelty.alarms.calibrated(rate) for rate in RATES},
        "law": novelty.law_summary(),
    }


def interval(flagged: Sequence[Sequence[tuple[int, int]]]) -> tuple[float, float, float]:
    """Share of lumisections that are flagged, and its interval; nan without runs.

    flagged: of each run, (flagged, lumisections) of its blocks.
    """
    hits, size = (np.array([sum(block[i] for block in run) for run in flagged], dtype=np.float64) for i in (0, 1))
    if not len(size):
        return np.nan, np.nan, np.nan
    share, runs = hits.sum() / size.sum(), len(size)
    variance = runs / max(runs - 1, 1) * ((hits - share * size) ** 2).sum() / size.sum() ** 2
    independent = float(sum(len(run) for run in flagged))
    if 0 < share < 1 and variance > 0:
        independent = min(max(share * (1 - share) / variance, runs / 2), independent)
    x = share * independent
    low = beta.ppf(0.025, x, independent - x + 1) if share > 0 else 0.0
    high = beta.ppf(0.975, x + 1, independent - x) if share < 1 else 1.0
    return float(share), float(low), float(high)


def by_run(record: dict[str, Any], side: str, name: str, rate: str) -> list[list[tuple[int, int]]]:
    """(flagged, lumisections) of the blocks of each run of a record."""
    sizes = record["blocks_of_runs"] if side == "known" else record["blocks_of_runs"][2:]
    ends = np.cumsum(sizes)
    found = record[side][name][rate]
    return [found[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def table(records: Sequence[dict[str, Any]], rate: float) -> list[dict[str, Any]]:
    """A row for each stream: shares of lumisections that are flagged, with intervals."""
    rows = []
    for name in dict.fromkeys(record["stream"] for record in records):
        mine = [record for record in records if record["stream"] == name]

        def of(side: str, what: str, mine: list[dict[str, Any]] = mine) -> tuple[float, float, float]:
            return interval([run for record in mine for run in by_run(record, side, what, f"{rate:g}")])

        aucs = {what: [record[what] for record in mine if record[what] is not None] for what in ("new_run_auc", "fault_auc")}
        rows.append(
            {
                "stream": name,
                "seeds": [record["seed"] for record in mine],
                "runs": sum(record["runs"] for record in mine),
                "known": of("known", "new_run"),
                "known_by_bound": of("known", "bound"),
                "known_fault": of("known", "fault"),
                "new": of("new", "new_run"),
                "new_by_bound": of("new", "bound"),
                **{what: float(np.mean(values)) if values else None for what, values in aucs.items()},
                "calibrated": all(all(record["calibrated"][f"{rate:g}"].values()) for record in mine),
                "holds": all(record["law"]["holds"] for record in mine),
            }
        )
    return rows


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text."""
    columns = ["stream", "known runs flagged", "by exp(-score)", "new runs flagged", "AUC", "known runs faulty", "fault AUC"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        shown = [
            f"`{row['stream']}`" + ("" if row["calibrated"] else " (not calibrated)"),
            _interval(row["known"]),
            f"{row['known_by_bound'][0]:.3f}",
            f"{row['new'][0]:.2f}",
            _number(row["new_run_auc"]),
            _interval(row["known_fault"]),
            _number(row["fault_auc"]),
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def _interval(found: tuple[float, float, float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*found)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, action="append", help="repeatable; 100 if none is given")
    parser.add_argument("--stream", action="append", choices=STREAMS, help="repeatable; all if none is given")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--lumisections", type=int, default=400, help="of each run; campaign has its own")
    parser.add_argument("--alarms", type=float, default=0.01, choices=RATES, help="rate of the table")
    parser.add_argument("--out", type=Path, help="folder for the counts of finished streams")
    asked = parser.parse_args()
    set_threads(1)
    seeds, records = asked.seed or [100], []
    for seed in seeds:
        for name in asked.stream or STREAMS:
            path = asked.out and asked.out / f"{name}-{seed}-{asked.runs}x{asked.lumisections}.json"
            if path is not None and path.exists():
                records.append(json.loads(path.read_text()))
                continue
            records.append(measured(name, seed, asked.runs, asked.lumisections))
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(records[-1]))
    found = {f"{rate:g}": table(records, rate) for rate in RATES}
    print(as_markdown(found[f"{asked.alarms:g}"]))
    print(json.dumps({"use": seed_use(seeds), "runs": asked.runs, "lumisections": asked.lumisections, "tables": found}))


if __name__ == "__main__":
    main()
