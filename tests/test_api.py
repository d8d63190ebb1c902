"""The public names: what `import dqmstream as dq` gives, and that its examples and notebooks run."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import dqmstream as dq
from tests.runs import simulated_archive

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


class NearestMean:
    """The mean map of each run, normalised; the score of a run is minus the squared distance to its mean."""

    name = "nearest_mean"

    def __init__(self) -> None:
        self.means: list[np.ndarray] = []

    @property
    def classes(self) -> int:
        return len(self.means)

    def set_reference(self, reference: Any) -> None:
        pass

    def learn(self, experience: int, run: dq.RunData, past: Any, watch: Any = None) -> dq.LearnLog:
        self.means.append(self._normalised(run.part(dq.Part.TRAIN)).mean(axis=0))
        return dq.LearnLog()

    def scores(self, maps: dq.Maps) -> np.ndarray:
        normalised = self._normalised(maps)
        return -np.stack([((normalised - mean) ** 2).sum(axis=1) for mean in self.means], axis=1) * 1e4

    @staticmethod
    def _normalised(maps: dq.Maps) -> np.ndarray:
        flat = maps.counts.reshape(len(maps), -1).astype(float)
        return flat / np.maximum(flat.sum(axis=1, keepdims=True), 1)

    def state(self) -> dict[str, np.ndarray]:
        return {"means": np.array(self.means)}

    def restore(self, state: Any) -> None:
        self.means = list(state["means"])

    def memory_bytes(self) -> int:
        return sum(mean.nbytes for mean in self.means)

    def state_bytes(self) -> int:
        return 0


@pytest.fixture(scope="module")
def runs() -> list[dq.RunData]:
    return dq.simulate_runs("moderate", seed=1, runs=3, lumisections=200)


def test_import_imports_no_library() -> None:
    code = "import sys, dqmstream as dq; print(sorted({'numpy', 'torch', 'xarray', 'zarr'} & set(sys.modules)), dq.__all__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.startswith("[] [")


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    assert dq.__all__ == sorted(dq.__all__)
    for name in set(dq.__all__) - {"__version__"}:
        found = getattr(dq, name)
        assert found.__doc__ and name in dir(dq)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dq.nothing
    assert (Path(dq.__file__).parent / "py.typed").exists()


MODULES = ["dqmstream", *sorted({f"dqmstream.{place.partition(':')[0]}" for place in dq._PLACES.values()})]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_run(module: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failed


def test_a_strategy_that_no_registry_knows_is_evaluated_beside_others(runs: list[dq.RunData]) -> None:
    found = dq.evaluate(runs, NearestMean(), beside=["gain_map", "ring_means"])
    assert found.strategy == "nearest_mean" and found.runs == [run.run for run in runs]
    accuracy = {name: figure for name, figure, *_ in found.table()}
    assert list(accuracy) == ["nearest_mean", "gain_map", "ring_means", "guessing"]
    assert accuracy["gain_map"] > 0.95 and accuracy["nearest_mean"] > 0.6 and accuracy["ring_means"] < 0.6
    assert found.accuracy == pytest.approx(np.nanmean(found.accuracy_matrix[-1]))
    assert np.isnan(found.accuracy_matrix[np.triu_indices(3, 1)]).all() and np.isnan(found.accuracy_matrix[0]).all()
    last_8 = found.by_last[8]["average_accuracy"]
    assert found.accuracy == found.by_last[1]["average_accuracy"] and list(found.by_last) == [1, 4, 8, 30]
    assert f"{last_8:.3f}" in repr(found) and "last 8" in found._repr_html_()
    assert f"{found.accuracy:.3f}" in repr(found) and f"<td>{found.accuracy:.3f}</td>" in found._repr_html_()


def test_an_archive_is_evaluated_as_it_is_replayed(tmp_path: Path) -> None:
    from dqmstream.learners.stream.learner_settings import LearnerSettings
    from dqmstream.learners.stream.replay import replay

    archive = simulated_archive(tmp_path, "moderate", seed=1, runs=3, lumisections=200)
    replayed = replay(archive, tmp_path / "state", LearnerSettings("slda"))
    for given in (archive.path, str(archive.path), dq.open_archive(archive.path)):
        found = dq.evaluate(given, "slda").results
        assert all(found[name] == replayed[name] for name in ("accuracy_matrix", "auc_matrix", "new_run_auc", "baselines"))


def test_a_strategy_object_is_learnt_with_checkpoints_and_loaded_to_score_maps(tmp_path: Path) -> None:
    archive = simulated_archive(tmp_path, "moderate", seed=1, runs=3, lumisections=200)
    with dq.Learner(archive, tmp_path / "S", strategy=NearestMean()) as learner:
        learner.follow(once=True)
        learnt = learner.results()
    loaded = dq.load_learner(tmp_path / "S", NearestMean())
    assert loaded.runs == learnt["runs"] == [summary.run for summary in archive.runs()]
    for run in dq.simulate_runs("moderate", seed=1, runs=3, lumisections=200):
        named = loaded.predict(run.part(dq.Part.TEST))
        assert np.mean(named == run.run) == learnt["accuracy_matrix"][-1][loaded.runs.index(run.run)]


def test_what_cannot_be_evaluated_is_told(runs: list[dq.RunData], tmp_path: Path) -> None:
    known = NearestMean()
    known.learn(0, runs[0], None)
    from dqmstream.errors import InputError

    for given, strategy, beside, says in (
        (runs, known, [], "has learnt 1 runs already"),
        (runs, "nothing", [], "there is no strategy 'nothing'"),
        (runs, NearestMean(), [NearestMean()], "two of the strategies have one name"),
        (runs[:1], "gain_map", [], r"1 run\(s\) can be learnt"),
        ([], "gain_map", [], r"0 run\(s\) can be learnt"),
    ):
        with pytest.raises(InputError, match=says):
            dq.evaluate(given, strategy, beside=beside)


def test_runs_without_counts_are_left_out_with_the_reason(runs: list[dq.RunData]) -> None:
    dark = dq.RunData(
        9,
        dq.Maps(runs[0].maps.counts * 0, *(vars(runs[0].maps)[n] for n in ("n_events", "pileup", "lumisection"))),
        runs[0].parts,
    )
    found = dq.evaluate([runs[0], dark, runs[1]], "gain_map", beside=[])
    assert found.runs == [runs[0].run, runs[1].run] and "no lumisection" in found.left_out[9]
    assert "run 9 left out" in repr(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["open-and-plot-an-archive", "write-a-strategy"]
