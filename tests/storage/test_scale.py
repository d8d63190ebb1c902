"""Maps of shares of events become the counts that they were, or are refused with the reason; an input's scale is told."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.evaluate import evaluate
from dqmstream.experiments.simulator import stream as simulated_stream
from dqmstream.experiments.simulator.learner_input import simulate_runs
from dqmstream.learners.maps import RunData
from dqmstream.lumisection import LUMISECTION_S
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import Imported, import_runs
from dqmstream.storage.imports.rules import ImportRules
from dqmstream.storage.labels.golden import Golden
from dqmstream.storage.layout import Quality
from dqmstream.storage.scale import Scale, events_of_shares, scale_of_rows
from dqmstream.storage.status import archive_status
from tests.maps import counts

RUN = 355456
EVENTS = np.array([1500.0, 1237.0, 999.0, 1811.0, 3800.0, 2400.0])
MAPS = np.minimum(counts(RUN, len(EVENTS)), EVENTS[:, None, None])


def write(folder: Path, maps: np.ndarray, events: np.ndarray | None = None, run: int = RUN) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"Run{run}_Dataset_x.npy"
    np.save(path, maps)
    if events is not None:
        np.save(folder / f"Run{run}_events.npy", events)
    return path


def take(tmp_path: Path, path: Path, **rules: object) -> Imported:
    archive = tmp_path / "A"
    given = ImportRules(np.dtype("float32"), 1, **rules)  # type: ignore[arg-type]
    return import_runs([path], lambda: Archive.open_or_create(archive), given)[0][0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_shares_of_events_are_multiplied_back_into_the_counts_that_they_were(tmp_path: Path, dtype: str) -> None:
    maps = MAPS.copy()
    maps[2] = 0.0  # an empty lumisection has no scale
    done = take(tmp_path, write(tmp_path, (maps / EVENTS[:, None, None]).astype(dtype), EVENTS))
    view = Archive.open(tmp_path / "A").run(RUN)
    np.testing.assert_array_equal(view["occupancy"][:, 0], maps)
    assert (view["quality"].values == Quality.FROM_SHARES).all()
    assert done.scale == Scale.SHARES and done.off_whole is not None and done.off_whole < 1e-3
    assert any("whole within" in note for note in done.notes)
    (run,) = archive_status(Archive.open(tmp_path / "A"))["runs"]
    assert run["scale"] == Scale.SHARES
    again = take(tmp_path, write(tmp_path / "counts", maps, EVENTS))
    assert (again.duplicates, again.rows, again.scale) == (len(EVENTS), 0, Scale.COUNTS)


def test_events_of_a_rate_need_not_be_whole(tmp_path: Path) -> None:
    """A rate times 23.31 s is rounded: the whole number next to it makes the counts whole."""
    rates = np.round(EVENTS / LUMISECTION_S, 2)
    done = take(tmp_path, write(tmp_path, MAPS / EVENTS[:, None, None], rates * LUMISECTION_S))
    np.testing.assert_array_equal(Archive.open(tmp_path / "A").run(RUN)["occupancy"][:, 0], MAPS)
    assert "by the whole number next to the events" in done.notes[-1]


def test_shares_without_events_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    shares = MAPS / EVENTS[:, None, None]
    with pytest.raises(InputError, match=rf"run {RUN}, lumisection 1 \(and 5 more\): .*events is unknown.*give counts"):
        take(tmp_path, write(tmp_path, shares))
    some = np.where(np.arange(6) == 3, np.nan, EVENTS)
    with pytest.raises(InputError, match=r"lumisection 4: .*unknown"):
        take(tmp_path, write(tmp_path, shares, some))
    with pytest.raises(InputError, match=r"lumisection 4: .*is 0"):
        take(tmp_path, write(tmp_path, shares, np.nan_to_num(some)))
    assert not (tmp_path / "A").exists()
    golden = Golden("g", np.array([[RUN, 1, 3], [RUN, 5, 6]]), "")
    done = take(tmp_path, write(tmp_path, shares, some), golden=golden)
    assert done.rows == 5, "lumisections that are not wanted need no events"


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        (MAPS / EVENTS[:, None, None] ** 0 / 1412, r"lumisection 1: .*1500 events do not make .*, but 1412 events do"),
        (MAPS / MAPS.max(axis=(1, 2), keepdims=True), "largest value is exactly 1, as where a map is divided by its largest"),
        (np.random.default_rng(0).random(MAPS.shape) * 0.9, "nor does any number up to 10000"),
        ((MAPS / EVENTS[:, None, None]).astype("float16"), "float16, which has too few digits"),
        (np.concatenate([MAPS[:3], MAPS[3:] / EVENTS[3:, None, None]]), r"lumisection 4 \(and 2 more\): .*other maps of"),
    ],
)  # fmt: skip
def test_shares_that_events_contradict_are_refused_with_what_to_do(tmp_path: Path, shares: np.ndarray, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        take(tmp_path, write(tmp_path, shares, EVENTS))
    assert not (tmp_path / "A").exists()


def test_interpolated_shares_are_multiplied_and_stay_interpolated(tmp_path: Path) -> None:
    middle = (MAPS[:-1] / EVENTS[:-1, None, None] + MAPS[1:] / EVENTS[1:, None, None]) / 2
    events = (EVENTS[:-1] + EVENTS[1:]) / 2
    done = take(tmp_path, write(tmp_path, middle, events), interpolated=True)
    view = Archive.open(tmp_path / "A").run(RUN)
    np.testing.assert_allclose(view["occupancy"][:, 0], middle * events[:, None, None], rtol=1e-6)
    assert done.scale == Scale.INTERPOLATED and done.off_whole is None
    assert scale_of_rows(view["quality"].values) == Scale.INTERPOLATED


def test_an_unknown_factor_is_told_and_a_run_of_another_scale_than_the_others_is_told(tmp_path: Path) -> None:
    first = take(tmp_path, write(tmp_path, MAPS, EVENTS))
    assert first.scale == Scale.COUNTS and first.off_whole is None and not first.notes
    scaled = take(tmp_path, write(tmp_path / "b", MAPS * 0.37, run=RUN + 1))
    assert scaled.scale == Scale.NOT_WHOLE and "unknown factor" in scaled.notes[0]
    assert f"run {RUN}" in scaled.notes[-1] and "another scale" in scaled.notes[-1]
    runs = {run["run"]: run["scale"] for run in archive_status(Archive.open(tmp_path / "A"))["runs"]}
    assert runs == {RUN: Scale.COUNTS, RUN + 1: Scale.NOT_WHOLE}


def test_every_number_of_events_of_a_year_is_found_again() -> None:
    """Shares in float32 of up to 10000 events: the product is whole for the right number."""
    rng = np.random.default_rng(1)
    for events in [*range(1, 40), *rng.integers(40, 10_000, 60).tolist()]:
        whole = rng.integers(0, events + 1, 900)
        found, off = events_of_shares((whole / events).astype(np.float32), float(events))
        assert found == events and off < 0.01
        np.testing.assert_array_equal(np.rint((whole / events).astype(np.float32) * found), whole)


def test_a_closed_form_on_maps_divided_by_events_is_as_good_as_on_counts(tmp_path: Path) -> None:
    """Imported with the events beside them, they give the same bits."""
    simulated = list(simulated_stream("moderate", seed=3, runs=4, lumisections=200))
    found = {}
    for name in ("counts", "shares"):
        folder, archive = tmp_path / name, tmp_path / f"{name}.archive"
        for run in simulated:
            by = run.events[:, None, None] if name == "shares" else 1.0
            write(folder, run.counts / by, run.events, run.run)
        import_runs([folder], partial(Archive.open_or_create, archive), ImportRules(np.dtype("float32"), 1))
        found[name] = evaluate(archive, "gain_map", beside=[]).accuracy_matrix
    np.testing.assert_array_equal(found["shares"], found["counts"])
    assert found["counts"][-1].mean() > 0.9


def test_evaluate_multiplies_runs_of_shares_back_and_leaves_out_those_of_unknown_events() -> None:
    runs = simulate_runs("moderate", seed=3, runs=4, lumisections=200)

    def shares(run: RunData, events: np.ndarray) -> RunData:
        counts = (run.maps.counts / run.maps.n_events[:, None, None, None]).astype(np.float32)
        return replace(run, maps=replace(run.maps, counts=counts, n_events=events))

    given = [shares(run, run.maps.n_events) for run in runs]
    unknown = np.full(200, np.nan)
    found = evaluate([*given[:3], shares(runs[3], unknown)], "gain_map", beside=[])
    np.testing.assert_array_equal(found.accuracy_matrix, evaluate(runs[:3], "gain_map", beside=[]).accuracy_matrix)
    assert found.left_out == {runs[3].run: found.left_out[runs[3].run]}
    assert "lumisection 1: it holds shares of events" in found.left_out[runs[3].run]
