"""The benchmark of labels: its splits, its tables, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.labels.cell import blocks, by_runs, look, unseen
from dqmstream.experiments.labels.spec import LabelSpec
from dqmstream.experiments.labels.summary import summarise
from dqmstream.experiments.labels.text import markdown, order_lines, write
from dqmstream.experiments.simulator import simulated_run
from dqmstream.learners.splits import Part
from tests.commandline import dqmstream, result

SPEC = LabelSpec(strategies=("fault_score", "conditions"), seeds=(1,), runs=6)


def test_no_fault_of_an_unseen_test_lumisection_acts_in_train() -> None:
    run = next(run for i in range(1, 9) if (run := simulated_run("tracks", i, seed=1)).faulty.any() and spans(run))
    parts, labels = blocks(run, 1)
    _, left = unseen(run, 1)
    np.testing.assert_array_equal(labels, np.where(run.faulty, 0, 1))
    dropped = (left < 0) & (labels == 0)
    assert dropped.any() and (parts[left < 0] == Part.TEST).all()
    for fault in run.faults:
        if (fault.active & (parts == Part.TRAIN)).any():
            assert not (fault.active & (parts == Part.TEST) & (left >= 0)).any()


def spans(run: object) -> bool:
    """Whether a fault acts in train and in test."""
    parts, _ = blocks(run, 1)  # type: ignore[arg-type]
    acts = [fault.active for fault in run.faults]  # type: ignore[attr-defined]
    return any((a & (parts == Part.TRAIN)).any() and (a & (parts == Part.TEST)).any() for a in acts)


def test_the_split_by_runs_tests_whole_runs_that_teach_nothing() -> None:
    run = simulated_run("tracks", 2, seed=1, lumisections=40)
    assert set(by_runs(run, 2)[0]) == {Part.TEST} and set(by_runs(run, 0)[0]) == set(by_runs(run, 3)[0]) == {Part.TRAIN}


def test_the_table_has_a_row_a_strategy_and_the_fault_score_above_the_conditions(tmp_path: Path) -> None:
    records = {cell: cell.compute() for cell in SPEC.checked().cells()}
    found = summarise(SPEC, records)
    (split,) = found["splits"]
    rows = {row["strategy"]: row for row in split["rows"]}
    assert rows["fault_score"]["auc"]["estimate"] > 0.97 > 0.75 > rows["conditions"]["auc"]["estimate"]
    assert len(rows["fault_score"]["curve"]) == rows["fault_score"]["periods"]["1"]
    assert rows["fault_score"]["auc"]["low"] <= rows["fault_score"]["auc"]["estimate"] <= rows["fault_score"]["auc"]["high"]
    assert not split["order"] and "| fault_score |" in markdown(found)
    write(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "table.md", "labels.png"}
    look.cache_clear()


def test_pairs_of_methods_are_compared_period_by_period() -> None:
    split = {"order": [{"more": "naive", "less": "ewc", "what": "AUC", "estimate": 0.1, "low": 0.05, "high": 0.2, "p": 0.01}]}
    assert order_lines(split) == ["naive forgets .100 [.050, .200] more AUC than ewc (paired by period, p = 0.01)"]


def test_what_makes_no_sense_is_refused() -> None:
    for wrong, why in (
        (LabelSpec(stream="small"), "takes tracks"),
        (LabelSpec(strategies=("hybrid",)), "for labels"),
        (LabelSpec(splits=("random",)), "no split"),
        (LabelSpec(runs=2), "3 or more"),
        (LabelSpec(recipe={"nothing": 1}), "recipe has no"),
    ):
        with pytest.raises(InputError, match=why):
            wrong.checked()


def test_the_command_computes_what_its_options_name(tmp_path: Path) -> None:
    options = ("benchmark", "--task", "labels", "--strategy", "conditions", "--seed", 1, "--runs", 4, "--out", tmp_path)
    found = result(*options, "--workers", 1)
    assert found["task"] == "labels" and (tmp_path / "table.md").exists()
    refused = dqmstream("benchmark", "--task", "labels", "--strategy", "naive", "--orders", 2, "--out", tmp_path)
    assert refused.returncode and "--orders" in refused.stderr
