"""Each recipe, at a small size, learns from files of its layout; its table has the published figures beside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.simulator import write
from dqmstream.experiments.simulator.images import write_images
from dqmstream.experiments.studies.recipes import StudyRecipe, recipe, recipes
from dqmstream.experiments.studies.run import run_study
from dqmstream.experiments.studies.study import StudySettings, prepare
from dqmstream.experiments.studies.study_table import COLUMNS, notes, rows, write_table
from dqmstream.learners.threads import set_threads

QUICK = {"lr": 3e-3, "batch": 16, "patience": 0, "normalise": "standard"}
"""Changes that let a few dozen steps learn something."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("studies")
    write(folder / "two_runs", "pair", 1, None, 200)
    write_images(folder / "electron_photon", "electron_photon", 320, 1, 2.0)
    write_images(folder / "quark_gluon", "quark_gluon", 160, 1, 1.5)
    set_threads(1)
    yield {task: folder / task for task in ("two_runs", "electron_photon", "quark_gluon")}


def options(of: StudyRecipe, **more: Any) -> StudySettings:
    changes = QUICK | ({"batch": 8} if of.task == "quark_gluon" else {})
    epochs = 3 if "swin" in of.name else 2  # few rows teach these less
    return StudySettings(size="tiny", epochs=epochs, folds=2 if of.folds else 0, device="cpu", changes=changes, **more)


def distinct() -> list[str]:
    """Recipes without those that are equal to another one at this size."""
    found = {(one.task, one.folds, options(one).plan(one).model_dump_json()): name for name, one in reversed(recipes().items())}
    return sorted(found.values())


@pytest.mark.parametrize("name", distinct())
def test_every_recipe_learns_and_no_better_than_the_ideal(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    of = recipe(name)
    study = prepare(name, [files[of.task]], options(of))
    result = run_study(study, tmp_path)
    judged = [cell["figures"][part]["auc"] for cell in result["cells"] for part in ("validation", "test")]
    assert np.mean([one["estimate"] for one in judged]) > 0.65
    assert all(one["low"] <= one["estimate"] <= one["high"] for one in judged)
    ideal = result["ideal_auc"] or 1.0
    assert all(one["low"] <= ideal for one in judged)
    table = rows(result)
    assert {len(row) for row in table} == {len(COLUMNS)} and table[0][0] == name and table[0][-1] == of.published_text
    said = write_table(study, result, tmp_path).read_text()
    assert "Different from the recipe" in said and f"Not stated in the publication: {of.not_stated[0]}" in said


def test_two_ring_means_are_as_good_on_the_two_run_task(files: dict[str, Path], tmp_path: Path) -> None:
    study = prepare("two_run_vit", [files["two_runs"]], options(recipe("two_run_vit")))
    result = run_study(study, tmp_path)
    beside = result["baselines"][0]["figures"]
    assert beside["two ring means"]["test"]["auc"]["estimate"] == 1.0
    assert beside["mean images (linear)"]["test"]["auc"]["estimate"] == 1.0
    assert beside["two ring means"]["test"]["auc"]["low"] < 0.6, "30 lumisections a run are few observations"
    assert any("test AUC of 1.0000: a network has to beat that" in note for note in notes(study, result))
    assert [row[0] for row in rows(result)[1:3]] == ["two ring means", "mean images (linear)"]


def test_a_stopped_study_continues_over_seeds_and_folds(files: dict[str, Path], tmp_path: Path) -> None:
    of = recipe("egamma_cnn_5")
    asked = StudySettings(
        seeds=(0, 1), epochs=2, size="tiny", folds=2, limit=120, device="cpu", changes={"convolutions": [4], "hidden": [4]}
    )
    study = prepare(of.name, [files[of.task]], asked)
    whole = run_study(study, tmp_path / "whole")

    def stop(cell: str, how: Any) -> None:
        if cell.startswith("seed1-fold0") and how.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "stopped", stop)
    trained: list[str] = []
    again = run_study(study, tmp_path / "stopped", lambda cell, how: trained.append(f"{cell[:11]} {how.epoch}"))
    assert set(trained) == {f"seed{s}-fold{f} {e}" for s, f, e in ((1, 0, 2), (0, 1, 1), (0, 1, 2), (1, 1, 1), (1, 1, 2))}
    assert [cell["figures"] for cell in again["cells"]] == [cell["figures"] for cell in whole["cells"]]
    assert not list(tmp_path.rglob("checkpoint.safetensors"))
    assert json.loads((tmp_path / "whole" / of.name / "results.json").read_text())["about"] == whole["about"]
    table = rows(whole)
    assert [row[0] for row in table[1:5]] == ["seed 0, fold 0", "seed 1, fold 0", "seed 0, fold 1", "seed 1, fold 1"]
    mean = np.mean([cell["figures"]["test"]["auc"]["estimate"] for cell in whole["cells"]])
    assert float(table[0][1].split()[0]) == pytest.approx(mean, abs=1e-4)
    said = " ".join(notes(study, whole))
    assert "Limited to 120 rows" in said and "2 folds" in said


def test_without_a_difference_network_and_baselines_guess(tmp_path: Path) -> None:
    write_images(tmp_path / "null", "electron_photon", 300, 5, 0.0)
    of = recipe("egamma_cnn_4")
    result = run_study(prepare(of.name, [tmp_path / "null"], StudySettings(size="tiny", epochs=1, device="cpu")), tmp_path)
    assert result["ideal_auc"] == 0.5
    for figures in (result["cells"][0]["figures"], *result["baselines"][0]["figures"].values()):
        assert figures["test"]["auc"]["low"] <= 0.5 <= figures["test"]["auc"]["high"]


def test_files_of_another_shape_or_one_class_and_missing_ones_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"quark/gluon images of 3 x 125 x 125, these have 2 x 32 x 32"):
        prepare("qg_cnn_4", [files["electron_photon"]], StudySettings())
    electrons = next(files["electron_photon"].glob("SingleElectron*"))
    with pytest.raises(InputError, match="all images are of one class"):
        prepare("egamma_cnn_4", [electrons], StudySettings())
    with pytest.raises(InputError, match="does not exist"):
        prepare("egamma_cnn_4", [tmp_path / "nothing.hdf5"], StudySettings())
    with pytest.raises(InputError, match="do not exist"):
        study = prepare("egamma_cnn_4", [files["electron_photon"]], StudySettings(weights=tmp_path / "none", size="tiny"))
        run_study(study, tmp_path)
