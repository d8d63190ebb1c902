"""The named streams: what differs between the runs of each, and nothing else.

All share the conditions of `dqmstream.experiments.simulator`, so that luminosity names no run. Sizes of drifts and
faults are chosen such that the streams run from impossible (`null`) over easy (`moderate`) to hard (`small`), and
to one that only correlations settle (`structured`); they were not measured on the detector.
"""

from __future__ import annotations

from dataclasses import dataclass

from dqmstream.errors import InputError


@dataclass(frozen=True, slots=True)
class NamedStream:
    """What happens to the detector before each run but the first, and the noise that a run carries.

    runs: default number of runs. drift_sigma: step of each channel's random walk, in the logarithm of its gain.
    death_p, repair_p: probability that one more channel dies, and that one dead channel is repaired. rbx_p:
    probability that a readout box loses gain, by a factor uniform in rbx_factor. noisy_boxes: readout boxes of each
    run (the first too) whose gain fluctuates as a whole from lumisection to lumisection, by the factor 1 +
    noise_sigma * a normal number.
    """

    name: str
    what: str
    runs: int
    drift_sigma: float = 0.0
    death_p: float = 0.0
    repair_p: float = 0.0
    rbx_p: float = 0.0
    rbx_factor: tuple[float, float] = (1.0, 1.0)
    noisy_boxes: int = 0
    noise_sigma: float = 0.0


STREAMS = {
    named.name: named
    for named in (
        NamedStream("null", "nothing differs between runs", runs=8),
        NamedStream(
            "moderate",
            "channels drift by 1.2 % a run, die and are repaired; readout boxes lose 5-20 %",
            runs=20,
            drift_sigma=0.012,
            death_p=0.5,
            repair_p=0.3,
            rbx_p=0.4,
            rbx_factor=(0.80, 0.95),
        ),
        NamedStream(
            "small",
            "channels drift by 0.4 % a run, die and are repaired; readout boxes lose 1-7 %",
            runs=20,
            drift_sigma=0.004,
            death_p=0.5,
            repair_p=0.3,
            rbx_p=0.4,
            rbx_factor=(0.93, 0.99),
        ),
        NamedStream(
            "structured",
            "one mean map for all runs; in each, two readout boxes have common-mode gain noise of 3 %",
            runs=20,
            noisy_boxes=2,
            noise_sigma=0.03,
        ),
    )
}

CHOICES = (
    "Every gain (fingerprint, drift, readout box, common mode) multiplies a channel's rate, not its count: a "
    "channel that fires in nearly every event hardly shows a change of gain, and no count passes the number of "
    "events.",
    "The fingerprint is divided by its median in each ring, since the published rates are ring medians.",
    "The first run is the start of the walk: all gains are 1 and no channel is dead. Changes happen before every later run.",
    "A step of the walk multiplies each live channel's gain by exp(sigma * a normal number).",
    "A dead channel stays dead until it is repaired, and then has the gain that its walk has reached; the channel "
    "that dies and the one that is repaired are drawn uniformly.",
    "A loss of gain of a readout box lasts that one run.",
    "No two runs of a stream have the same set of noisy boxes; two may share a box.",
    "Pileup falls linearly over the run, whatever its length.",
    "A truncated lumisection keeps its pileup and loses events.",
    "For one seed, all streams have the same fingerprint, run numbers, events and pileup, so that they can be "
    "compared in pairs.",
)
"""What the table of the named streams leaves open, and how it is settled here; written into truth.json."""


def named_stream(name: str) -> NamedStream:
    """The stream of that name. Raises InputError, which lists the names that exist."""
    if name not in STREAMS:
        raise InputError(f"there is no stream {name!r}: choose one of {', '.join(STREAMS)}")
    return STREAMS[name]
