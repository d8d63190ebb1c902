"""Compare two runs: which channels and readout boxes changed, how well they are told apart, and what luminosity alone says.

No comparison of this kind can see a factor common to all channels, which is luminosity or calibration; a change of a channel
that fires in nearly every event; or a fault that comes and goes within a run and leaves its mean alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.compare.comparison import Comparison
from dqmstream.experiments.compare.differences import half_differences
from dqmstream.experiments.compare.pair import Pair, pair_of
from dqmstream.experiments.compare.run_counts import RunLike, run_counts
from dqmstream.experiments.compare.separation import separate
from dqmstream.experiments.compare.significance import changes_of, changes_of_boxes, steady_channels
from dqmstream.storage.archive import Archive

_ROUNDS = 8


def compare_runs(
    a: RunLike,
    b: RunLike,
    *,
    archive: Archive | str | Path | None = None,
    n_events: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    rate: float = 0.05,
    interpolated: bool = False,
) -> Comparison:
    """Compare two runs, each given in any form that holds counts.

    Parameters
    ----------
    a, b : the runs
        A .npy file of a run; the number of a run in `archive`; an (archive, number) pair; a Dataset as `Archive.run` returns
        it; a DataArray with dimensions (lumisection, [depth,] ieta, iphi); a NumPy array of counts, (n, 64, 72) or
        (n, depth, 64, 72); or a `RunData`.
    archive : Archive or path, optional
        Holds the runs that are given by number.
    n_events : pair of arrays, optional
        Numbers of events in each lumisection of a and of b, (n,) each, None where unknown. Only for arrays and xarray objects;
        a Dataset may hold its own as the variable `n_events`. Pileup is not needed: it is read off the counts.
    rate : float
        False-discovery rate, above 0 and below 1: at most this share of what is named is expected to be chance.
    interpolated : bool
        Rows of the files or arrays were interpolated between lumisections, as in the published files.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        If a run cannot be read or the two cannot be compared.
    ArchiveError
        If the archive does not hold a run.

    Examples
    --------
    >>> import dqmstream as dq
    >>> a, b = dq.simulate_runs("null", seed=1, runs=2, lumisections=100)
    >>> b.maps.counts[:, 0, 10, 20] = 0
    >>> comparison = dq.compare(a, b)
    >>> first = comparison.channels.isel(channel=0)
    >>> int(first.ieta), int(first.iphi), str(first.state.values)
    (-22, 21, 'dead')
    """
    if not 0 < rate < 1:
        raise InputError(f"rate {rate} is not above 0 and below 1: give a share such as 0.05")
    reader = Archive.open(Path(archive)) if isinstance(archive, str | Path) else archive
    both = [
        run_counts(given, name, reader, events, interpolated)
        for given, name, events in zip((a, b), ("run A", "run B"), n_events, strict=True)
    ]
    return compare_pair(pair_of(both[0], both[1]), rate)


def compare_pair(pair: Pair, rate: float = 0.05) -> Comparison:
    """Compare two runs that have been read. rate: false-discovery rate, above 0 and below 1."""
    a, b = pair.samples
    channels, known = pair.channels, pair.counts_events
    steady = np.ones(len(channels), dtype=bool)
    separation = separate(a, b, channels, steady, known)
    for _ in range(_ROUNDS):
        differences = half_differences(a, b, channels, steady, known)
        tests = changes_of(differences.estimate, differences.testable, rate)
        names, members, boxes = changes_of_boxes(differences, channels, rate)
        # A changed channel must not be taken for luminosity: read conditions off the others, until these stay the same.
        kept = steady_channels(differences, channels, rate)
        if kept.mean() < 0.5 or (kept == steady).all():
            break
        steady = kept
    return Comparison(
        pair=pair,
        rate=rate,
        separation=separation,
        channel_tests=tests,
        box_tests=boxes,
        box_names=names,
        box_channels=members,
        common=differences.common,
        overlap=differences.overlap,
        ground=differences.ground,
        rho=differences.rho,
        spread=2 * float(np.sqrt(differences.spread())),
    )
