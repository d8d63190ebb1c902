"""Which channels changed from one run to the next, by the pull of the difference of their gains.

    pull_c = (d_kc - d_jc) / sqrt(var_kc + var_jc)

d is a channel's gain in a run relative to the reference run (`learners.closed_form.gain_map.GainMap`), k the run and j the one
before it. Without a change a pull is close to a standard normal number, whatever luminosity did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.maps import Maps, RunData
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part
from dqmstream.learners.stream.ledger import Experience, read_experience
from dqmstream.lumisection import IETA
from dqmstream.storage.archive import Archive

BEYOND = 5.0
"""A channel with a larger pull is called changed; by chance 6 in ten million channels have one."""


@dataclass(frozen=True, eq=False)
class GainChange:
    """A run compared with the run before it, for each live channel of the reference: float64, (live,).

    before: number of the run before. gain_before, gain_after: response relative to the reference run (1 unchanged, 0 dead).
    width: half of the range of the central 68.3 % of the pulls, 1 if only counting noise moves them. from_reference: the run
    before is the reference run itself.
    """

    before: int
    gain_before: np.ndarray
    gain_after: np.ndarray
    pull: np.ndarray
    width: float
    from_reference: bool

    @property
    def beyond(self) -> int:
        """Number of channels whose pull is beyond ±5."""
        return int(np.sum(np.abs(self.pull) > BEYOND))

    @property
    def expected_beyond(self) -> float:
        """The number expected beyond ±5 if nothing changed."""
        return float(2 * norm.sf(BEYOND) * self.pull.size)

    @property
    def expected_beyond_by_width(self) -> float:
        """The number expected beyond ±5 if all channels scattered with this width."""
        return float(2 * norm.sf(BEYOND / max(self.width, 1.0)) * self.pull.size)


@dataclass(frozen=True, eq=False)
class RunView:
    """What the report shows of a run's train part. Maps are float64, (depth, 64, 72), nan in cells that never count.

    first, mean: the first lumisection and the mean, in counts per event if most numbers of events are known (per_event), else
    in counts per lumisection. live: live channels of the reference, bool, (depth, 64, 72). awake: other channels that count in
    this run, as (ieta, iphi, depth). change: None for the first run.
    """

    run: int
    lumisections: int
    first_lumisection: int
    first: np.ndarray
    mean: np.ndarray
    per_event: bool
    live: np.ndarray
    awake: list[tuple[int, int, int]]
    change: GainChange | None


def run_views(archive: Archive, experiences: Sequence[Experience], last: int) -> Iterator[RunView]:
    """Yield views of the last runs of a stream, one at a time. The first run and the run before the first shown are read too.

    experiences: learnt lines of the ledger, the reference run first. last: most runs to show.
    """
    start = max(0, len(experiences) - last)
    chosen = sorted({0, max(0, start - 1), *range(start, len(experiences))})
    gains = GainMap(archive.geometry, seed=0)
    for number, place in enumerate(chosen):
        run = read_experience(archive, experiences[place])
        gains.learn(number, run, lambda past: read_experience(archive, experiences[chosen[past]]))
        if place >= start:
            change = _gain_change(gains, experiences[chosen[number - 1]].run, chosen[number - 1] == 0) if number else None
            yield view_of(run, gains.reference, change)


def largest(change: GainChange, live: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The channels with the largest pulls, in falling order. live: bool, (depth, 64, 72). count: most channels to list."""
    channels = _channels(live)
    order = np.argsort(-np.abs(change.pull), kind="stable")[:count]
    return [
        {
            "ieta": channels[c][0],
            "iphi": channels[c][1],
            "depth": channels[c][2],
            "gain_before": float(change.gain_before[c]),
            "gain_after": float(change.gain_after[c]),
            "pull": float(change.pull[c]),
        }
        for c in order
    ]


def _gain_change(gains: GainMap, before: int, from_reference: bool) -> GainChange:
    """Compare the last run that the gain map learnt with the one before. before: number of that run."""
    old, new = gains.gains[-2:].astype(np.float64)
    variance = (gains.gain_errors[-2:].astype(np.float64) ** 2).sum(axis=0)
    # Without a measurement of a channel its error is infinite or its gain undefined: no change is claimed.
    told = np.isfinite(new - old) & (variance > 0)
    pull = np.divide(new - old, np.sqrt(variance), out=np.zeros_like(new), where=told)
    low, high = np.quantile(pull, [norm.cdf(-1), norm.cdf(1)])
    return GainChange(before, 1 + old, 1 + new, pull, float(high - low) / 2, from_reference)


def view_of(run: RunData, reference: Reference, change: GainChange | None) -> RunView:
    """What the report shows of a run. Empty lumisections, and those of unknown events if most are known, are left out."""
    train = run.part(Part.TRAIN)
    counting = (train.counts > 0).any(axis=0)
    known = np.flatnonzero(np.nan_to_num(train.n_events) > 0)
    per_event = len(known) > len(train) / 2
    used = train.take(known) if per_event else train
    mean = _mean(used) if per_event else used.counts.mean(axis=0, dtype=np.float64)
    first = used.counts[0] / used.n_events[0] if per_event else used.counts[0].astype(np.float64)
    shown = reference.live | counting  # a dead channel stays on the map, as zero
    return RunView(
        run=run.run,
        lumisections=len(train),
        first_lumisection=int(used.lumisection[0]),
        first=np.where(shown, first, np.nan),
        mean=np.where(shown, mean, np.nan),
        per_event=per_event,
        live=reference.live,
        awake=_channels(counting & ~reference.live),
        change=change,
    )


def _mean(maps: Maps) -> np.ndarray:
    """Counts per event over all lumisections: float64, (depth, 64, 72)."""
    return np.asarray(maps.counts.sum(axis=0, dtype=np.float64) / maps.n_events.sum())


def _channels(cells: np.ndarray) -> list[tuple[int, int, int]]:
    """(ieta, iphi, depth) of the cells that are set in a bool map, (depth, 64, 72)."""
    return [(int(IETA[row]), int(column) + 1, int(depth) + 1) for depth, row, column in np.argwhere(cells)]
