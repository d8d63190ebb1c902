"""The history file: its format does not change, older files are read, and half a line at the end is ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dqmstream.errors import StateError
from dqmstream.learners.evaluation.history import History, figures, read_history
from dqmstream.learners.evaluation.history_line import BaselineEntry, BeforeLearning, Calibration, HistoryLine, Watched

FIRST = (
    '{"experience": 0, "run": 355400, "strategy": "hybrid", "lumisections": {"gap": 60, "train": 100, "validation": 10, '
    '"test": 30}, "reference": {"kind": "saturating", "lowest": 0.8707436296540942, "highest": 1.1911784332341278, '
    '"beyond": null}, "blank": 0, "accuracy": null, "auc": null, "auc_fixed": null, "calibration": null, "baselines": '
    '{"gain_map": null}, "before": null, "watched": null, "loss": [], "samples": 100, "notes": {"rows": 1.0}, "flops": '
    '70976000.0, "baseline_flops": {"gain_map": 27552400.0}, "memory_bytes": 750326, "state_bytes": 55248, "seconds": '
    '{"read": 0.1464, "evaluate": 0.001, "learn": 0.1632, "baseline.gain_map": 0.1073, "novelty": 0.2322}, "snapshot": '
    '"JJMMA6YY02ARWJ04GGN0", "seed": 0}'
)
THIRD = (
    '{"experience": 2, "run": 355438, "strategy": "hybrid", "lumisections": {"gap": 60, "train": 100, "validation": 10, '
    '"test": 30}, "reference": {"kind": "saturating", "lowest": 0.8707436296540942, "highest": 1.1911784332341278, '
    '"beyond": 1}, "blank": 0, "accuracy": [1.0, 0.9666666666666667, 1.0], "auc": [1.0, 1.0, 1.0], "auc_fixed": '
    '[1.0, 1.0, 1.0], "calibration": {"nll": 0.025622595937016775, "ece": 0.013088579447162955, "temperature": '
    '0.07400690581769248, "nll_calibrated": 0.2916218566713236, "ece_calibrated": 0.016666666247040114}, "baselines": '
    '{"gain_map": {"accuracy": [0.8666666666666667, 1.0, 1.0], "auc": [1.0, 1.0, 1.0], "auc_fixed": [1.0, 1.0, 1.0], '
    '"calibration": {"nll": 2.6134630548704414e-05, "ece": 0.07383912141778157, "temperature": null, "nll_calibrated": '
    'null, "ece_calibrated": null}, "memory_bytes": 14912, "state_bytes": 51520}}, "before": {"new_run_auc": 1.0, '
    '"probability_auc": 0.9622222222222222, "nearest_run": 355415, "nearest_probability": 0.7966746374447526}, "watched": '
    '{"lowest": [[0, 1.0], [1, 0.95]], "moments": 2, "calls": 1, "lumisections": 40}, "loss": [0.634971, 0.558675], '
    '"samples": 1024, "notes": {"routing_drift_since": [1.0, 2.0], "dead_experts.0": 0.0}, "flops": 22005253664.0, '
    '"baseline_flops": {"gain_map": 6926000.0}, "memory_bytes": 753320, "state_bytes": 56976, "seconds": {"read": 0.0274, '
    '"evaluate": 0.1105, "learn": 0.8313, "watch": 0.0122, "baseline.gain_map": 0.0043, "novelty": 0.082}, "snapshot": '
    '"JJMMA6YY02ARWJ04GGN0", "seed": 0}'
)
OF_BOUND = (
    '{"experience": 1, "run": 7, "strategy": "ideal", "accuracy": [1.0, 0.5], "auc": [1.0, 1.0], "auc_fixed": [1.0, 0.75]}'
)
OF_BENCHMARK = THIRD.replace(', "snapshot": "JJMMA6YY02ARWJ04GGN0", "seed": 0', "")
BY_LAST = (
    '{"lumisections": 8, "summed": 7.5, "experiences": [0, 2], "accuracy": [1.0, 0.5], "auc": [1.0, null], "correlation": 0.1, '
    '"calibration": {"nll": 0.1, "ece": 0.1, "temperature": 1.5, "nll_calibrated": 0.05, "ece_calibrated": 0.04}}'
)
WITH_LAST = THIRD.replace(
    '"nll_calibrated": null, "ece_calibrated": null}, "memory_bytes": 14912, "state_bytes": 51520}',
    f'"nll_calibrated": null, "ece_calibrated": null}}, "memory_bytes": 14912, "state_bytes": 51520, "by_last": [{BY_LAST}]}}',
).replace('"baselines"', f'"by_last": [{BY_LAST}], "baselines"')
OLD = (
    '{"experience": 1, "run": 8, "strategy": "replay", "accuracy": [1.0, 0.5], "auc": [1.0, 1.0], "baselines": {"gain_map": '
    '{"accuracy": [0.5, 0.5], "auc": [0.5, 0.5]}}, "before": null, "loss": [], "memory_bytes": 5, "seconds": {"learn": 0.5}}'
)


@pytest.mark.parametrize(
    "text", [FIRST, THIRD, OF_BOUND, OF_BENCHMARK, WITH_LAST], ids=["first", "third", "bound", "benchmark", "by the last n"]
)
def test_a_line_that_is_read_is_written_again_byte_for_byte(text: str) -> None:
    assert json.dumps(HistoryLine.from_json(json.loads(text)).to_json()) == text


def test_a_line_is_read_as_what_it_says() -> None:
    line = HistoryLine.from_json(json.loads(THIRD))
    assert line.before == BeforeLearning(1.0, 0.9622222222222222, 355415, 0.7966746374447526)
    assert line.watched == Watched({0: 1.0, 1: 0.95}, 2, 1, 40)
    assert isinstance(line.calibration, Calibration) and line.calibration.temperature == 0.07400690581769248
    assert isinstance(beside := line.baselines["gain_map"], BaselineEntry)
    assert beside.calibration == Calibration(2.6134630548704414e-05, 0.07383912141778157, None, None, None)


def test_a_history_of_an_older_or_newer_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text(f'{OLD}\n{THIRD[:-1]}, "of_a_later_version": 1}}\n')
    old, newer = read_history(tmp_path / "history.jsonl")
    assert old.accuracy == [1.0, 0.5] and old.auc_fixed is old.calibration is old.watched is old.flops is None
    assert old.baselines == {"gain_map": BaselineEntry(accuracy=[0.5, 0.5], auc=[0.5, 0.5])}
    assert newer == HistoryLine.from_json(json.loads(THIRD))
    assert figures([old])["flops"] is None
    assert figures([old])["by_last"]["1"]["average_accuracy"] == 0.75, "single lumisections need no new entries"
    assert figures([old])["by_last"]["8"]["average_accuracy"] is None and not old.by_last


def test_cutting_a_history_keeps_its_lines_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(f"{OLD}\n{THIRD}\n{FIRST}\n{THIRD[:40]}")
    history = History(path)
    assert len(history) == 3 and history.newest == [HistoryLine.from_json(json.loads(FIRST))]
    history.cut(2)
    assert path.read_text() == f"{OLD}\n{THIRD}\n"
    assert len(history) == 2 and history.newest == [HistoryLine.from_json(json.loads(THIRD))]
    history.append(HistoryLine.from_json(json.loads(FIRST)))
    assert path.read_text() == f"{OLD}\n{THIRD}\n{FIRST}\n"


@pytest.mark.parametrize("text", ["[1]", "7", '{"run": 7}', '{"experience": 0, "run": 7, "baselines": []}', "{"])
def test_a_file_of_other_lines_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.jsonl").write_text(text + "\n")
    with pytest.raises(StateError, match=r"other\.jsonl is no history"):
        read_history(tmp_path / "other.jsonl")
