"""What defines each method: A-GEM's projection, ER-ACE's second loss, DER++'s logits, LwF's teacher, bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dqmstream.learners.gradient.agem import Agem, project
from dqmstream.learners.gradient.der import SHARE_LOGITS, Der, difference, padded
from dqmstream.learners.gradient.er_ace import incoming_loss
from dqmstream.learners.gradient.lwf import Lwf, distillation
from dqmstream.learners.maps import RunData
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.strategy import Strategy
from dqmstream.lumisection import Geometry
from tests.learners.streams import make_stream, reader

BRIEF = Recipe(dim=16, depth=2, heads=2, experts=4, steps=3, batch=16, lr=3e-3)
STREAM = make_stream(4, drift=0.03, seed=1, n=100)


def make(name: str, memory_bytes: int = 400_000, recipe: Recipe = BRIEF) -> Any:
    return make_strategy(name, geometry=Geometry(1), seed=0, recipe=recipe, memory_bytes=memory_bytes, device="cpu")


def learn(strategy: Strategy, runs: list[RunData]) -> None:
    for run in runs:
        strategy.learn(strategy.classes, run, reader(STREAM))


def test_er_ace_gives_old_rows_no_gradient_from_the_new_run() -> None:
    head = torch.nn.Linear(5, 4)
    incoming_loss(head(torch.randn(8, 5))).backward()
    assert head.weight.grad is not None and head.bias.grad is not None
    assert not head.weight.grad[:3].any() and not head.bias.grad[:3].any()
    assert head.weight.grad[3].all() and head.bias.grad[3] < 0
    # The cross-entropy of the new class against one unseen class whose logit is zero.
    logits = torch.randn(8, 4)
    beside = torch.stack([logits[:, 3], torch.zeros(8)], dim=1)
    torch.testing.assert_close(
        incoming_loss(logits), torch.nn.functional.cross_entropy(beside, torch.zeros(8, dtype=torch.long))
    )


def test_agem_removes_only_the_component_against_the_memory() -> None:
    gradient, memory = [torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])], [torch.tensor([[-1.0, -1.0]]), torch.tensor([1.0])]
    left = project(gradient, memory)
    # g·m = -2.5, m·m = 3: by hand.
    torch.testing.assert_close(left, [torch.tensor([[1 - 2.5 / 3, 2 - 2.5 / 3]]), torch.tensor([0.5 + 2.5 / 3])])
    assert sum(float((a * b).sum()) for a, b in zip(left, memory, strict=True)) == pytest.approx(0, abs=1e-6)
    agreeing = [-m for m in memory]
    torch.testing.assert_close(project(gradient, agreeing), gradient)
    torch.testing.assert_close(project(gradient, [torch.zeros_like(m) for m in memory]), gradient)


def test_agem_gradients_are_never_against_the_memory_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    agreements = []

    def watched(gradient: Any, memory: Any) -> Any:
        left = project(gradient, memory)
        before, after = (sum(float((a * b).sum()) for a, b in zip(of, memory, strict=True)) for of in (gradient, left))
        agreements.append((before, after, sum(float((m * m).sum()) for m in memory)))
        return left

    monkeypatch.setattr("dqmstream.learners.gradient.agem.project", watched)
    learn(make("agem"), STREAM)
    assert len(agreements) == 2 * BRIEF.steps, "the first training has no past"
    assert min(before for before, _, _ in agreements) < 0, "the memory was in conflict at least once"
    assert all(after >= -1e-5 * length for _, after, length in agreements)


def test_agem_trains_on_the_new_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = []
    monkeypatch.setattr(Agem, "before_forward", lambda self, strategy, **kwargs: labels.append(strategy.mb_y.unique().tolist()))
    learn(make("agem"), STREAM[:3])
    assert labels == [[0, 1]] * BRIEF.steps + [[2]] * BRIEF.steps


def test_der_compares_logits_on_the_classes_that_were_known() -> None:
    stored = torch.from_numpy(padded([np.array([[1, 2]], np.float16), np.array([[0, 1, 5]], np.float16)], 4))
    assert stored.isnan().tolist() == [[False, False, True, True], [False, False, False, True]]
    logits = torch.tensor([[1.0, 4.0, 9.0, 9.0], [0.0, 1.0, 6.0, 9.0]], requires_grad=True)
    loss = difference(logits, stored)
    assert loss.item() == pytest.approx((2**2 + 1**2) / 5)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[False, True, False, False], [False, False, True, False]]


def test_der_stores_the_logits_at_the_end_of_a_runs_training() -> None:
    strategy = make("der")
    learn(strategy, STREAM[:3])
    exemplars = strategy.method.exemplars()[2].copy()
    residuals = torch.from_numpy(strategy.reference.residuals_of_live(exemplars))
    with torch.no_grad():
        said = strategy.network.eval()(residuals).numpy()
    learn(strategy, STREAM[3:])
    logits, kept = strategy.method.logits, strategy.method.exemplars()[2]
    assert [z.shape[1] for z in logits] == [2, 2, 3]
    np.testing.assert_allclose(logits[2], said[: len(logits[2])], rtol=2e-3, atol=2e-3)
    assert len(logits[2]) == len(kept), "no logits without their exemplar, no exemplar without its logits"


def test_der_compares_logits_under_the_noise_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise a network could tell exemplars from training rows, and give its old logits to exemplars alone."""
    asked: list[torch.Tensor] = []
    forward = Network.__call__

    def watched(model: Network, residuals_BL: torch.Tensor) -> torch.Tensor:
        if model.training:
            asked.append(residuals_BL)
        return forward(model, residuals_BL)

    monkeypatch.setattr(Network, "__call__", watched)
    strategy = make("der", recipe=replace(BRIEF, noise=1.5))
    learn(strategy, STREAM[:2])
    asked.clear()
    learn(strategy, STREAM[2:3])
    assert len(asked) == 2 * BRIEF.steps, "a batch to learn, and one to hold"
    exemplars = strategy.reference.residuals_of_live(np.concatenate(strategy.method.exemplars()[:2]))
    for held_BL in asked[1::2]:
        nearest = (held_BL[:, None] - torch.from_numpy(exemplars)).square().mean(dim=-1).amin(dim=1)
        assert (nearest > 1).all(), "a variance of 2.25 at least, but for what is cut"


def test_der_keeps_its_logits_within_its_share_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budget, share = 40_000, 60  # as few bytes a run as hundreds of runs leave
    assert int(SHARE_LOGITS * budget) > share
    monkeypatch.setattr("dqmstream.learners.gradient.der.SHARE_LOGITS", share / budget)
    strategy = make("der", budget)
    for run in range(4):
        learn(strategy, STREAM[run : run + 1])
        assert strategy.memory_bytes() <= budget
    method = strategy.method
    assert sum(kept.nbytes for kept in (*method.logits, *method.places)) <= share
    assert [len(z) for z in method.logits] == [2, 2, 2]


def test_der_drops_the_logits_of_exemplars_that_a_reservoir_drops() -> None:
    strategy = make("der", 30_000, replace(BRIEF, memory="reservoir"))
    learn(strategy, STREAM[:3])
    said = dict(_exemplars_and_logits(strategy.method))
    learn(strategy, STREAM[3:])
    kept = _exemplars_and_logits(strategy.method)
    assert 0 < len(kept) < len(said)
    for row, z in kept:
        np.testing.assert_array_equal(z, said[row])


def _exemplars_and_logits(method: Der) -> list[tuple[bytes, np.ndarray]]:
    """Of the first two runs."""
    return [
        (row.tobytes(), z)
        for i in range(2)
        for row, z in zip(method.exemplars()[i].astype(np.float32)[method.places[i]], method.logits[i], strict=True)
    ]


def test_the_teacher_of_lwf_does_not_change_and_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
    finish = Lwf.after_training_exp

    def after(self: Lwf, strategy: Any, **kwargs: object) -> None:
        if self.teacher is not None:
            seen.append((dict(self.teacher), dict(strategy.model.named_parameters())))
        finish(self, strategy)

    monkeypatch.setattr(Lwf, "after_training_exp", after)
    strategy = make("lwf")
    learn(strategy, STREAM[:2])
    assert not seen and strategy.method.state_bytes() == 0
    before = {name[len("model.") :]: array for name, array in strategy.state().items() if name.startswith("model.")}
    learn(strategy, STREAM[2:3])
    ((teacher, weights),) = seen
    for name, array in before.items():
        np.testing.assert_array_equal(teacher[name][: len(array)], array)
    assert any(not torch.equal(teacher[name], weight) for name, weight in weights.items())
    assert strategy.method.state_bytes() == sum(weight.nbytes for weight in weights.values())
    assert strategy.method.teacher is None
    resumed = make("lwf")
    resumed.restore(strategy.state())
    assert resumed.state_bytes() == strategy.state_bytes()


def test_distillation_is_zero_for_equal_predictions_and_else_the_divergence() -> None:
    teacher = torch.tensor([[2.0, 0.0, -1.0]])
    assert distillation(teacher + 3, teacher, 2.0).item() == pytest.approx(0, abs=1e-6)
    # T² sum p (log p - log q) by hand, with T = 1 and q uniform.
    p = teacher.softmax(1)
    assert distillation(torch.zeros(1, 3), teacher, 1.0).item() == pytest.approx(
        float((p * (p.log() + np.log(3))).sum()), rel=1e-5
    )


def test_lwf_keeps_the_predictions_of_the_old_classes() -> None:
    moved = []
    for strength in (0.0, 10.0):
        strategy = make("lwf", recipe=replace(BRIEF, steps=20, lwf_strength=strength))
        learn(strategy, STREAM[:2])
        said = torch.from_numpy(strategy.scores(STREAM[2].maps))
        learn(strategy, STREAM[2:3])
        moved.append(distillation(torch.from_numpy(strategy.scores(STREAM[2].maps))[:, :2], said, 1.0).item())
    assert moved[1] < 0.5 * moved[0]


def test_cumulative_starts_from_its_weights_and_joint_from_new_ones() -> None:
    # At a learning rate of zero the weights after a training are those at its start.
    idle = replace(BRIEF, lr=0.0)
    moved = {}
    for name in ("cumulative", "joint"):
        strategy = make(name, recipe=idle)
        learn(strategy, STREAM[:2])
        before = strategy.state()["model.position_ND"]
        learn(strategy, STREAM[2:3])
        moved[name] = not np.array_equal(strategy.state()["model.position_ND"], before)
    assert moved == {"cumulative": False, "joint": True}


@pytest.mark.parametrize("name", ["replay", "er_ace", "der", "agem", "lwf"])
def test_a_batch_in_parts_trains_as_the_whole_batch(name: str) -> None:
    """A method's further lumisections are split over the parts too, and are as many in all."""
    recipe = Recipe(model="cnn", cnn_widths=(4, 6), steps=3, batch=7, noise=0.0)
    logs = []
    for micro_batch in (0, 3):
        strategy = make(name, recipe=replace(recipe, micro_batch=micro_batch))
        logs.append([strategy.learn(i, run, reader(STREAM)) for i, run in enumerate(STREAM[:3])])
    for whole, parts in zip(*logs, strict=True):
        assert parts.loss == pytest.approx(whole.loss, rel=1e-3)
        assert parts.flops == whole.flops
