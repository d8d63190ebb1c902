"""Runs under the conditions of a user's own tables: what is taken over, what is left out and said, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.tables import EVENTS, TableConditions, read_conditions
from dqmstream.lumisection import LUMISECTION_S
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import import_files
from tests.commandline import dqmstream, result, told

PILEUP = {380001: [1.0, 30.0, 62.0, 61.8, 62.1, 62.0], 380004: [61.0, 55.0, 48.0, 44.0]}
LIVE = {380001: [0.98, 0.97, 0.95, 0.3, 0.0, 0.95], 380004: [0.95, 0.96, 0.97, 0.97]}


def oms(**changes: Any) -> dict[str, list[Any]]:
    """A table as OMS has it, an object of lists. changes: columns to set, or None to remove one."""
    rows = [(run, k + 1, pileup) for run, values in PILEUP.items() for k, pileup in enumerate(values)]
    live = [value for values in LIVE.values() for value in values]
    table: dict[str, Any] = {
        "run_number": [run for run, _, _ in rows],
        "lumisection_number": [number for _, number, _ in rows],
        "pileup": [pileup for _, _, pileup in rows],
        "delivered_lumi_per_lumisection": [0.4] * len(rows),
        "recorded_lumi_per_lumisection": [0.4 * value for value in live],
        "beams_stable": [number > 1 or run > 380001 for run, number, _ in rows],
        "cms_active": [value > 0 for value in live],
        "hbhea_ready": [True] * len(rows),
        "esm_ready": [False] * len(rows),
        **changes,
    }
    return {name: column for name, column in table.items() if column is not None}


def hlt(rates: Mapping[int, Sequence[float | None]]) -> dict[str, Any]:
    """Trigger rates by run and path."""
    return {
        str(run): {
            path: {"rate": [None if rate is None else factor * rate for rate in values],
                   "first_lumisection_number": list(range(1, len(values) + 1)), "run_number": [run] * len(values)}
            for path, factor in (("HLT_ZeroBias_v9", 1.0), ("HLT_Physics_v10", 0.1))
        }
        for run, values in rates.items()
    }  # fmt: skip


RATES = {380001: [47.0, 46.0, 45.5, 14.2, 0.0, 45.6], 380004: [46.0, 46.5, 47.0, 46.8]}


def read(folder: Path, conditions: Any, rates: Any = None) -> TableConditions:
    (folder / "oms.json").write_text(json.dumps(conditions))
    if rates is None:
        return read_conditions([folder / "oms.json"])
    (folder / "hlt.json").write_text(json.dumps(rates))
    return read_conditions([folder / "oms.json"], [folder / "hlt.json"])


def test_runs_lengths_pileup_and_events_are_those_of_the_tables(tmp_path: Path) -> None:
    given = read(tmp_path, oms(), hlt(RATES))
    runs = list(stream("campaign", seed=3, given=given))
    assert [run.run for run in runs] == list(PILEUP)
    for run in runs:
        assert run.pileup.tolist() == PILEUP[run.run]
        assert run.events.tolist() == [round(rate * LUMISECTION_S) for rate in RATES[run.run]]
        assert run.truth["live"] == LIVE[run.run]
    assert runs[0].truth["flags"] == {"beams_stable": [[2, 6]], "cms_active": [[1, 4], [6, 6]], "hbhea_ready": [[1, 6]]}
    assert [one["lumisection"] for one in runs[0].truth["truncated"]] == [4]
    assert not runs[0].counts[4].any() and runs[0].counts[3].any()
    assert not np.array_equal(runs[0].rate, runs[1].rate)
    null = list(stream("null", seed=3, given=given))
    assert np.array_equal(null[0].rate, null[1].rate)
    assert np.array_equal(next(stream("null", seed=3, given=given, runs=1)).counts, null[0].counts)


def test_without_rates_events_follow_the_live_fraction(tmp_path: Path) -> None:
    given = read(tmp_path, oms())
    first = next(stream("null", seed=0, given=given))
    mean = EVENTS * np.array(LIVE[380001])
    assert (np.abs(first.events - mean) <= 5 * np.sqrt(mean)).all()
    assert "since no rates are given" in given.notes[0]
    api = {"data": [{"attributes": dict(zip(oms(), row, strict=True))} for row in zip(*oms().values(), strict=True)]}
    other = read(tmp_path, api)
    assert np.array_equal(next(stream("null", seed=0, given=other)).counts, first.counts), "an answer of the API reads alike"


def test_what_is_missing_or_bad_is_left_out_and_said(tmp_path: Path) -> None:
    table = oms()
    table["pileup"][1] = None
    table["pileup"][2] = float("nan")
    table["pileup"][3] = -5.0
    given = read(tmp_path, table, hlt({380001: [47.0, None, 45.0, 45.0, -3.0, 46.0]}))
    assert [one.run for one in given.runs] == [380001]
    (run,) = stream("small", seed=1, given=given)
    assert np.isnan(run.pileup).tolist() == [False, True, True, True, True, False]
    assert run.events.tolist() == [1096, 0, 0, 0, 0, 1072]
    assert run.counts[[0, 5]].any(axis=(1, 2)).all() and not run.counts[1:5].any()
    said = "\n".join(given.notes)
    for words in (
        "1 runs of 6 lumisections from oms.json",
        "4 lumisections are empty",
        "-5.0, which cannot be",
        "paths not used: HLT_Physics_v10",
        "1 runs left out, without a rate of the trigger or without pileup: 380004",
    ):
        assert words in said, said


@pytest.mark.parametrize(
    ("changes", "rates", "reason"),
    [
        ({"pileup": None}, None, r"oms.json has no pileup: it needs a column pileup"),
        ({"pileup": [float("nan")] * 10}, None, "oms.json has no pileup"),
        ({"pileup": [-4.0] * 10}, None, "-4.0, which cannot be"),
        ({"run_number": None}, None, "oms.json names no run: add a column run_number"),
        ({"beams_stable": [False] * 10}, None, "beams_stable is false in every lumisection.*or remove the column"),
        ({"hbhea_ready": [0] * 10}, None, "hbhea_ready is false in every lumisection"),
        ({"pileup": [0.0] * 10}, None, "no run is left. 2 runs left out, without a lumisection that has pileup and events"),
        ({}, {380009: [40.0]}, "no run is left. 2 runs left out, without a rate of the trigger"),
        ({"lumisection_number": [*range(1, 7), *range(1, 4), 10**6]}, None, "run 380004 has a lumisection 1000000"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_with_the_file_and_what_to_do(
    tmp_path: Path, changes: dict[str, Any], rates: dict[int, list[float]] | None, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        read(tmp_path, oms(**changes), None if rates is None else hlt(rates))


def test_streams_with_conditions_of_their_own_and_too_many_runs_are_refused(tmp_path: Path) -> None:
    given = read(tmp_path, oms())
    with pytest.raises(InputError, match="the tables hold 2 runs with pileup and events, not 3: ask for fewer"):
        stream("campaign", seed=0, runs=3, given=given)
    for name in ("pair", "threshold"):
        with pytest.raises(InputError, match=f"the stream {name} belongs to conditions of its own"):
            stream(name, seed=0, given=given)


def test_simulate_writes_files_that_import_reads_and_prints_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "oms.json").write_text(json.dumps(oms()))
    (tmp_path / "hlt.json").write_text(json.dumps(hlt({380004: RATES[380004]})))
    tables = ("--conditions", tmp_path / "oms.json", "--rates", tmp_path / "hlt.json")
    done = result("simulate", tmp_path / "out", *tables, "--stream", "campaign", "--lumisections", 3)
    assert done["files"][0] == "Run380004_Dataset_campaign.npy" and len(done["files"]) == 4
    assert any("1 runs left out, without a rate" in note for note in done["notes"])
    truth = json.loads((tmp_path / "out" / "truth.json").read_text())
    assert truth["tables"] == done["notes"] and truth["lumisections"] == 3
    archive = Archive.open_or_create(tmp_path / "A")
    import_files([tmp_path / "out"], lambda: archive, dtype=np.dtype("float32"), depths=1)
    assert [(one.run, one.rows) for one in Archive.open(tmp_path / "A").runs()] == [(380004, 3)]
    assert "give that with --conditions" in told(dqmstream("simulate", tmp_path / "none", *tables[2:]), 3)
