"""The named streams: what differs between the runs of each, and which seeds are for tuning and for reporting.

`null`, `moderate`, `small` and `structured` have the same conditions in every run, so that luminosity does not tell runs apart.
Telling them apart is impossible in `null`, easy in `moderate`, hard in `small`, and possible only by correlations in
`structured`. `year` is long, `tracks` has fixed labels (good, faulty) under moving conditions, and `pair` is a model of the two
published runs. `campaign` has the conditions of data taking. `overdispersed`, `threshold`, `patterns`, `transient` and
`mixture` lie outside the law of gains (`dqmstream.experiments.simulator.outside_law`); each has a null twin, in which nothing
depends on the run. The sizes of drifts and faults are chosen, not measured on the detector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from dqmstream.errors import InputError
from dqmstream.experiments.simulator.outside_law import (
    MIXTURE,
    OUTSIDE_CHOICES,
    OVERDISPERSED,
    PATTERNS,
    THRESHOLD,
    TRANSIENT,
    TWIN,
    OutsideLaw,
)

Kind = Literal["dead", "degraded", "hot", "module", "box", "hem15/16", "flicker", "anomaly"]
"""Kinds of faults; `dqmstream.experiments.simulator.faults` says which channels each has."""


@dataclass(frozen=True, slots=True)
class FaultRate:
    """How often a fault of a kind begins, and how long it lasts.

    births_p: probability that one begins in a run (in the first run only if faults begin and end within runs). mean_runs,
    longest_runs: mean and maximum of the time to the repair, in runs; it is exponential, or geometric if faults last whole
    runs. factor: range of the factor on the channels' rate, drawn uniformly.
    """

    kind: Kind
    births_p: float
    mean_runs: float
    longest_runs: float
    factor: tuple[float, float]


@dataclass(frozen=True, slots=True)
class NamedStream:
    """What changes in the detector before each run except the first, and the noise within runs.

    name, what: the stream, and a line about it. runs: default number of runs. most_runs: number of different runs, None if
    unlimited. lumisections: default length, one number for all runs or one for each. drift_sigma: step of each channel's random
    walk, in the logarithm of its gain. death_p, repair_p: probability that one more channel dies, and that one dead channel is
    repaired. rbx_p: probability that a readout box loses gain for one run, by a factor uniform in rbx_factor. noisy_boxes:
    number of readout boxes in each run (the first too) whose gain fluctuates as a whole from lumisection to lumisection, by the
    factor 1 + noise_sigma * a normal number.

    luminosity: how events and pileup move (`dqmstream.experiments.simulator.conditions`); "fills": as in data taking, with
    runs of their own lengths; "tables": from a user's own tables. pileup_per_r: pileup at which R is 1, so that rates are per
    unit of pileup; 1 where the pileup of the stream is R itself. off_their_ring: the measured weak and strong channels are part
    of the fingerprint.
    luminosity_per_run_fb: mean delivered luminosity of a run in fb^-1, for the ageing of the detector; 0 without ageing.
    faults: those that last until a repair. within_runs: faults begin and end at lumisections, not between runs. anomaly_p:
    probability that a short anomaly begins in a lumisection. lazy: any run can be drawn without those before it. run_numbers:
    fixed numbers, if any.

    outside: what else moves within runs, outside the law of gains. one_law: a null twin: every run has the gains, the faults
    and the law of movements of the first run, and draws its own conditions, movements and counts.
    """

    name: str
    what: str
    runs: int
    most_runs: int | None = None
    lumisections: tuple[int, ...] = (400,)
    drift_sigma: float = 0.0
    death_p: float = 0.0
    repair_p: float = 0.0
    rbx_p: float = 0.0
    rbx_factor: tuple[float, float] = (1.0, 1.0)
    noisy_boxes: int = 0
    noise_sigma: float = 0.0
    luminosity: Literal["run", "fill", "moving", "published", "fills", "tables"] = "run"
    pileup_per_r: float = 1.0
    off_their_ring: bool = False
    luminosity_per_run_fb: float = 0.0
    faults: tuple[FaultRate, ...] = ()
    within_runs: bool = False
    anomaly_p: float = 0.0
    lazy: bool = False
    run_numbers: tuple[int, ...] = ()
    outside: OutsideLaw | None = None
    one_law: bool = False

    @property
    def faults_within(self) -> bool:
        """Whether some faults begin and end within a run."""
        return self.within_runs or self.outside is not None

    def length(self, index: int) -> int:
        """Default number of lumisections of a run."""
        return self.lumisections[index % len(self.lumisections)]


PILEUP_PER_R = 5.0
"""Pileup at which R is 1: run 357479 has R = 12 at a pileup of about 60."""

_CAMPAIGN: Any = {
    "runs": 20, "most_runs": 4096, "luminosity": "fills", "pileup_per_r": PILEUP_PER_R, "off_their_ring": True, "lazy": True,
}  # fmt: skip
"""What `campaign` and its null twin share."""

_OUTSIDE = (
    NamedStream(
        "overdispersed",
        "channels drift by 0.55 % a run; the variance of counts is 1.5 times binomial, and each ring moves by 2 %",
        runs=8,
        drift_sigma=0.0055,
        outside=OVERDISPERSED,
    ),
    NamedStream(
        "threshold",
        "no gain differs; in each run six readout boxes respond in another way above a pileup of their own",
        runs=8,
        outside=THRESHOLD,
    ),
    NamedStream(
        "patterns",
        "one mean map for all runs; in each, another wave, mirror pattern or bump moves from lumisection to lumisection",
        runs=8,
        outside=PATTERNS,
    ),
    NamedStream(
        "transient",
        "in each run, the first too, 20 channels flicker and a readout box trips for a tenth of the run",
        runs=8,
        outside=TRANSIENT,
    ),
    NamedStream(
        "mixture",
        "each run has some of all that the other streams have, on top of drift and faults as in small",
        runs=8,
        drift_sigma=0.004,
        death_p=0.5,
        repair_p=0.3,
        rbx_p=0.4,
        rbx_factor=(0.93, 0.99),
        outside=MIXTURE,
    ),
)
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
            most_runs=630,  # sets of two among 36 boxes: no two runs have the same
            noisy_boxes=2,
            noise_sigma=0.03,
        ),
        NamedStream(
            "year",
            "drift as in small over 1000 runs, with ageing, fills that runs share, and faults that are repaired",
            runs=1000,
            most_runs=4096,
            drift_sigma=0.004,
            luminosity="fill",
            luminosity_per_run_fb=0.06,
            faults=(
                FaultRate("dead", 0.5, 16, 64, (0.0, 0.0)),
                FaultRate("degraded", 0.1, 16, 64, (0.2, 0.8)),
                FaultRate("hot", 0.05, 8, 64, (2.0, 2.0)),
                FaultRate("module", 0.02, 8, 64, (0.0, 0.0)),
                FaultRate("box", 0.05, 8, 64, (0.93, 0.99)),
                FaultRate("hem15/16", 0.002, 32, 64, (0.0, 0.0)),
            ),
            lazy=True,
        ),
        NamedStream(
            "tracks",
            "faults of every kind come and go within runs; luminosity, drift and ageing move more than they do",
            runs=40,
            most_runs=4096,
            drift_sigma=0.012,
            luminosity="moving",
            luminosity_per_run_fb=1.5,
            faults=(
                FaultRate("dead", 0.15, 0.25, 0.5, (0.0, 0.0)),
                FaultRate("degraded", 0.15, 0.25, 0.5, (0.2, 0.8)),
                FaultRate("hot", 0.15, 0.25, 0.5, (2.0, 2.0)),
                FaultRate("module", 0.15, 0.25, 0.5, (0.0, 0.0)),
                FaultRate("box", 0.15, 0.25, 0.5, (0.80, 0.95)),
                FaultRate("hem15/16", 0.15, 0.25, 0.5, (0.0, 0.0)),
                FaultRate("flicker", 0.3, 0.5, 1, (0.0, 0.0)),
            ),
            within_runs=True,
            anomaly_p=0.06,
            lazy=True,
        ),
        NamedStream(
            "pair",
            "a model of the two published runs, 355456 and 357479: luminosity gives them away, as in the originals",
            runs=2,
            most_runs=2,
            lumisections=(501, 1046),
            drift_sigma=0.04,
            luminosity="published",
            run_numbers=(355456, 357479),
        ),
        NamedStream(
            "campaign",
            "fills, runs and live fractions as in data taking; channels drift by 0.4 % a run, faults last until their repair",
            drift_sigma=0.004,
            faults=(
                FaultRate("dead", 0.2, 8, 64, (0.0, 0.0)),
                FaultRate("degraded", 0.1, 8, 64, (0.2, 0.8)),
                FaultRate("hot", 0.03, 8, 64, (2.0, 2.0)),
                FaultRate("module", 0.02, 4, 64, (0.0, 0.0)),
                FaultRate("box", 0.3, 2, 16, (0.93, 0.99)),
                FaultRate("hem15/16", 0.002, 16, 64, (0.0, 0.0)),
            ),
            **_CAMPAIGN,
        ),
        NamedStream("campaign-null", "the conditions of campaign; nothing differs in the detector", **_CAMPAIGN),
        *_OUTSIDE,
        *(
            replace(one, name=one.name + TWIN, what=f"null twin of {one.name}: one law for all runs", one_law=True)
            for one in _OUTSIDE
        ),
    )
}

_EVERY_STREAM = (
    "Every gain (fingerprint, drift, readout box, common mode, ageing, fault) multiplies a channel's rate, not its count: "
    "a channel that fires in nearly every event hardly shows a change of gain, and no count passes the number of events. "
    "A short anomaly alone multiplies the count's mean, since the field's protocol does, with the number of events as bound.",
    "The fingerprint is divided by its median in each ring, since the published rates are ring medians.",
    "The first run is the start of the walk: all gains are 1 and no channel is dead. Changes happen before every later run.",
    "A step of the walk multiplies each live channel's gain by exp(sigma * a normal number).",
    "A truncated lumisection keeps its pileup and loses events; it is no fault.",
)
_ALIKE = (
    "A dead channel stays dead until it is repaired, and then has the gain that its walk has reached; the channel "
    "that dies and the one that is repaired are drawn uniformly.",
    "A loss of gain of a readout box lasts that one run.",
    "No two runs of a stream have the same set of noisy boxes; two may share a box.",
    "Common-mode noise is no fault: every run of its stream has it.",
    "Pileup falls linearly over the run, whatever its length.",
    "For one seed, null, moderate, small, structured and the streams outside the law of gains have the same fingerprint, run "
    "numbers, events and pileup, so that they can be compared in pairs; year, tracks and pair share the fingerprint with them.",
)
_LAZY_FAULTS = (
    "A fault's channels are drawn uniformly among the live ones (dead, degraded, hot, flicker, anomaly: one channel), the "
    "144 modules (two sides, 36 pairs of iphi, two ways to alternate) or the 36 readout boxes; faults that share a channel "
    "multiply.",
    "At most one fault of a kind begins in a run. A repaired channel has the gain that its walk and its age have reached.",
    "Modules and HEM15/16 that fail are off.",
    "The walk is one that any run can be asked for alone: halves of 4096 runs, each with its own normal numbers.",
)
_LAZY = (
    *_LAZY_FAULTS,
    "The response to a unit of rate falls as exp(-loss * integrated luminosity), with a loss of 0.0005 per fb^-1 at |ieta| "
    "19 that rises exponentially to 0.006 at 29; within a run it is held at its value at the start.",
    "A run number is drawn in each block of 40.",
)
_OF_FILLS = (
    "Pileup is that of OMS, not R: the rates are per unit of pileup, and R = 12 at a pileup of 60, as in run 357479.",
    "Channels that are far from their ring in both published runs have their measured gains instead of a lognormal number.",
    "The runs of a fill follow each other without a gap and have lengths of their own; if a length is asked for, longer runs "
    "are cut to it.",
    "N is Poisson around a constant of the era times the live fraction; an empty lumisection has a live fraction of 0, and one "
    "flag of it is false. Stable beams begin with the scan in the ramp.",
    "Luminosity tells runs of different eras apart, and runs that fall at different times of a fill, as in data taking; "
    "campaign-null shows how far.",
    "A truncated lumisection has less than 0.6 times the run's median of N; no event is taken from it after the draw.",
)
CHOICES: dict[str, tuple[str, ...]] = {
    **{
        name: (*_EVERY_STREAM, *_ALIKE, *OUTSIDE_CHOICES["every"], *OUTSIDE_CHOICES[name.removesuffix(TWIN)])
        for name in STREAMS
        if STREAMS[name].outside is not None
    },
    **dict.fromkeys(("null", "moderate", "small", "structured"), (*_EVERY_STREAM, *_ALIKE)),
    "year": (
        *_EVERY_STREAM,
        *_LAZY,
        "Faults begin and end between runs. A readout box loses 1-7 % as in small, and not for one run: until its repair.",
        "Pileup falls in a fill as luminosity burns off, from 7 to 3 whatever the fill's length, as 1 / (1 + t)**2. Four runs "
        "are cut into fills at random, each run boundary with probability .5; a fill never passes them. The noise of events "
        "and pileup starts anew with each run.",
        "Each four runs deliver the same luminosity: 0.06 fb^-1 a run, 60 fb^-1 in 1000 runs.",
    ),
    "tracks": (
        *_EVERY_STREAM,
        *_LAZY,
        "A lumisection is faulty if any channel of it is; a channel that flickers is faulty where it is out. A repair may "
        "come in the next run, at the latest half a run's length after the fault began (a run's length for flicker). Nearly "
        "every run has both labels; none is made to.",
        "A channel that flickers drops out with probability .1 a lumisection and stays out with probability .7.",
        "Short anomalies: one channel, 1, 2 or 3 lumisections (fewer at the run's end), and one of the six multipliers, each "
        "as likely as the others.",
        "Conditions move between runs: the median number of events is 1250 exp(.3 z) within 700-2200, pileup starts between 2 "
        "and 14, uniform in its logarithm, and falls linearly to 3/7 of that; events move by 10 % within a run.",
        "The runs are a sample of some years: each stands for 1.5 fb^-1.",
    ),
    "pair": (
        *_EVERY_STREAM,
        "Events and pileup fall linearly over a run by 2 % and 10 % around their middle in 355456, by 14 % and 20 % in 357479, "
        "and events move by another 2.5 % and 1 %: so chosen that the published maxima and spreads come out.",
    ),
    "campaign": (*_EVERY_STREAM, *_LAZY_FAULTS, *_OF_FILLS),
    "campaign-null": (*_EVERY_STREAM, *_OF_FILLS),
}
"""Assumptions behind each stream, which its parameters do not show; written into truth.json."""

TUNING_SEEDS = range(10)
FIRST_REPORTED_SEED = 100


def named_stream(name: str) -> NamedStream:
    """The stream of that name. Raises InputError with the list of names."""
    if name not in STREAMS:
        raise InputError(f"there is no stream {name!r}: choose one of {', '.join(STREAMS)}")
    return STREAMS[name]


def seed_use(seeds: Iterable[int]) -> Literal["tuning", "reported"]:
    """What the seeds are for: 0-9 for tuning, 100 and up for reported figures.

    Figures on streams that a choice was tuned on are too good. Raises InputError for no seeds, for a mixture, and for seeds
    below 0 or in 10-99, which are kept free so that the two uses stay apart.
    """
    seeds = sorted(set(seeds))
    if not seeds:
        raise InputError("no seed is given: choose from 0-9 for tuning, or 100 and up for reported figures")
    neither = [seed for seed in seeds if seed not in TUNING_SEEDS and seed < FIRST_REPORTED_SEED]
    if neither:
        raise InputError(
            f"seed {neither[0]} is neither for tuning (0-9) nor for reporting (100 and up): choose from one of these ranges; "
            "10-99 are kept free between them"
        )
    tuning = [seed for seed in seeds if seed in TUNING_SEEDS]
    if tuning and len(tuning) < len(seeds):
        raise InputError(
            f"seeds {tuning[0]} and {seeds[-1]} do not go together: 0-9 are for tuning and 100 and up for reported figures, "
            "which would be too good on streams used for tuning; make two calls"
        )
    return "tuning" if tuning else "reported"
