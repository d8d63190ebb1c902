"""Fisher information is a mean over samples of squared gradients; the penalty holds weights near their values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dqmstream.errors import StateError
from dqmstream.learners.gradient.ewc import fisher_information
from dqmstream.learners.gradient.held_weights import padded, penalty


def test_fisher_information_is_the_mean_of_squared_gradients_of_single_samples() -> None:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.2], [0.1, 0.3]]))
    samples = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.3, -2.0], [2.0, 1.0]])

    # By hand: d log p(ŷ|x) / dW_jf = (1[ŷ = j] - p_j) x_f.
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for x in samples:
        p = (model.weight.detach() @ x).softmax(0)
        drawn = torch.multinomial(p, 1, generator=generator).item()
        gradients.append((torch.eye(2)[drawn] - p)[:, None] * x)
    by_hand = torch.stack(gradients).square().mean(0)

    fisher = fisher_information(model, samples, torch.Generator().manual_seed(0))["weight"]
    torch.testing.assert_close(fisher, by_hand)
    assert not torch.allclose(fisher, torch.stack(gradients).mean(0).square(), rtol=0.2)


def test_fisher_information_does_not_change_when_samples_are_repeated() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0] += 100  # so certain that every drawn label is the same
    samples = torch.rand(4, 3)
    once = fisher_information(model, samples, torch.Generator().manual_seed(0))
    often = fisher_information(model, samples.repeat(8, 1), torch.Generator().manual_seed(0))
    for name in once:
        torch.testing.assert_close(once[name], often[name])


def test_penalty_is_the_weighted_squared_distance_and_new_rows_have_none() -> None:
    model = nn.Linear(2, 3, bias=False)
    anchor = {"weight": model.weight.detach().clone()}
    fisher = {"weight": padded(torch.tensor([[1.0, 2.0]]), model.weight)}
    assert fisher["weight"].tolist() == [[1, 2], [0, 0], [0, 0]]
    with torch.no_grad():
        model.weight += 3
    assert penalty(model, fisher, anchor).item() == pytest.approx(27.0)
    with pytest.raises(StateError, match="shape"):
        padded(torch.zeros(4, 2), model.weight)
