"""A simulated stream as files in the original layout, with the truth beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.experiments.simulator import conditions, detector, faults
from dqmstream.experiments.simulator.depths import AllDepthsRun, all_depths, check_depths
from dqmstream.experiments.simulator.depths import chosen as depths_chosen
from dqmstream.experiments.simulator.run import SimulatedRun
from dqmstream.experiments.simulator.runs import checked, compact, draw_runs
from dqmstream.experiments.simulator.streams import CHOICES, NamedStream
from dqmstream.experiments.simulator.tables import TableConditions


def write(
    out: Path,
    name: str,
    seed: int,
    runs: int | None = None,
    lumisections: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    interpolate_to: int | None = None,
    depths: int = 1,
    given: TableConditions | None = None,
) -> list[Path]:
    """Write a stream in the original layout into a folder of its own, and return the paths, truth.json last.

    Files: `Run{number}_Dataset_{name}.npy`, float64, (n, 64, 72); `Run{number}_events.npy` and `Run{number}_pileup.npy`,
    float64, (n,); `truth.json`, the constants of the stream and, under `runs`, one line a run with what differs in it: its
    gains over the fingerprint (all live channels in row-major order, 5 significant digits; `stream` with the same seed gives
    the exact ones), dead channels and losses of readout boxes that last the whole run, noisy boxes, truncated lumisections, and
    all faults with their channels and lumisections; 7 to 16 kB a run. Where faults come and go within runs, `golden.json`, a
    golden JSON of the lumisections without a fault.

    depths: 1 for HE depth 1, or 7 for all of HCAL (`simulator.depths`): counts are then uint16, (n, 7, 64, 72), gains and
    fingerprint are those of all its channels, and channels of faults are named with their depth; 140 kB a run. given: as for
    `stream`. progress: called with the number of runs written and of all runs. interpolate_to: number of rows that the
    lumisections of each run are interpolated to (see `interpolate`; the published files have 10000); the truth still counts in
    lumisections.

    Only one run is held in memory. Each file appears whole or not at all, and truth.json last; an interrupted call can be
    repeated. Raises InputError as `stream` does, and if the folder holds other files or cannot be written.
    """
    named, numbers = checked(name, seed, runs, lumisections, given=given)
    check_depths(named, depths)
    lengths = [
        given.runs[index].length(lumisections) if given else conditions.run_length(named, seed, index, lumisections)
        for index in range(len(numbers))
    ]
    if interpolate_to is not None:
        _check_rows(interpolate_to, max(lengths))
    layout = {number: _layout(out, number, name) for number in numbers}
    truth_file, golden_file = out / "truth.json", out / "golden.json"
    has_labels = named.within_runs and interpolate_to is None
    golden: dict[str, list[list[int]]] = {}
    paths = [*(path for three in layout.values() for path in three), *([golden_file] if has_labels else []), truth_file]
    try:
        out.mkdir(parents=True, exist_ok=True)
        own = {path.name for path in paths} | {_unfinished(path).name for path in paths}
        foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in own)
        if foreign:
            raise InputError(f"{out} holds other files ({foreign[0]}): choose an empty or new folder")
        truth_file.unlink(missing_ok=True)
        with _unfinished(truth_file).open("w") as truth:
            truth.write(json.dumps(_chosen(named, seed, lengths, interpolate_to, depths, given))[:-1] + ', "runs": [\n')
            he = draw_runs(named, seed, numbers, lumisections, given)
            drawn: Iterator[SimulatedRun | AllDepthsRun] = he if depths == 1 else all_depths(he, named, seed, numbers)
            for done, simulated in enumerate(drawn, start=1):
                arrays = (simulated.counts, simulated.events, simulated.pileup)
                for path, array in zip(layout[simulated.run], arrays, strict=True):
                    with _unfinished(path).open("wb") as file:
                        rows = array if interpolate_to is None else interpolate(array, interpolate_to)
                        np.save(file, rows, allow_pickle=False)
                    _unfinished(path).replace(path)
                golden[str(simulated.run)] = good_ranges(simulated.truth["faults"], len(simulated.counts))
                truth.write(json.dumps(simulated.truth) + ("\n]}\n" if done == len(numbers) else ",\n"))
                if progress is not None:
                    progress(done, len(numbers))
        if has_labels:
            _unfinished(golden_file).write_text(json.dumps(golden))
            _unfinished(golden_file).replace(golden_file)
        _unfinished(truth_file).replace(truth_file)
    except OSError as error:
        raise InputError(f"cannot write {error.filename or out}: {error.strerror or error}; choose another folder") from error
    return paths


def good_ranges(faults: list[dict[str, Any]], lumisections: int) -> list[list[int]]:
    """Lumisections of a run without a fault, as inclusive ranges [first, last]. faults: of its truth."""
    good = np.ones(lumisections + 2, dtype=np.int8)
    good[[0, -1]] = 0
    for fault in faults:
        for first, last in fault["lumisections"]:
            good[first : last + 1] = 0
    edges = np.flatnonzero(np.diff(good))
    return [[int(before) + 1, int(last)] for before, last in edges.reshape(-1, 2)]


def interpolate(values: np.ndarray, rows: int) -> np.ndarray:
    """Interpolate lumisections, (n, ...), linearly to more rows: float64, (rows, ...).

    Row j lies at s = j (n - 1) / (rows - 1) and is x[i] + (s - i) (x[i + 1] - x[i]) with i = floor(s), so that the first and
    last rows are lumisections. With 10000 rows of 501 lumisections some 20 consecutive rows mix the same two, so a random split
    of the rows leaks. The published files seem to have been made like this: their values are not whole numbers, and their runs
    had 501 and 1046 lumisections.

    Raises InputError for fewer than two lumisections, and for fewer rows than lumisections.
    """
    n = len(values)
    _check_rows(rows, n)
    place = np.arange(rows) * (n - 1) / (rows - 1)
    before = np.minimum(place.astype(np.int64), n - 2)
    weight = (place - before).reshape(-1, *[1] * (values.ndim - 1))
    mixed = values[before].astype(np.float64)
    mixed += weight * (values[before + 1] - mixed)
    return mixed


def _check_rows(rows: int, lumisections: int) -> None:
    if lumisections < 2:
        raise InputError(f"{lumisections} lumisection cannot be interpolated: ask for 2 or more")
    if rows < lumisections:
        raise InputError(f"{lumisections} lumisections cannot be interpolated to {rows} rows: ask for {lumisections} or more")


def _layout(out: Path, number: int, name: str) -> tuple[Path, Path, Path]:
    return (
        out / f"Run{number}_Dataset_{name}.npy",
        out / f"Run{number}_events.npy",
        out / f"Run{number}_pileup.npy",
    )


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _chosen(
    named: NamedStream,
    seed: int,
    lengths: list[int],
    interpolate_to: int | None,
    depths: int,
    given: TableConditions | None,
) -> dict[str, object]:
    """The head of truth.json: what the runs have in common. lengths: lumisections of each run."""
    head: dict[str, object] = {
        "stream": asdict(named),
        "seed": seed,
        "lumisections": lengths[0] if len(set(lengths)) == 1 else lengths,
        "interpolated_rows": interpolate_to,
        "numpy": np.__version__,
        "model": "counts ~ Binomial(events, p), p = 1 - (1 + pileup * rate / k)**-k, rate = ring * fingerprint * gain",
        "k": detector.K,
        "ring_rates": detector.RING_RATES,
        **(conditions.chosen(named) if given is None else {"tables": list(given.notes)}),
        **faults.chosen(named),
        "fingerprint_sigma": detector.FINGERPRINT_SIGMA,
        "choices": CHOICES[named.name],
        "order": "gain and fingerprint list the live channels by rising ieta, then rising iphi",
        "faults_in_gain": not named.faults_within,
        "fingerprint": compact(detector.fingerprint(seed, off_their_ring=named.off_their_ring)),
    }
    if depths > 1:
        head |= depths_chosen(seed)
    if named.luminosity_per_run_fb:
        head["ageing_per_fb"] = {"at_19": detector.LOSS_AT_19, "at_29": detector.LOSS_AT_29}
    return head
