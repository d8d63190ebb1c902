"""Simulated images have the layouts of the published files, and the ideal that is written beside them is the ideal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import poisson

from dqmstream.errors import InputError
from dqmstream.experiments.simulator.images import ImageModel, electron_photon, ideal_of, write_images
from dqmstream.learners.evaluation.roc import auc
from dqmstream.storage.images.source import open_images


def test_the_likelihood_ratio_is_that_of_the_law() -> None:
    rng = np.random.default_rng(0)
    law = ImageModel.from_maps(rng.uniform(0.1, 2.0, (2, 2, 3, 3)), range(-1, 2), 1.0)
    counts = law.draw(np.arange(20) % 2, rng)
    by_place = [poisson.logpmf(counts.reshape(20, 1, -1), rate).sum(axis=2) for rate in law.rate]
    wanted = logsumexp(by_place[1], axis=1) - logsumexp(by_place[0], axis=1)
    np.testing.assert_allclose(law.log_ratio(counts), wanted, atol=1e-9)


def test_contrast_sets_the_classes_apart_and_at_none_nothing_tells_them() -> None:
    label = np.arange(600) % 2
    found = []
    for contrast in (0.0, 0.5, 1.0):
        law = electron_photon(contrast)
        ratio = law.log_ratio(law.draw(label, np.random.default_rng(1)))
        found.append(auc(ratio[label == 1], ratio[label == 0]))
    assert found[0] == 0.5 < 0.7 < found[1] < found[2] < 1


@pytest.mark.parametrize(
    ("layout", "shape", "classes"),
    [("electron_photon", (2, 32, 32), {"electron", "photon"}), ("quark_gluon", (3, 125, 125), None)],
)
def test_files_open_as_the_published_ones_do(
    layout: str, shape: tuple[int, ...], classes: set[str] | None, tmp_path: Path
) -> None:
    paths = write_images(tmp_path / "made", layout, 24, seed=3)
    images = open_images(paths[:-1])
    assert images.shape == (24, *shape)
    assert np.bincount(images.labels).tolist() == [12, 12]
    assert classes is None or set(images.classes) == classes
    assert images.read(np.arange(24)).max() > 0
    truth = json.loads(paths[-1].read_text())
    assert ideal_of([tmp_path / "made"]) == truth["ideal_auc"] > 0.8
    again = write_images(tmp_path / "again", layout, 24, seed=3)
    assert open_images(again[:-1]).digest == images.digest


@pytest.mark.parametrize(
    ("layout", "images", "contrast", "reason"),
    [("jets", 100, 1.0, "quark_gluon"), ("quark_gluon", 5, 1.0, "20 or more"), ("quark_gluon", 50, -1.0, "contrast")],
)
def test_what_cannot_be_drawn_is_refused(layout: str, images: int, contrast: float, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        write_images(tmp_path / "out", layout, images, 0, contrast)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.txt"):
        write_images(tmp_path, "electron_photon", 20, 0)
