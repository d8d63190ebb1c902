"""What the streams outside the law of gains are made of: in which runs it occurs, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutsideLaw:
    """Parts that counts Binomial(N, p(R * gain * rate)) with constant gains do not have. Sizes are chosen, not measured.

    A name that ends in _p is the share of runs with that part; each run draws its own parameters.

    overdispersion: variance of counts over the binomial one. ring_mode_p, ring_mode_sigma: all channels of a ring, on each
    side, move together from lumisection to lumisection by a normal factor with mean 1. pattern_p: another pattern without
    effect on the mean moves. A run has ring modes or a pattern, not both: the two shares add up to 1 at most. threshold_boxes,
    threshold_range, threshold_slope: readout boxes whose rate is multiplied by 1 + slope * (R - threshold) above a pileup
    threshold; thresholds are uniform in the range, slopes uniform in the range with either sign. flickers: channels that are
    out part of the time. trip_share: length of the stretch in which a readout box is off, over that of the run.
    """

    overdispersion: float = 1.0
    overdispersion_p: float = 0.0
    ring_mode_sigma: float = 0.0
    ring_mode_p: float = 0.0
    pattern_p: float = 0.0
    threshold_boxes: int = 0
    threshold_range: tuple[float, float] = (0.0, 0.0)
    threshold_slope: tuple[float, float] = (0.0, 0.0)
    threshold_p: float = 0.0
    flickers: int = 0
    flicker_p: float = 0.0
    trip_share: float = 0.0
    trip_p: float = 0.0


OVERDISPERSED = OutsideLaw(overdispersion=1.5, overdispersion_p=1.0, ring_mode_sigma=0.02, ring_mode_p=1.0)
THRESHOLD = OutsideLaw(threshold_boxes=6, threshold_range=(2.0, 4.5), threshold_slope=(0.007, 0.02), threshold_p=1.0)
PATTERNS = OutsideLaw(pattern_p=1.0)
TRANSIENT = OutsideLaw(flickers=20, flicker_p=1.0, trip_share=0.1, trip_p=1.0)
MIXTURE = OutsideLaw(
    overdispersion=1.5,
    overdispersion_p=0.5,
    ring_mode_sigma=0.02,
    ring_mode_p=0.3,
    pattern_p=0.5,
    threshold_boxes=6,
    threshold_range=(2.0, 4.5),
    threshold_slope=(0.007, 0.02),
    threshold_p=0.5,
    flickers=20,
    flicker_p=0.5,
    trip_share=0.1,
    trip_p=0.5,
)

TWIN = "-null"
"""End of the name of a stream's null twin."""

OUTSIDE_CHOICES: dict[str, tuple[str, ...]] = {
    "every": (
        "In a null twin every run has the gains, the faults and the law of movements of the first run; conditions, movements "
        "and counts are drawn anew, so that nothing depends on the run.",
    ),
    "overdispersed": (
        "Counts are beta-binomial: the probability of each count is drawn from a beta distribution of a concentration that "
        "makes the variance 1.5 times binomial, whatever the number of events, independently in each channel and lumisection.",
        "The rate of each ring, on each side, is multiplied by 1 + .02 z in each lumisection, z normal and independent; all "
        "runs have these modes. Runs differ by the drift of gains alone: no channel dies and no readout box loses gain.",
    ),
    "threshold": (
        "Six readout boxes of a run, drawn uniformly, have a threshold uniform in 2 to 4.5 and a slope uniform in .7 to 2 % a "
        "unit of pileup, of either sign; the first run has them too. Below its threshold a box responds as in other runs. "
        "Pileup falls through the thresholds, so that the boxes of a run differ most at its start.",
    ),
    "patterns": (
        "Four families, in a random order in each four runs: a standing wave (5 rings of a side, 1 to 8 waves, normal "
        "amplitude of 6 %), a travelling wave (rings and waves drawn alike, amplitude 5 %, phase walking by .5 rad a "
        "lumisection), 4 rings against their mirror rings (normal amplitude of 5 %), and a bump of 12 % that walks around the "
        "detector by .4 rad a lumisection, less its mean.",
        "A pattern multiplies the rate by a factor whose mean is 1; the mean count changes by the square of its size.",
        "Normal amplitudes are independent from lumisection to lumisection; the phase of a travelling wave and the place of a "
        "bump are not.",
    ),
    "transient": (
        "A flickering channel drops out with probability .1 a lumisection and stays out with probability .7: it is out for a "
        "quarter of the time, from the start of the run. A channel that is out counts nothing.",
        "The readout box that trips is off, once, for a tenth of the run, from a lumisection drawn uniformly.",
    ),
    "mixture": (
        "Each run has overdispersed counts, thresholds, flickering channels and a trip with probability .5 each; with "
        "probability .5 a pattern, with .3 ring modes, not both. What a part is, the other streams say.",
        "Drift, deaths, repairs and losses of readout boxes are those of small. A run's gain leaves its faults out.",
    ),
}
"""Assumptions behind each stream, by its name; "every" holds for all."""
