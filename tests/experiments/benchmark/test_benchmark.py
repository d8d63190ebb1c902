"""A benchmark uses the code of the learner, reuses finished cells, and makes its tables from them."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom

from dqmstream.errors import InputError, StateError
from dqmstream.experiments import provenance
from dqmstream.experiments.benchmark.bounds import BOUNDS
from dqmstream.experiments.benchmark.cell import BenchmarkCell, ordered
from dqmstream.experiments.benchmark.output_files import write
from dqmstream.experiments.benchmark.page import write_benchmark_report
from dqmstream.experiments.benchmark.reuse import reused_records
from dqmstream.experiments.benchmark.run import time_left
from dqmstream.experiments.benchmark.spec import Benchmark, TableSpec
from dqmstream.experiments.benchmark.summary import summarise
from dqmstream.experiments.benchmark.text import (
    COLUMNS,
    by_last_columns,
    markdown,
    overview,
    overview_by_last,
    printed,
    printed_by_last,
    stream_markdown,
)
from dqmstream.experiments.cells.cell import Record, failure
from dqmstream.experiments.cells.runner import Workers, checked, run_cells
from dqmstream.experiments.cells.store import CellStore
from dqmstream.experiments.simulator import stream
from dqmstream.experiments.statistics import chance_interval
from dqmstream.learners.evaluation.history_line import HistoryLine
from dqmstream.learners.registry import TABLE_BASELINES
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.replay import replay
from tests.runs import simulated_archive
from tests.scale import SOAK

SMALL = TableSpec(
    streams=("null", "small"), strategies=("ideal", "gain_map", "ring_means"), seeds=(100,), runs=3, lumisections=200
)
CELL = BenchmarkCell("small", 3, 0, "gain_map", 3, 200, 1_000_000, 6000)


@functools.cache
def _computed_once(cell: BenchmarkCell) -> Record:
    return cell.compute()


def record_of(cell: BenchmarkCell) -> Record:
    """Of a cell that several tests look at: its figures are the same each time."""
    return copy.deepcopy(_computed_once(cell))


def cells_of(spec: TableSpec) -> list[BenchmarkCell]:
    return Benchmark((spec,)).checked().cells()


def tabled(spec: TableSpec, records: list[Record]) -> dict[str, Any]:
    """The only table of a benchmark, of records in the order of its cells."""
    chosen = Benchmark((spec,)).checked()
    found: dict[str, Any] = summarise(chosen, dict(zip(chosen.cells(), records, strict=True)))["tables"][0]
    return found


def computed(spec: TableSpec) -> list[dict[str, Any]]:
    """Rows of the first stream of a table whose cells are computed here."""
    rows: list[dict[str, Any]] = tabled(spec, [cell.compute() for cell in cells_of(spec)])["streams"][0]["rows"]
    return rows


def test_a_cell_has_the_figures_of_a_replay_from_the_archive(tmp_path: Path) -> None:
    archive = simulated_archive(tmp_path, runs=3)
    replayed = replay(archive, tmp_path / "state", LearnerSettings(strategy="gain_map", seed=1))
    cell = replace(CELL, stream="moderate", seed=1).compute()
    assert [line["run"] for line in cell["lines"]] == replayed["runs"]
    assert cell["lines"][-1]["accuracy"] == replayed["accuracy_matrix"][-1]
    assert cell["lines"][-1]["auc"] == replayed["auc_matrix"][-1]


def test_a_benchmark_makes_its_tables(tmp_path: Path) -> None:
    chosen = Benchmark((SMALL,)).checked()
    records = {cell: record_of(cell) for cell in chosen.cells()}
    result = summarise(chosen, records)
    write(chosen, records, result, tmp_path)
    (table,) = result["tables"]
    rows = {one["stream"]: {row["strategy"]: row for row in one["rows"]} for one in table["streams"]}
    assert rows["null"]["ideal"]["accuracy"]["estimate"] == pytest.approx(1 / 3)
    assert rows["small"]["ring_means"]["accuracy"]["estimate"] < rows["small"]["gain_map"]["accuracy"]["estimate"]
    assert 2 / 2**3 <= rows["small"]["ring_means"]["beside"]["p_holm"] <= 1, "signs of three runs are flipped"
    assert json.loads((tmp_path / "results.json").read_text())["tables"][0]["use"] == "reported"
    assert (tmp_path / "table.md").read_text() == markdown(result)
    assert (tmp_path / "streams.md").read_text() == stream_markdown(result)
    for name in ("accuracy", "cost", "last"):
        assert (tmp_path / f"{name}-benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert {len(printed(row)) for one in table["streams"] for row in one["rows"]} == {len(COLUMNS)}
    page = write_benchmark_report(tmp_path, tmp_path / "page")
    html, pictures = page.read_text(), sorted(path.name for path in page.parent.glob("*.png"))
    assert pictures == [f"{kind}-benchmark.png" for kind in ("accuracy", "cost", "last")]
    assert all(name in html for name in pictures)
    assert '<th scope="row">gain_map</th>' in html and "small, minus gain_map" in html
    with pytest.raises(InputError, match="no finished benchmark"):
        write_benchmark_report(tmp_path / "nowhere", tmp_path / "page")
    columns, lines = overview(table)
    assert columns[1:4] == ["`null`", "`small`", "forgetting, `small`"]
    assert [line[0] for line in lines] == ["`ideal` (bound)", "`gain_map`", "`ring_means`"]
    assert {len(line) for line in lines} == {len(columns)}


def test_tables_have_the_figures_by_the_last_lumisections_of_strategies_and_bounds(tmp_path: Path) -> None:
    records = [record_of(cell) for cell in cells_of(SMALL)]
    table = tabled(SMALL, records)
    rows = {row["strategy"]: row for row in next(one for one in table["streams"] if one["stream"] == "small")["rows"]}
    for row in rows.values():
        assert list(row["by_last"]) == ["1", "4", "8", "30"]
        assert row["by_last"]["1"]["accuracy"] == row["accuracy"] and row["by_last"]["1"]["guessing"] == row["guessing"]
        assert row["by_last"]["8"]["summed"] == pytest.approx(np.minimum(np.arange(1, 31), 8).mean())
        assert len(printed_by_last(row)) == len(by_last_columns())
    maps, ideal = rows["gain_map"]["by_last"], rows["ideal"]["by_last"]
    assert maps["8"]["of_ideal"] == pytest.approx(maps["8"]["accuracy"]["estimate"] / ideal["8"]["accuracy"]["estimate"])
    (cell,) = (one for one in records if (one["cell"]["stream"], one["cell"]["strategy"]) == ("small", "gain_map"))
    (last,) = (one for one in cell["lines"][-1]["by_last"] if one["lumisections"] == 8)
    assert maps["8"]["accuracy"]["estimate"] == pytest.approx(np.mean(last["accuracy"]))
    assert maps["8"]["worth"] == cell["worth_by_last"]["8"] <= cell["worth"], "sums that overlap are worth less"
    columns, lines = overview_by_last(table)
    assert columns == ["last 8", "`null`", "`small`"] and [line[0] for line in lines][1] == "`gain_map`"

    older = [{**one, "lines": [_without_by_last(line) for line in one["lines"]]} for one in records]
    old = tabled(SMALL, older)
    assert not any(row["by_last"] for one in old["streams"] for row in one["rows"])
    assert "last 8 |" in stream_markdown({"tables": [old]}) and "| 1 | last 4" not in stream_markdown({"tables": [old]})


def _without_by_last(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "by_last"}


def test_every_baseline_stands_in_a_benchmark_that_names_no_strategies_with_both_bounds() -> None:
    chosen = TableSpec().checked().strategies
    assert set(chosen) == {*BOUNDS, *TABLE_BASELINES}
    longest_first = [cell.strategy for cell in cells_of(TableSpec(streams=("null",), seeds=(100,)))]
    assert longest_first[:3] == ["cnn", "ideal_profiled", "logistic"]


def test_the_range_of_guessing_uses_the_independent_lumisections_of_each_strategy() -> None:
    """Ring means assign neighbours to the same run, gain maps do not. Streams add up, orders of the same runs do not."""
    spec = replace(SMALL, streams=("null",), seeds=(100, 101), orders=2, strategies=("ring_means", "gain_map"))
    cells = [record_of(cell) for cell in cells_of(spec)]
    rings, maps = tabled(spec, cells)["streams"][0]["rows"]
    tested = 2 * 3 * 30
    worth = {name: [c["worth"] for c in cells if c["cell"]["strategy"] == name] for name in ("ring_means", "gain_map")}
    assert rings["worth"] == pytest.approx(sum(worth["ring_means"]) / 2)
    assert rings["worth"] < 0.75 * maps["worth"] <= 0.75 * tested
    assert rings["guessing"] == asdict(chance_interval(3, rings["worth"]))
    assert rings["guessing"]["high"] - rings["guessing"]["low"] > maps["guessing"]["high"] - maps["guessing"]["low"]
    for row in (rings, maps):
        assert row["guessing"]["low"] <= row["accuracy"]["estimate"] <= row["guessing"]["high"]


@pytest.mark.parametrize(
    "strategy",
    [
        *(name for name in TABLE_BASELINES if name != "cnn"),
        pytest.param("cnn", marks=pytest.mark.skipif(not SOAK, reason="DQMSTREAM_SOAK=1: 30 s")),
    ],
)
def test_where_nothing_differs_but_luminosity_every_baseline_guesses(strategy: str) -> None:
    """Within the central 99.9 % of guessing, for its number of independent lumisections."""
    (row,) = computed(replace(SMALL, streams=("null",), seeds=(100, 101), runs=5, lumisections=400, strategies=(strategy,)))
    least, most = binom.ppf([0.0005, 0.9995], round(row["worth"]), 1 / 5) / round(row["worth"])
    assert least <= row["accuracy"]["estimate"] <= most


def test_a_failed_cell_is_recorded_left_out_of_the_table_and_tried_again(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    spec = replace(SMALL, streams=("small",), seeds=(100, 101), strategies=("gain_map", "ring_means"))
    chosen = Benchmark((spec,)).checked()
    first, *others = chosen.cells()
    records = {first: failure(first, "ValueError: why", "somewhere"), **{cell: record_of(cell) for cell in others}}
    for cell, record in records.items():
        store.save(cell, record)
    assert store.find(chosen.cells()).keys() == set(others)
    result = summarise(chosen, records)
    assert [one["error"] for one in result["failed"]] == ["ValueError: why"]
    (table,) = result["tables"]
    rows = {row["strategy"]: row for row in table["streams"][0]["rows"]}
    assert {row["cells"] for row in rows.values()} == {1, 2} and rows[first.strategy]["cells"] == 1
    assert rows["ring_means"]["beside"], "compared on the seed that both have"
    assert "1 cells failed" in markdown(result)
    write(chosen, records, result, tmp_path)
    errors = pq.read_table(tmp_path / "results.parquet")["error"].to_pylist()
    assert sorted(error for error in errors if error) == ["ValueError: why"]

    store.save(first, record_of(first))
    assert store.find(chosen.cells()).keys() == set(chosen.cells())
    assert not list((tmp_path / "failed").iterdir())


def test_finished_cells_of_other_code_are_reused_on_request_only(tmp_path: Path) -> None:
    record = record_of(CELL)
    other = {**record, "code": "other", "commit": "0123456789ab"}
    CellStore(tmp_path / "other").save(CELL, other)
    assert not CellStore(tmp_path / "other").find([CELL])
    known = reused_records([CELL], [tmp_path / "other"])
    assert known[CELL]["commit"] == "0123456789ab"
    assert not reused_records([replace(CELL, memory_bytes=5)], [tmp_path / "other"]), "other settings are another cell"
    store = CellStore(tmp_path / "own")
    assert run_cells([CELL], store, Workers(), known=known)[CELL]["code"] == "other"
    store.save(CELL, record)
    assert run_cells([CELL], store, Workers(), known=known)[CELL]["code"] == CELL.identity["code"]

    older = {**{name: record[name] for name in ("cell", "lines", "worth", "seconds", "commit")}, "dqmstream": "0", "numpy": "2"}
    (tmp_path / "older" / "cells").mkdir(parents=True)
    (tmp_path / "older" / "cells" / "small-3-0-gain_map.json").write_text(json.dumps(older))
    found = reused_records([CELL], [tmp_path / "older"])[CELL]
    assert found["code"] == "" and found["versions"] == {"dqmstream": "0", "numpy": "2"} and found["lines"] == record["lines"]
    spec = replace(SMALL, streams=("small",), seeds=(3,), strategies=("gain_map",))
    assert f"Commit {record['commit'] or 'unknown'}." in markdown({"tables": [tabled(spec, [found])]})


def test_tables_are_made_from_results_parquet_alone(tmp_path: Path) -> None:
    """results.parquet says as much of finished cells as their own files; a failed cell is not in it."""
    chosen = Benchmark((replace(SMALL, seeds=(100, 101), strategies=("ideal", "gain_map", "ring_means")),)).checked()
    failed, *others = chosen.cells()
    records = {failed: failure(failed, "ValueError: why"), **{cell: record_of(cell) for cell in others}}
    result = summarise(chosen, records)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write(chosen, records, result, tmp_path / "one")
    found = reused_records(chosen.cells(), [tmp_path / "one"])
    assert found.keys() == set(others)
    again = {failed: records[failed], **found}
    assert summarise(chosen, again) == result
    write(chosen, again, result, tmp_path / "two")
    one, two = (pq.read_table(tmp_path / name / "results.parquet") for name in ("one", "two"))
    assert one.equals(two)

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(StateError, match=r"is no results\.parquet of a benchmark"):
        reused_records(chosen.cells(), [tmp_path / "broken"])


def test_the_digest_of_the_code_ignores_comments_docstrings_and_layout() -> None:
    before = provenance.statements('"""Why."""\ndef f(x: int) -> int:\n    """What."""\n    return x + 1\n')
    assert before == provenance.statements("# why\n\ndef f(x: int) -> int:\n    return (x\n            + 1)  # one more\n")
    assert before != provenance.statements("def f(x: int) -> int:\n    return x + 2\n")
    assert provenance.code_digest("experiments/statistics.py") != provenance.code_digest()


def test_the_time_left_is_that_of_finished_cells_of_the_same_kind() -> None:
    """By strategy and recipe, else strategy, else any; twice as long for twice as many runs."""
    done = {CELL: {"seconds": 6.0}, replace(CELL, strategy="replay"): {"seconds": 60.0}}
    assert time_left([replace(CELL, seed=4), replace(CELL, strategy="replay", runs=6, recipe="{}")], done, 2) == pytest.approx(
        63
    )
    assert time_left([replace(CELL, strategy="slda")], done, 1) == pytest.approx(33)
    assert time_left([CELL], {CELL: {"error": "why"}}, 1) is None
    assert time_left([], {}, 1) == 0


def test_a_worker_of_other_code_is_a_failure_and_not_a_figure() -> None:
    record = record_of(CELL)
    assert checked(CELL, record) is record
    assert "install the same" in checked(CELL, {**record, "code": "other"})["error"]


def test_orders_are_permutations_of_the_same_runs() -> None:
    runs = list(stream("null", seed=1, runs=6, lumisections=2))
    assert ordered(runs, 1, 0) == runs
    other = [run.run for run in ordered(runs, 1, 1)]
    assert other != [run.run for run in runs] and sorted(other) == [run.run for run in runs]
    assert other == [run.run for run in ordered(runs, 1, 1)] != [run.run for run in ordered(runs, 1, 2)]


def test_a_difference_is_starred_where_interval_and_p_value_agree() -> None:
    """Two streams: one strategy better by .1 on every run, and one on the runs of one stream alone, worse on the other's."""

    def cell(strategy: str, seed: int, accuracy: float) -> dict[str, Any]:
        rows = [HistoryLine(i, i, strategy, accuracy=[accuracy] * (i + 1), auc=[0.5] * (i + 1)) for i in range(1, 12)]
        lines = [line.to_json() for line in (HistoryLine(0, 0, strategy), *rows)]
        said = {"stream": "small", "strategy": strategy, "seed": seed, "order": 0}
        return {"cell": said, "lines": lines, "worth": 360.0, "seconds": 1.0, "versions": {}, "commit": "", "code": ""}

    spec = TableSpec(streams=("small",), strategies=("gain_map", "logistic", "naive_bayes"), runs=12)
    values = {"gain_map": (0.5, 0.5), "logistic": (0.6, 0.6), "naive_bayes": (0.9, 0.49)}
    cells = [cell(one.strategy, one.seed, values[one.strategy][one.seed - 100]) for one in cells_of(spec)]
    rows = {row["strategy"]: row for row in tabled(spec, cells)["streams"][0]["rows"]}
    assert rows["naive_bayes"]["beside"]["p_holm"] < 0.05, "runs are flipped: twelve of them won by far"
    place = COLUMNS.index("- {against}")
    assert printed(rows["logistic"])[place].endswith("*")
    assert not printed(rows["naive_bayes"])[place].endswith("*")


def test_with_folds_every_lumisection_is_tested_and_each_run_counts_once() -> None:
    spec = replace(SMALL, streams=("small",), strategies=("ring_means",), split="folds")
    cells = [cell.compute() for cell in cells_of(spec)]
    assert len({cell["cell"]["fold"] for cell in cells}) == len(cells) == 5
    (row,) = tabled(spec, cells)["streams"][0]["rows"]
    last = np.mean([cell["lines"][-1]["accuracy"] for cell in cells], axis=0)
    assert row["accuracy"]["estimate"] == pytest.approx(last.mean())
