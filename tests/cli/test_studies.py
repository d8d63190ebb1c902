"""`dqmstream benchmark --recipe NAME --data PATH` and `dqmstream simulate --layout`, as a user runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from tests.commandline import dqmstream, result, told


def test_a_study_is_tried_on_simulated_files_by_one_command(tmp_path: Path) -> None:
    made = result("simulate", tmp_path / "eg", "--layout", "electron_photon", "--images", 200, "--seed", 3, "--contrast", 2)
    assert cast(float, made["ideal_auc"]) > 0.99
    words = ["benchmark", "--recipe", "egamma_cnn_4", "--out", tmp_path / "out", "--size", "tiny", "--device", "cpu"]
    words += ["--epochs", 1, "--seed", 0, "--seed", 1, "--set", "lr=0.003", "--augment", "flip"]
    words += ["--data", *(tmp_path / "eg" / file for file in cast(list[str], made["files"])[:-1])]
    found: dict[str, Any] = result(*words)
    assert found["about"]["plan"]["augment"] == ["flip"] and found["about"]["plan"]["lr"] == 0.003
    assert [cell["seed"] for cell in found["cells"]] == [0, 1]
    assert found["ideal_auc"] == made["ideal_auc"]
    assert "| egamma_cnn_4 |" in Path(found["table"]).read_text()
    shown = dqmstream(*words)
    assert shown.returncode == 0 and "AUC 0.802" in shown.stdout and "Not stated in the publication" in shown.stdout


def test_studies_are_listed_and_misuse_is_told(tmp_path: Path) -> None:
    listed = {one["name"]: one for one in cast(list[dict[str, str]], result("benchmark", "--list")["studies"])}
    assert listed["qg_cnn_3"]["published"] == "AUC 0.7313"
    wanting = told(dqmstream("benchmark", "--recipe", "qg_cnn_3"), 3)
    assert "--data" in wanting
    assert "--recipe NAME" in told(dqmstream("benchmark", "--data", tmp_path), 3)
    assert "egamma_swin" in told(dqmstream("benchmark", "--recipe", "swan", "--data", tmp_path), 3)
    assert "leave out --quick" in told(dqmstream("benchmark", "--quick", "--data", tmp_path), 3)
    assert "give --data" in told(dqmstream("benchmark", "--quick", "--folds", "3"), 3)
    assert "quark_gluon" in told(dqmstream("simulate", tmp_path / "x", "--layout", "muons"), 3)
