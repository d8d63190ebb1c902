"""Runs given in any form are compared alike, and the findings can be read as words, tables, JSON and a map."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dqmstream.errors import ArchiveError, InputError
from dqmstream.experiments.compare import compare
from dqmstream.experiments.compare.compare import compare_runs
from dqmstream.experiments.compare.comparison import SHOWN, Comparison
from dqmstream.experiments.compare.run_counts import RunLike
from dqmstream.experiments.simulator import stream
from dqmstream.learners.stream.ledger import describe, read_experience
from dqmstream.lumisection import IETA, IPHI, ieta_row
from dqmstream.storage.archive import Archive
from tests.runs import simulated_archive

LUMISECTIONS = 60
DEAD = (25, 7)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("runs"), "small", runs=2, lumisections=LUMISECTIONS)


@pytest.fixture(scope="module")
def numbers(archive: Archive) -> list[int]:
    return [one.run for one in archive.runs()]


@pytest.fixture(scope="module")
def found(archive: Archive, numbers: list[int]) -> Comparison:
    return compare_runs(numbers[0], numbers[1], archive=archive)


@pytest.fixture(scope="module")
def killed() -> Comparison:
    """Arrays of two alike runs, one channel dead in the second."""
    run, other = stream("null", seed=109, runs=2, lumisections=LUMISECTIONS)
    counts = other.counts.copy()
    counts[:, ieta_row(DEAD[0]), DEAD[1] - 1] = 0
    return compare_runs(run.counts, counts, n_events=(run.events, other.events))


@pytest.mark.parametrize("form", ["file", "path and number", "pair", "dataset", "data array", "array", "run data", "mixed"])
def test_every_form_of_a_run_gives_the_same_findings(
    form: str, archive: Archive, numbers: list[int], found: Comparison
) -> None:
    views = [archive.run(run) for run in numbers]
    events = (views[0]["n_events"].values, views[1]["n_events"].values)
    files = [str(archive.path.parent / "simulated" / f"Run{run}_Dataset_small.npy") for run in numbers]
    given: dict[str, tuple[list[RunLike], dict]] = {
        "file": (list(files), {}),
        "path and number": ([str(numbers[0]), numbers[1]], {"archive": archive.path}),
        "pair": ([(archive, numbers[0]), (archive, numbers[1])], {}),
        "dataset": (list(views), {}),
        "data array": ([view["occupancy"] for view in views], {"n_events": events}),
        "array": ([view["occupancy"].values[:, 0] for view in views], {"n_events": events}),
        "run data": ([read_experience(archive, describe(archive, run, 0)) for run in numbers], {}),
        "mixed": ([Path(files[0]), views[1]["occupancy"].values], {"n_events": (None, events[1])}),
    }
    (a, b), options = given[form]
    same = compare_runs(a, b, **options)
    xr.testing.assert_identical(same.channels, found.channels)
    xr.testing.assert_identical(same.boxes, found.boxes)
    assert same.verdict == found.verdict


def test_lumisections_out_of_order_are_put_in_order(archive: Archive, numbers: list[int], found: Comparison) -> None:
    shuffled = archive.run(numbers[0]).isel(lumisection=np.random.default_rng(0).permutation(LUMISECTIONS))
    xr.testing.assert_identical(compare_runs(shuffled, (archive, numbers[1])).channels, found.channels)


def test_the_table_of_channels_begins_with_the_one_that_died(killed: Comparison) -> None:
    table = killed.channels
    first = table.isel(channel=0)
    assert (int(first.ieta), int(first.iphi), int(first.depth), int(first.rbx)) == (*DEAD, 1, 3)
    assert (float(first.ratio), str(first.state.values), bool(first.changed)) == (0, "dead", True)
    assert table.sizes["channel"] == 932
    assert (np.diff(np.abs(table.pull)) <= 0).all()
    np.testing.assert_array_equal(table.changed, table.q <= killed.rate)
    np.testing.assert_array_equal(table.state != "", table.changed)
    assert killed.boxes.sizes["box"] == 36 and set(killed.boxes.rbx.values) == {*range(-18, 0), *range(1, 19)}


def test_the_representations_tell_the_verdict_and_what_changed(killed: Comparison, found: Comparison) -> None:
    text, html = repr(killed), killed._repr_html_()
    for shown in (text, html):
        assert killed.verdict in shown and "1 dead" in shown and "There is no AUC" in shown
    assert any(line.split()[:3] == ["25", "7", "1"] and line.endswith("dead") for line in text.splitlines())
    assert "<td>25</td><td>7</td><td>1</td>" in html
    changed = int(found.channels.changed.sum())
    assert found._repr_html_().count("<tr>") == 1 + min(changed, SHOWN)


def test_names_in_a_notebook_stay_text(archive: Archive, numbers: list[int]) -> None:
    view = archive.run(numbers[0]).assign_attrs(run=7)
    other = archive.run(numbers[1])["occupancy"].rename("<b>").drop_attrs()
    shown = compare_runs(view, other)._repr_html_()
    assert "run 7" in shown and "<b>" not in shown


def test_json_is_what_the_command_prints_with_null_for_what_is_not_finite(killed: Comparison) -> None:
    said = json.loads(json.dumps(killed.to_json(), allow_nan=False))
    first = {"name": "run A", "run": None, "lumisections": LUMISECTIONS, "compared": killed.common[0], "values": "counts"}
    assert said["a"] == first
    assert said["changed"][0]["ieta"] == 25 and said["changed"][0]["state"] == "dead"
    assert said["auc"] is None


def test_the_map_is_a_figure_and_a_file_where_asked(killed: Comparison, tmp_path: Path) -> None:
    figure = killed.plot(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert figure.axes[0].get_title(loc="left") == "depth 1: 1 of 932 channels changed"
    assert killed.plot().axes


def test_what_is_no_run_is_refused_with_what_to_give(archive: Archive, numbers: list[int]) -> None:
    counts = np.ones((10, 64, 72))
    view = archive.run(numbers[0])
    whole = xr.DataArray(counts, dims=("lumisection", "ieta", "iphi"), coords={"ieta": IETA, "iphi": IPHI})
    for given, options, says in (
        (np.ones((10, 60, 72)), {}, r"run A has shape \(10, 60, 72\): give counts of shape"),
        (np.ones(()), {}, r"run A has shape \(\)"),
        (-counts, {}, "negative or non-finite counts"),
        (counts, {"n_events": (np.ones(9), None)}, r"10 lumisections and n_events of shape \(9,\)"),
        (view.drop_vars("occupancy"), {}, "no variable occupancy"),
        (whole.transpose("lumisection", "iphi", "ieta"), {}, "has dimensions"),
        (whole.isel(ieta=slice(None, None, -1)), {}, "does not hold every ieta in its order"),
        (whole.assign_coords(lumisection=[1] * 10), {}, "holds a lumisection twice"),
        ([1, 2], {}, "run A is a list: give a file"),
        ("nowhere.npy", {}, "nowhere.npy does not exist"),
        (numbers[0], {}, "give --archive"),
        (numbers[0], {"archive": archive, "n_events": (np.ones(60), None)}, "leave it out"),
        (view, {"rate": 1.0}, "rate 1.0 is not above 0 and below 1"),
    ):
        with pytest.raises(InputError, match=says):
            compare_runs(given, (archive, numbers[1]), **options)
    with pytest.raises(ArchiveError, match="no lumisection of run 9"):
        compare_runs(9, numbers[1], archive=archive)


def test_the_example_of_the_docstring_runs() -> None:
    ran = doctest.testmod(compare)
    assert ran.attempted >= 6 and ran.failed == 0
