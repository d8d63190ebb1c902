"""An offline training streams, learns, keeps the best by validation, and goes on to the bits of one that never stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.studies.training import batches, checkpoints
from dqmstream.experiments.studies.training.augmentation import AUGMENTATIONS, augmented
from dqmstream.experiments.studies.training.batches import SplitRows, in_order, shuffled
from dqmstream.experiments.studies.training.plan import TrainingPlan
from dqmstream.experiments.studies.training.preprocessing import Preprocessing
from dqmstream.experiments.studies.training.trainer import EpochProgress, Training, best_of, train
from tests.experiments.studies.training.arrays import ArrayImages, bars

IMAGES = bars(240)
PARTS = SplitRows(np.arange(160), np.arange(160, 200), np.arange(200, 240))
CONVNET = TrainingPlan(model="convnet", convolutions=(8,), pooling=True, hidden=(16,), batch=16, epochs=4, lr=1e-2)


def test_each_row_comes_once_an_epoch_in_mixed_batches_and_buffers_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    n, bound = 2000, 40_000
    monkeypatch.setattr(batches, "BUFFER_BYTES", bound)
    sorted_by_class = ArrayImages(
        np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1) * np.ones((1, 1, 5, 5)), np.arange(n) // 1000
    )
    seen, shares = [], []
    for x, y in shuffled(sorted_by_class, np.arange(n), 48, np.random.default_rng(0)):
        assert np.array_equal(y, x[:, 0, 0, 0] // 1000)
        seen.append(x[:, 0, 0, 0])
        shares.append(y.mean())
    assert [len(batch) for batch in seen[:-1]] == [48] * (n // 48) and len(seen[-1]) == n % 48
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(n))
    assert max(len(rows) for rows in sorted_by_class.reads) * 100 <= bound
    assert 0.2 < np.mean(shares) < 0.8 and np.std(shares) < 0.3
    other = [x[:, 0, 0, 0] for x, _ in shuffled(sorted_by_class, np.arange(n), 48, np.random.default_rng(1))]
    assert not np.array_equal(other[0], seen[0])
    some = np.flatnonzero(np.arange(900) % 11 > 2)
    assert np.array_equal(np.concatenate([x[:, 0, 0, 0] for x, _ in in_order(sorted_by_class, some, 64)]), some)
    last = sorted_by_class.reads[-1]
    assert np.array_equal(last, np.arange(last[0], last[-1] + 1)), "holes are read with what is around them"


def test_preprocessing_knows_the_train_part_alone() -> None:
    x = np.zeros((4, 2, 2, 3), dtype=np.float32)
    x[0, 0, 0, 0], x[1, 1, 1, 1], x[3] = 4.0, -8.0, 1000.0
    images = ArrayImages(x, np.array([0, 1, 0, 1]))
    rows = np.arange(3)
    shown = {
        way: Preprocessing.fit(images, rows, TrainingPlan(model="convnet", normalise=way))
        for way in ("maximum", "unit", "none")
    }
    assert shown["maximum"].scale == (1 / 4, 1 / 8)
    assert (shown["unit"].shift, shown["unit"].scale) == ((-8.0, -8.0), (1 / 12, 1 / 12))
    assert torch.equal(shown["none"](torch.from_numpy(x)), torch.from_numpy(x))
    standard = Preprocessing.fit(images, rows, TrainingPlan(model="convnet", normalise="standard"))(torch.from_numpy(x[:3]))
    assert torch.allclose(standard.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-6)
    assert torch.allclose(standard.std(dim=(0, 2, 3), unbiased=False), torch.ones(2), atol=1e-5)
    padded = Preprocessing.fit(images, rows, TrainingPlan(model="convnet", normalise="none", pad=(3, 5)))
    out = padded(torch.from_numpy(x))
    assert out.shape == (4, 2, 3, 5) == (4, *padded.shape(2, 2, 3))
    assert torch.equal(out[..., :2, :3], torch.from_numpy(x)) and out[:, :, 2].abs().sum() + out[..., 3:].abs().sum() == 0
    resized = Preprocessing.fit(images, rows, TrainingPlan(model="convnet", resize=8))
    assert resized(torch.from_numpy(x)).shape == (4, *resized.shape(2, 2, 3)) == (4, 2, 8, 8)
    with pytest.raises(InputError, match="smaller than the images"):
        Preprocessing.fit(images, rows, TrainingPlan(model="convnet", pad=(1, 5)))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_moves_keep_what_an_image_holds_and_are_drawn_for_each(name: str) -> None:
    x = torch.zeros(64, 2, 7, 7)
    x[:, 0, 2, 3], x[:, 1, 4, 2] = 1.0, 2.0
    moved = augmented(x, [name], torch.Generator().manual_seed(0))
    assert moved.shape == x.shape and torch.equal(moved.sum(dim=(2, 3)), x.sum(dim=(2, 3)))
    assert len(torch.unique(moved.flatten(1), dim=0)) >= 4
    assert torch.equal(moved, augmented(x, [name], torch.Generator().manual_seed(0)))


def interrupted_at(epoch: int) -> Callable[[EpochProgress], None]:
    def stop(how: EpochProgress) -> None:
        if how.epoch == epoch and how.images > how.of_images // 2:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize(
    "plan",
    [
        CONVNET.changed({"dropout": 0.3, "augment": ["flip", "rotate", "shift"], "micro_batch": 10, "loss": "sigmoid"}),
        TrainingPlan(model="resnet", size="tiny", batch=32, epochs=3, optimizer="adamw", weight_decay=0.01),
    ],
    ids=lambda plan: plan.model,
)
def test_a_training_that_was_stopped_ends_with_the_bits_of_one_that_was_not(plan: TrainingPlan, tmp_path: Path) -> None:
    training = Training(plan, seed=3, device="cpu")
    whole = train(IMAGES, PARTS, training, tmp_path / "whole")
    for epoch in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            train(IMAGES, PARTS, training, tmp_path / "stopped", interrupted_at(epoch))
    again = train(IMAGES, PARTS, training, tmp_path / "stopped")
    assert [line["train_loss"] for line in again.history] == [line["train_loss"] for line in whole.history]
    assert again.best_epoch == whole.best_epoch
    for part, found in whole.log_probability.items():
        assert np.array_equal(again.log_probability[part], found)
    for name in (checkpoints.BEST, checkpoints.LAST):
        one, other = (checkpoints.read(tmp_path / folder / name)[0] for folder in ("whole", "stopped"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    other = train(IMAGES, PARTS, replace(training, seed=4), tmp_path / "other")
    assert not np.array_equal(other.log_probability["test"], whole.log_probability["test"])


def test_it_learns_and_the_best_epoch_by_validation_is_what_is_judged(tmp_path: Path) -> None:
    seen: list[EpochProgress] = []
    fitted = train(IMAGES, PARTS, Training(CONVNET, device="cpu"), tmp_path, seen.append)
    test = fitted.log_probability["test"]
    assert (test.argmax(axis=1) == IMAGES.labels[PARTS.test]).mean() > 0.9
    assert fitted.best_epoch == best_of(fitted.history)
    judged = fitted.log_probability["validation"]
    loss = -judged[np.arange(40), IMAGES.labels[PARTS.validation]].mean()
    assert loss == pytest.approx(fitted.history[fitted.best_epoch - 1]["validation_loss"])
    assert [how.images for how in seen if how.epoch == 1] == list(range(16, 161, 16))
    assert seen[0].images_per_s > 0 and seen[-1].left_s == pytest.approx(0.0)


def test_of_equal_aucs_the_lower_loss_is_the_best_and_patience_ends_a_training(tmp_path: Path) -> None:
    lines = [{"validation_auc": auc, "validation_loss": loss} for auc, loss in ((0.6, 0.5), (0.9, 0.4), (0.9, 0.3), (0.8, 0.1))]
    assert best_of(lines) == 3
    noise = ArrayImages(np.random.default_rng(0).normal(size=(240, 1, 6, 6)), IMAGES.labels)
    plan = CONVNET.changed({"epochs": 40, "patience": 2})
    history = train(noise, PARTS, Training(plan, device="cpu"), tmp_path).history
    assert len(history) < 40 and len(history) == best_of(history) + 2


def test_a_folder_of_another_training_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    training = Training(CONVNET.changed({"epochs": 1}), device="cpu", about={"images": "these"})
    train(IMAGES, PARTS, training, tmp_path)
    with pytest.raises(StateError, match="another images"):
        train(IMAGES, PARTS, replace(training, about={"images": "others"}), tmp_path)
    last = tmp_path / checkpoints.LAST
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(StateError, match="delete it"):
        train(IMAGES, PARTS, training, tmp_path)


def test_best_weights_may_begin_another_training_and_others_are_refused(tmp_path: Path) -> None:
    train(IMAGES, PARTS, Training(CONVNET, device="cpu"), tmp_path / "first")
    best = tmp_path / "first" / checkpoints.BEST
    slow = CONVNET.changed({"epochs": 1, "lr": 1e-6})
    cold, warm = (
        train(IMAGES, PARTS, Training(slow, device="cpu", weights=w), tmp_path / str(w is None)) for w in (None, best)
    )
    assert warm.history[0]["validation_loss"] < cold.history[0]["validation_loss"] / 2
    assert "best.safetensors" in warm.taken and cold.taken == ""
    with pytest.raises(InputError, match="another network"):
        train(IMAGES, PARTS, Training(CONVNET.changed({"hidden": [5]}), weights=best), tmp_path / "other")


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (CONVNET.changed({"lr": 1e30}), "try a lower learning rate, --set lr"),
        (CONVNET.changed({"model": "ensemble:cnn+vit", "loss": "sigmoid"}), "loss=softmax"),
        (CONVNET.changed({"model": "moe_vit"}), "64 x 72"),
        (CONVNET.changed({"model": "oracle"}), "oracle"),
    ],
)
def test_what_cannot_be_trained_is_told(plan: TrainingPlan, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        train(IMAGES, PARTS, Training(plan, device="cpu"), tmp_path)


def test_a_sigmoid_tells_two_classes_apart_and_no_more(tmp_path: Path) -> None:
    three = ArrayImages(IMAGES.x, np.arange(240) % 3)
    with pytest.raises(InputError, match="two classes, not 3"):
        train(three, PARTS, Training(CONVNET.changed({"loss": "sigmoid"}), device="cpu"), tmp_path)
    assert train(three, PARTS, Training(CONVNET, device="cpu"), tmp_path / "softmax").log_probability["test"].shape == (40, 3)
