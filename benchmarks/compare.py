"""What `dqmstream compare` names on simulated runs with and without changes, and how long it takes.

    python -m benchmarks.compare                           # runs of 400 lumisections; about 7 minutes on one core
    python -m benchmarks.compare --seeds 2 --null-seeds 2  # a quick look
    python -m benchmarks.compare --only real               # conditions of data taking; about 3 minutes

null      nothing changed between the runs of a pair: the share of pairs with any discovery must be at most the rate. Measuring
          this share takes more streams than the rest: seeds 100 to 139, against 100 to 109
brighter  nothing changed, but the second run has 0.8 of the pileup and 0.7 of the events
sparse    80 channels changed and all others stayed exactly the same, so that precision is well defined
real      conditions of data taking (`simulator.stretches`), without a change and with those of `sparse`; saturated: five
          times the rates, so that hardly a channel misses an event at the highest pileup
moderate, small   every channel drifts, so no discovery is false; precision is given by the size of the true change
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, kstest

from dqmstream.experiments.compare.compare import compare_pair
from dqmstream.experiments.compare.comparison import Comparison
from dqmstream.experiments.compare.pair import pair_of
from dqmstream.experiments.compare.run_counts import RunCounts
from dqmstream.experiments.simulator import LIVE, READOUT_BOXES, SimulatedRun, draw_counts, stream, write
from dqmstream.experiments.simulator.stretches import rate_per_pileup, stretch
from dqmstream.lumisection import rbx_mask

RATE = 0.05
LUMISECTIONS = 400
FIRST_SEED = 100

DRIFTED, DEGRADED, KILLED, HOT = 40, 10, 3, 2
BOX_FACTOR = 0.95

LENGTHS = (20, 50, 100, 300, 1000)
PAIRS = (
    ("level", "level"), ("level", "fall"), ("fall", "fall"), ("level", "tail"), ("fall", "tail"), ("ramp", "level"),
    ("ramp", "ramp"), ("low", "low"), ("low", "level"),
)  # fmt: skip
"""Lengths of runs under conditions of data taking, and the stretches of a fill that two runs are taken from."""


@dataclass(frozen=True, eq=False)
class Known:
    """Two runs whose truth is known.

    gain: of the second over the first, live channels, (932,). boxes: names of the readout boxes that changed.
    """

    first: RunCounts
    second: RunCounts
    gain: np.ndarray
    boxes: frozenset[int]

    def compare(self) -> Comparison:
        return compare_pair(pair_of(self.first, self.second), RATE)


def counts_of(run: SimulatedRun, *, events_known: bool = True) -> RunCounts:
    """A simulated run in the form that `pair_of` takes."""
    events = run.events if events_known else np.full(len(run.events), np.nan)
    return RunCounts(run.run, f"run {run.run}", run.counts, events, np.arange(1, len(events) + 1), 1)


def stream_pairs(name: str, seed: int, lumisections: int, *, runs: int = 8, events_known: bool = True) -> Iterator[Known]:
    """Pair runs 0 and 1, 2 and 3, ... of a stream, so that no run is in two pairs."""
    drawn = stream(name, seed=seed, runs=runs, lumisections=lumisections)
    for first in drawn:
        second = next(drawn)
        before, after = first.rate[LIVE], second.rate[LIVE]
        # A channel that is dead in both runs has not changed; for one that is repaired the ratio is infinite.
        gain = np.divide(after, before, out=np.where(after > 0, np.inf, 1.0), where=before > 0)
        boxes = frozenset(box["side"] * box["n"] for run in (first, second) for box in run.truth["rbx"])
        one, other = (counts_of(run, events_known=events_known) for run in (first, second))
        # A factor common to all channels counts as luminosity, not as a change.
        yield Known(one, other, gain / np.median(gain), boxes)


def redrawn(
    seed: int, lumisections: int, gain: np.ndarray, *, events: float = 1.0, pileup: float = 1.0
) -> tuple[RunCounts, RunCounts]:
    """The first two runs of `null`, the second drawn anew with a gain, (64, 72), and with scaled events and pileup."""
    first, second = stream("null", seed=seed, runs=2, lumisections=lumisections)
    n, r = np.round(second.events * events), second.pileup * pileup
    counts = draw_counts(second.rate * gain, n, r, np.random.default_rng((seed, 1)))
    return counts_of(first), RunCounts(second.run, f"run {second.run}", counts, n, np.arange(1, len(n) + 1), 1)


def brighter_pair(seed: int, lumisections: int) -> Known:
    """A pair in which only luminosity changed."""
    first, second = redrawn(seed, lumisections, np.ones(LIVE.shape), events=0.7, pileup=0.8)
    return Known(first, second, np.ones(LIVE.sum()), frozenset())


def sparse_pair(seed: int, lumisections: int) -> Known:
    """A readout box at 0.95, 40 channels changed by 1 to 5 %, 10 at 0.2 to 0.8, 3 dead, 2 hot; all others unchanged."""
    gain, box = sparse_gain(np.random.default_rng((seed, 2)))
    first, second = redrawn(seed, lumisections, gain)
    return Known(first, second, gain[LIVE], frozenset({box}))


def sparse_gain(rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Draw the changes of `sparse_pair`: gains, (64, 72), and the name of the readout box."""
    side, n = READOUT_BOXES[rng.integers(len(READOUT_BOXES))]
    box = rbx_mask(side, n)
    gain = np.where(box, BOX_FACTOR, 1.0)
    rows = rng.permutation(np.argwhere(LIVE & ~box))[: DRIFTED + DEGRADED + KILLED + HOT]
    factors = np.concatenate(
        [
            1 + rng.uniform(0.01, 0.05, DRIFTED) * rng.choice([-1, 1], DRIFTED),
            rng.uniform(0.2, 0.8, DEGRADED),
            np.zeros(KILLED),
            np.full(HOT, 2.0),
        ]
    )
    gain[tuple(rows.T)] = factors
    return gain, side * n


def real_pair(
    kinds: tuple[str, str],
    seed: int,
    *,
    changed: bool = False,
    events_known: bool = True,
    saturated: bool = False,
    lengths: Sequence[int] = LENGTHS,
) -> Known:
    """Two runs with these kinds of pileup and lengths drawn from `lengths`, without a change or with those of `sparse_pair`."""
    rng = np.random.default_rng((seed, 3, PAIRS.index(kinds)))
    gain, boxes = np.ones(LIVE.shape), frozenset[int]()
    if changed:
        gain, box = sparse_gain(rng)
        boxes = frozenset({box})
    rate, both = rate_per_pileup(seed) * (5 if saturated else 1), []
    for number, (kind, factor) in enumerate(zip(kinds, (np.ones(LIVE.shape), gain), strict=True), start=1):
        given = stretch(kind, int(rng.choice(lengths)), rng)
        counts = draw_counts(rate * factor, given.events, given.pileup, rng).astype(np.float32)
        events = given.events if events_known else np.full(len(given.events), np.nan)
        both.append(RunCounts(number, f"run {number}", counts, events, np.arange(1, len(events) + 1), 1))
    return Known(both[0], both[1], gain[LIVE], boxes)


@dataclass(frozen=True)
class Score:
    """Numbers of named channels and boxes, and of true ones, over all pairs. By threshold: of the size of the true change."""

    named: int
    changed_of_named: dict[float, int]
    changed: dict[float, int]
    found: dict[float, int]
    dead: tuple[int, int]
    boxes_named: int
    boxes_moved: int
    boxes_found: int


THRESHOLDS = (0.0, 0.003, 0.01, 0.03, 0.1)


def score(known: list[Known], comparisons: list[Comparison]) -> Score:
    """Compare what was named with the truth. A channel changed at a threshold if its true gain differs from 1 by more."""
    named = np.concatenate([_on_live(c, c.channel_tests.changed) for c in comparisons])
    size = np.concatenate([np.abs(k.gain - 1) for k in known])
    died = np.concatenate([k.gain == 0 for k in known])
    said = np.concatenate([_on_live(c, c.died) for c in comparisons])
    boxes = [(set(c.box_names[c.box_tests.changed].tolist()), k.boxes) for c, k in zip(comparisons, known, strict=True)]
    return Score(
        named=int(named.sum()),
        changed_of_named={x: int((size[named] > x).sum()) for x in THRESHOLDS},
        changed={x: int((size > x).sum()) for x in THRESHOLDS},
        found={x: int(named[size > x].sum()) for x in THRESHOLDS},
        dead=(int(said[died].sum()), int(died.sum())),
        boxes_named=sum(len(one) for one, _ in boxes),
        boxes_moved=sum(len(true) for _, true in boxes),
        boxes_found=sum(len(one & true) for one, true in boxes),
    )


def _on_live(comparison: Comparison, cells: np.ndarray) -> np.ndarray:
    """Flags of the compared channels as flags of all 932 live ones; a channel that is dead in both runs is not compared."""
    flags = np.zeros(LIVE.shape, dtype=bool)
    flags[comparison.pair.channels.live[0]] = cells
    return flags[LIVE]


def share(count: int, total: int) -> str:
    """A share with its 95 % interval (Clopper and Pearson)."""
    if not total:
        return "-"
    low, high = binomtest(count, total).proportion_ci(0.95, "exact")
    return f"{count / total:.3f} [{low:.3f}, {high:.3f}] ({count}/{total})"


def print_null(what: str, comparisons: list[Comparison]) -> None:
    channels = np.concatenate([c.channel_tests.p for c in comparisons])
    boxes = np.concatenate([c.box_tests.p for c in comparisons])
    print(f"\n{what}: {len(comparisons)} pairs without a change")
    for name, tests in (("channel", [c.channel_tests for c in comparisons]), ("box", [c.box_tests for c in comparisons])):
        print(f"  pairs with a {name} named: {share(sum(bool(one.changed.any()) for one in tests), len(tests))}")
    for name, p in (("channels", channels), ("boxes", boxes)):
        p = p[np.isfinite(p)]
        tails = ", ".join(f"{np.mean(p < x):.4f} below {x}" for x in (0.05, 0.01, 0.001))
        print(f"  p of {name}: KS against uniform {kstest(p, 'uniform').pvalue:.3f}; {tails} ({len(p)})")
    for name, aucs in (
        ("channels", [c.separation.channels for c in comparisons]),
        ("luminosity", [c.separation.luminosity for c in comparisons]),
    ):
        covered = share(sum(auc.low <= 0.5 <= auc.high for auc in aucs), len(aucs))
        print(f"  AUC by {name}: mean {np.mean([auc.value for auc in aucs]):.3f}, 95 % interval holds .5 in {covered}")


def print_score(what: str, known: list[Known], comparisons: list[Comparison]) -> None:
    found = score(known, comparisons)
    print(f"\n{what}: {len(known)} pairs, {found.named} channels named")
    for threshold in THRESHOLDS:
        precision = share(found.changed_of_named[threshold], found.named)
        recall = share(found.found[threshold], found.changed[threshold])
        print(f"  true gain off by more than {threshold:.1%}: precision {precision}, recall {recall}")
    print(f"  newly dead: named dead {share(*found.dead)}")
    print(f"  boxes: precision {share(found.boxes_found, found.boxes_named)}")
    print(f"  boxes: recall {share(found.boxes_found, found.boxes_moved)}")


REAL = (
    ("events known", {}),
    ("events unknown", {"events_known": False}),
    ("saturated, events known", {"saturated": True}),
    ("saturated, events unknown", {"saturated": True, "events_known": False}),
)


def print_real(seeds: Sequence[int]) -> None:
    """Print false channels and boxes, what was tested, and how many changes were named, for each kind of pair and over all."""
    for what, options in REAL:
        print(f"\nreal conditions, {what}: {len(seeds)} pairs of each kind without a change, as many with those of sparse")
        everything: list[Comparison] = []
        for kinds in PAIRS:
            done = [real_pair(kinds, seed, **options).compare() for seed in seeds]
            known = [real_pair(kinds, seed, changed=True, **options) for seed in seeds]
            found = [one.compare() for one in known]
            everything += done
            print(f"  {kinds[0]:>5} {kinds[1]:<5} {_false(done)}; {_tested(done)}; {_found(known, found)}")
        print(f"  all         {_false(everything)}; {_tested(everything)}")
        for name, tests in (("channel", [c.channel_tests for c in everything]), ("box", [c.box_tests for c in everything])):
            print(f"  pairs with a {name} named: {share(sum(bool(one.changed.any()) for one in tests), len(tests))}")


def _false(done: Sequence[Comparison]) -> str:
    channels = [int(c.channel_tests.changed.sum()) for c in done]
    worst = max(float(np.nanmax(np.abs(c.channel_tests.pull), initial=0.0)) for c in done)
    return (
        f"false: {sum(map(bool, channels))} of {len(done)} pairs ({sum(channels)} channels, largest pull {worst:.1f}),"
        f" boxes {sum(bool(c.box_tests.changed.any()) for c in done)}"
    )


def _tested(done: Sequence[Comparison]) -> str:
    part = np.mean([np.isfinite(c.channel_tests.p).mean() for c in done])
    grounds = [c.ground.value for c in done]
    judged = ", ".join(f"{grounds.count(name)} {name}" for name in dict.fromkeys(grounds))
    return f"tested {part:.2f} of channels, refused {sum(not c.comparable for c in done)} ({judged})"


def _found(known: Sequence[Known], done: Sequence[Comparison]) -> str:
    """Recall of changes above 10 % and of dead channels, and precision of what is named."""
    large = dead = named_large = named_dead = named = true = 0
    for one, comparison in zip(known, done, strict=True):
        said, died = _on_live(comparison, comparison.channel_tests.changed), _on_live(comparison, comparison.died)
        strong = np.abs(one.gain - 1) > 0.1
        large, named_large = large + int(strong.sum()), named_large + int(said[strong].sum())
        dead, named_dead = dead + int((one.gain == 0).sum()), named_dead + int(died[one.gain == 0].sum())
        named, true = named + int(said.sum()), true + int((one.gain[said] != 1).sum())
    return f"changes above 10 %: {named_large} of {large}; dead: {named_dead} of {dead}; of {named} named {true} are true"


def print_times() -> None:
    """Time the command on two files of 10000 lumisections."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder) / "runs", "moderate", FIRST_SEED, 2, 10_000)
        files = [str(path) for path in paths if "_Dataset_" in path.name]
        began = time.monotonic()
        command = [sys.executable, "-m", "dqmstream", "compare", *files, "--out", str(Path(folder) / "out")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall_s = time.monotonic() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"\ntwo files of 10000 lumisections (370 MB each): {wall_s:.1f} s, processor {used.ru_utime + used.ru_stime:.1f} s,"
            f" largest resident {used.ru_maxrss / 1e6:.2f} GB, the mapped files counted"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--null-seeds", type=int, default=40, help="number of seeds of null, four pairs each")
    options.add_argument("--only", choices=["simulated", "real"], help="run one part only")
    options.add_argument("--first-seed", type=int, default=FIRST_SEED, help="seeds 0 to 9 were used for tuning")
    given = options.parse_args()
    seeds, null_seeds = (range(given.first_seed, given.first_seed + count) for count in (given.seeds, given.null_seeds))
    print(f"seeds {seeds[0]} to {seeds[-1]} (null: {null_seeds[-1]}), runs of {LUMISECTIONS} lumisections, rate {RATE}")
    if given.only != "simulated":
        print_real(seeds)
    if given.only == "real":
        return
    for known_events in (True, False):
        nulls = [
            known.compare()
            for seed in null_seeds
            for known in stream_pairs("null", seed, LUMISECTIONS, events_known=known_events)
        ]
        print_null("null, events known" if known_events else "null, events unknown", nulls)
    print_null("brighter, events known", [brighter_pair(seed, LUMISECTIONS).compare() for seed in seeds])
    draws: dict[str, Callable[[int], list[Known]]] = {
        "sparse": lambda seed: [sparse_pair(seed, LUMISECTIONS)],
        "moderate": lambda seed: list(stream_pairs("moderate", seed, LUMISECTIONS)),
        "small": lambda seed: list(stream_pairs("small", seed, LUMISECTIONS)),
    }
    for name, pairs_of in draws.items():
        known, comparisons = [], []
        for seed in seeds:
            for one in pairs_of(seed):
                comparisons.append(one.compare())
                known.append(Known(_bare(one.first), _bare(one.second), one.gain, one.boxes))
        print_score(name, known, comparisons)
    print_times()


def _bare(run: RunCounts) -> RunCounts:
    """The run without its counts, which over all pairs would take gigabytes."""
    return RunCounts(run.run, run.name, run.counts[:0], run.events, run.lumisection, run.scale)


if __name__ == "__main__":
    main()
