"""The experts compute what they should, whatever is computed in which order."""

from __future__ import annotations

import pytest
import torch

from dqmstream.learners.moe import MoE


def _moe(experts: int = 8, top_k: int = 2) -> MoE:
    torch.manual_seed(0)
    moe = MoE(12, 20, experts=experts, top_k=top_k)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(std=0.5)
    return moe


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (4, 1), (3, 3), (16, 2)])
def test_sorted_experts_equal_the_dense_computation_in_value_and_gradient(experts: int, top_k: int) -> None:
    moe = _moe(experts, top_k)
    results = []
    for compute in (moe.compute, moe.compute_dense):
        moe.zero_grad()
        x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = compute(x, *moe.route(x))
        (y * torch.linspace(-1, 1, 12)).square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad.clone() for p in moe.parameters())])
    for fast, dense in zip(*results, strict=True):
        torch.testing.assert_close(fast, dense, rtol=1e-4, atol=1e-4)


def test_an_expert_that_nobody_chose_has_no_part() -> None:
    moe = _moe()
    with torch.no_grad():
        moe.router.weight[5] = -1e3 * torch.ones(12)
    moe(torch.rand(2, 7, 12) + 0.1).sum().backward()
    assert moe.load_E[5] == 0
    assert moe.up_EHD.grad is not None
    assert not moe.up_EHD.grad[5].any()
    assert moe.up_EHD.grad.any()
    assert moe.load_E.sum() == pytest.approx(1.0)


def test_balancing_loss_is_least_when_the_load_is_even() -> None:
    moe = _moe(experts=4, top_k=1)
    moe.z_weight, moe.aux_weight = 0.0, 1.0
    with torch.no_grad():
        moe.router.weight.copy_(10 * torch.eye(4, 12))
    even, uneven = torch.eye(4, 12).repeat(5, 1)[None], torch.eye(4, 12)[:1].repeat(20, 1)[None]
    losses = []
    for x in (even, uneven):
        moe(x)
        assert moe.auxiliary_loss is not None
        losses.append(moe.auxiliary_loss.item())
    assert losses[0] == pytest.approx(1.0, abs=1e-5)
    assert losses[1] == pytest.approx(4.0, abs=0.01)
