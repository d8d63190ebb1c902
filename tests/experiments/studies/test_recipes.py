"""The recipes of the studies are complete and have the published figures; senseless changes are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.studies.recipes import described, page, recipe, recipes
from dqmstream.experiments.studies.study import StudySettings

PUBLISHED = {
    "two_run_vit": [0.99, 1.0],
    "two_run_moe_vit": [0.99, 1.0],
    "two_run_vit_b16": [1.0, 1.0],
    "egamma_cnn_pytorch": [0.8083, 0.8004],
    "egamma_cnn_keras": [0.8703, 0.8093, 0.7863],
    "qg_cnn_3": [0.7313],
    "egamma_vit_3": [],
    "egamma_cnn_4": [0.802],
    "qg_cnn_4": [0.697],
    "egamma_vit": [0.757],
    "egamma_cnn_5": [0.7934, 0.72],
    "qg_cnn_5": [0.7201],
    "egamma_swin": [0.7577],
    "egamma_vit_5": [0.5],
}
PLANNED = {"qg_efficientnet", "egamma_hybrid", "egamma_ensemble", "egamma_cnn_augmented", "egamma_cnn_kfold", "egamma_pvt_v2"}
PLANNED |= {"egamma_deit", "egamma_cswin"}


def test_every_study_is_there_with_what_it_published() -> None:
    found = {name: [figure.value for figure in one.published] for name, one in recipes().items()}
    assert found == PUBLISHED | {name: [] for name in (*PLANNED, "qg_resnet")}
    assert all(one.not_stated and one.chosen for one in recipes().values())


def test_recipes_are_those_of_the_publications_where_these_say_anything() -> None:
    second = recipe("two_run_vit_b16").plan
    assert (second.pad, second.resize, second.lr, second.batch, second.epochs) == ((64, 76), 224, 1e-4, 250, 5)
    fourth = recipe("qg_cnn_4")
    assert (fourth.plan.loss, fourth.plan.batch, fourth.plan.epochs, fourth.shares[1]) == ("sigmoid", 32, 150, 0.2)
    assert recipe("egamma_vit").plan.lr == pytest.approx(recipe("egamma_cnn_4").plan.lr / 100)
    assert recipe("egamma_cnn_kfold").folds == 5
    assert "zero-padded to 64x76, resized to 224x224" in described(recipe("two_run_vit_b16"))["input"]


def test_the_page_is_what_the_recipes_say() -> None:
    assert (Path(__file__).parents[3] / "docs" / "studies.md").read_text() == page()


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("two_run_vit", StudySettings(augment=("flip",)), "no mirror symmetry"),
        ("two_run_vit", StudySettings(augment=("shift",)), "other channels"),
        ("egamma_cnn_4", StudySettings(augment=("roll",)), "augment"),
        ("egamma_cnn_4", StudySettings(size="huge"), "no size 'huge'"),
        ("egamma_cnn_4", StudySettings(changes={"speed": 3}), "speed"),
        ("egamma_cnn_4", StudySettings(changes={"lr": -1}), "lr"),
    ],
)
def test_senseless_changes_are_refused(name: str, options: StudySettings, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        options.plan(recipe(name))


def test_a_study_that_does_not_exist_is_told_with_those_that_do() -> None:
    with pytest.raises(InputError, match="egamma_swin"):
        recipe("egamma_swine")


def test_a_quick_look_is_small_and_takes_the_changes_that_are_asked_for() -> None:
    plan = StudySettings(size="tiny", epochs=2, changes={"lr": 0.5}).plan(recipe("two_run_vit_b16"))
    assert (plan.size, plan.resize, plan.pad, plan.epochs, plan.lr) == ("tiny", 0, None, 2, 0.5)
