"""Draws the runs of a stream: conditions, history of the detector, faults, and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.simulator.conditions import (
    FIRST_RUN,
    Luminosity,
    check_run_numbers,
    draw_conditions,
    lazy_run_number,
    luminosity,
    run_length,
    run_numbers,
)
from dqmstream.experiments.simulator.detector import (
    LIVE,
    common_mode,
    draw_counts,
    fingerprint,
    fire,
    noisy_boxes,
    nominal_rate,
)
from dqmstream.experiments.simulator.detector_history import DetectorHistory, detector_history
from dqmstream.experiments.simulator.draws import Purpose, generator, run_generators
from dqmstream.experiments.simulator.run import SimulatedRun, faulty_probability
from dqmstream.experiments.simulator.run_law import draw_law_counts, run_law
from dqmstream.experiments.simulator.streams import NamedStream, named_stream
from dqmstream.experiments.simulator.tables import TableConditions, under_tables


def stream(
    name: str,
    *,
    seed: int,
    runs: int | None = None,
    lumisections: int | None = None,
    first_run: int = FIRST_RUN,
    given: TableConditions | None = None,
) -> Iterator[SimulatedRun]:
    """Draw the runs of a named stream one at a time; none is kept.

    runs, lumisections: how many; by default the stream's own. Runs of `campaign` have lengths of their own, and are cut to this
    number. first_run: number of the first run; `pair` has its own. given: runs with these conditions, numbers and lengths
    instead of the stream's; the detector changes as in the stream. Raises
    InputError at once, before a run is drawn, for a name that does not exist, fewer than one run or lumisection, a negative
    seed, or more runs than the stream has.
    """
    named, numbers = checked(name, seed, runs, lumisections, first_run, given)
    return draw_runs(named, seed, numbers, lumisections, given)


def simulated_run(
    name: str, index: int, *, seed: int, lumisections: int | None = None, first_run: int = FIRST_RUN
) -> SimulatedRun:
    """Draw run `index` (from 0) of a named stream alone, with the same bits as `stream`.

    In `year` and `tracks` every run costs about the same; in other streams the detector is stepped through all earlier runs,
    without drawing their counts. Raises InputError as `stream` does.
    """
    named, numbers = _checked_alone(name, index, seed, lumisections, first_run)
    path = _path(named, seed, index, lumisections)
    return _draw(named, seed, index, path, numbers, detector_history(named, seed, numbers))


def checked(
    name: str,
    seed: int,
    runs: int | None,
    lumisections: int | None,
    first_run: int = FIRST_RUN,
    given: TableConditions | None = None,
) -> tuple[NamedStream, list[int]]:
    """The stream of that name and its run numbers. Raises InputError as `stream` does."""
    named = named_stream(name)
    if given is not None:
        named, numbers = under_tables(named, given, runs)
        _check(named, seed, len(numbers), lumisections)
        return named, numbers
    runs = named.runs if runs is None else runs
    _check(named, seed, runs, lumisections)
    return named, run_numbers(named, seed, runs, first_run)


def draw_runs(
    named: NamedStream,
    seed: int,
    numbers: list[int],
    lumisections: int | None,
    given: TableConditions | None = None,
) -> Iterator[SimulatedRun]:
    """Draw the runs with those numbers, one after another. given: as for `stream`."""
    detector = detector_history(named, seed, numbers.__getitem__)
    for index in range(len(numbers)):
        path = given.runs[index].luminosity(lumisections) if given else _path(named, seed, index, lumisections)
        yield _draw(named, seed, index, path, numbers.__getitem__, detector)


def _path(named: NamedStream, seed: int, index: int, lumisections: int | None) -> Luminosity:
    return luminosity(named, seed, index, run_length(named, seed, index, lumisections))


def _checked_alone(
    name: str, index: int, seed: int, lumisections: int | None, first_run: int
) -> tuple[NamedStream, Callable[[int], int]]:
    named = named_stream(name)
    if index < 0:
        raise InputError(f"run index {index} is negative: give 0 for the first run")
    _check(named, seed, index + 1, lumisections)
    if named.lazy:
        check_run_numbers(first_run, lazy_run_number(seed, index, first_run))
        return named, lambda i: lazy_run_number(seed, i, first_run)
    return named, run_numbers(named, seed, index + 1, first_run).__getitem__


def _check(named: NamedStream, seed: int, runs: int, lumisections: int | None) -> None:
    length = 1 if lumisections is None else lumisections
    for what, value, least in (("runs", runs, 1), ("lumisections", length, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{what} must be {least} or more, not {value}")
    if named.most_runs is not None and runs > named.most_runs:
        raise InputError(f"the stream {named.name} has {named.most_runs} different runs at most, not {runs}: ask for fewer")


def _draw(
    named: NamedStream,
    seed: int,
    index: int,
    path: Luminosity,
    run_number: Callable[[int], int],
    detector: DetectorHistory,
) -> SimulatedRun:
    _, _, conditions, hits = run_generators(seed, index)
    law_index = 0 if named.one_law else index
    gain, faults = detector.at(law_index, path)
    if not named.faults_within:
        for fault in faults:
            gain = np.where(fault.channels, gain * fault.factor, gain)
    lasting = fingerprint(seed, off_their_ring=named.off_their_ring)
    rate = nominal_rate() / named.pileup_per_r * lasting * gain
    boxes = noisy_boxes(named.noisy_boxes, seed, index)
    events, pileup, truncated = draw_conditions(path, conditions)
    known = np.nan_to_num(pileup)
    whole = [] if named.within_runs else faults
    law = None
    if named.outside is not None:
        law = replace(run_law(named.outside, seed, law_index), lasting=tuple(whole))
        moves, drops = (generator(seed, Purpose.MOVEMENT, index, part) for part in range(2))
        faults = [*whole, *law.draw_faults(len(events), run_number(index), drops)]
        counts = draw_law_counts(law, rate, events, known, faults, moves, hits)
    elif named.within_runs:
        counts = fire(faulty_probability(rate, known, tuple(faults)), events, hits)
    else:
        moving = common_mode(rate, boxes, named.noise_sigma, len(events), hits) if boxes else rate
        counts = draw_counts(moving, events, known, hits)
    return SimulatedRun(
        run=run_number(index),
        counts=counts,
        events=events,
        pileup=pileup,
        rate=rate,
        truth={
            "run": run_number(index),
            "gain": compact(gain),
            "dead": [
                dict(zip(("ieta", "iphi"), fault.location.numbers, strict=True)) for fault in whole if fault.kind == "dead"
            ],
            "rbx": [
                dict(zip(("side", "n"), fault.location.numbers, strict=True)) | {"factor": fault.factor}
                for fault in whole
                if fault.kind == "box"
            ],
            "common_mode": [{"side": side, "n": n, "sigma": named.noise_sigma} for side, n in boxes],
            "truncated": truncated,
            "faults": [fault.truth() for fault in faults],
            **({} if law is None else {"law": law.truth()}),
            **path.truth,
        },
        faults=tuple(faults),
        faults_within=named.faults_within,
        law=law,
    )


def compact(cells: np.ndarray) -> list[float]:
    """Values of the live channels in row-major order, rounded to 5 significant digits. cells: (64, 72)."""
    return [float(f"{value:.5g}") for value in cells[LIVE]]
