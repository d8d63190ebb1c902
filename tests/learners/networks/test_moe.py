"""Experts give the same outputs by every computation; routers weight them as published and keep the load even."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dqmstream.learners.networks.moe.config import ROUTER_NAMES, MoEConfig
from dqmstream.learners.networks.moe.experts import Experts
from dqmstream.learners.networks.moe.layer import MoE
from dqmstream.learners.networks.moe.routers import ROUTERS, Balanced, Soft, TopK

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def _moe(width: int = 16, hidden: int = 24, device: torch.device = CPU, **config: object) -> MoE:
    torch.manual_seed(0)
    moe = MoE(width, hidden, config=replace(MoEConfig(), **config))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(std=0.5)
    return moe.to(device)


def _value_and_gradients(moe: MoE, computation: str, bf16: bool = False) -> list[Tensor]:
    moe.zero_grad()
    moe.experts.computation = computation
    device = moe.router.weight.device
    x = torch.randn(5, 10, moe.router.weight.shape[1], generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        y = moe(x)
    (y.float() * torch.linspace(-1, 1, y.shape[-1], device=device)).square().sum().backward()
    gradients = [parameter.grad for parameter in moe.parameters()]
    assert x.grad is not None
    assert all(gradient is not None for gradient in gradients)
    return [y.detach(), x.grad, *(gradient.clone() for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("router", ["top_k", "balanced"])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (4, 1), (3, 3), (16, 2)])
@pytest.mark.parametrize("computation", ["loop", "grouped"])
def test_computations_agree_in_value_and_gradient(
    computation: str, experts: int, top_k: int, router: str, device: torch.device = CPU
) -> None:
    moe = _moe(experts=experts, top_k=top_k, router=router, shared_expert=True, device=device)
    dense = _value_and_gradients(moe, "dense")
    for one, other in zip(_value_and_gradients(moe, computation), dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@needs_cuda
@pytest.mark.parametrize("computation", ["loop", "grouped"])
def test_computations_agree_on_a_gpu(computation: str) -> None:
    for experts, top_k in ((8, 2), (16, 2)):
        test_computations_agree_in_value_and_gradient(computation, experts, top_k, "top_k", CUDA)


@needs_cuda
@pytest.mark.parametrize("computation", ["loop", "grouped"])
def test_bfloat16_is_within_two_per_cent_of_float32(computation: str) -> None:
    """In norm, for the output and every gradient: bfloat16 rounds to .4 %, over two layers and their backward pass."""
    moe = _moe(64, 128, device=CUDA)
    exact = _value_and_gradients(moe, "dense")
    for rounded, true in zip(_value_and_gradients(moe, computation, bf16=True), exact, strict=True):
        assert (rounded - true).norm() < 0.02 * true.norm()


def test_routers_are_those_that_a_recipe_may_name() -> None:
    assert set(ROUTERS) == set(ROUTER_NAMES)


@pytest.mark.parametrize("router", ROUTER_NAMES)
def test_shares_of_a_token_sum_to_one_and_are_the_weights_of_its_output(router: str) -> None:
    """Shown by experts that each return their own number."""
    moe = _moe(experts=4, top_k=2, router=router)
    number_E = torch.arange(1.0, 5.0)
    with torch.no_grad():
        moe.experts.down_EDH.zero_()
        moe.experts.down_bias_ED.copy_(number_E[:, None].expand(-1, 16))
    x = torch.randn(3, 7, 16)
    share_BNE = moe.router.shares(x)
    torch.testing.assert_close(share_BNE.sum(dim=-1), torch.ones(3, 7))
    torch.testing.assert_close(moe(x), (share_BNE @ number_E)[..., None].expand(-1, -1, 16))
    assert router == "soft" or ((share_BNE > 0).sum(dim=-1) == 2).all()


def test_an_expert_that_no_token_chose_has_no_gradient() -> None:
    moe = _moe()
    with torch.no_grad():
        moe.router.weight[5] = -1e3 * torch.ones(16)
    x = torch.rand(2, 7, 16) + 0.1
    moe(x).sum().backward()
    assert not moe.router.shares(x)[..., 5].any()
    assert moe.experts.up_EHD.grad is not None
    assert not moe.experts.up_EHD.grad[5].any()
    assert moe.experts.up_EHD.grad.any()


def _even_and_uneven() -> tuple[Tensor, Tensor]:
    """Tokens that a router with unit rows sends evenly to four experts, and all to the first."""
    return torch.eye(4, 12).repeat(5, 1)[None], torch.eye(4, 12)[:1].repeat(20, 1)[None]


def test_balancing_loss_is_least_when_the_load_is_even() -> None:
    router = TopK(MoEConfig(experts=4, top_k=1, z_weight=0.0, aux_weight=1.0), 12)
    with torch.no_grad():
        router.weight.copy_(10 * torch.eye(4, 12))
    losses = []
    for x in _even_and_uneven():
        router(x, Experts(4, 12, 8))
        assert router.auxiliary_loss is not None
        losses.append(router.auxiliary_loss.item())
    assert losses[0] == pytest.approx(1.0, abs=1e-5)
    assert losses[1] == pytest.approx(4.0, abs=0.01)


def test_the_bias_evens_the_load_and_is_not_in_the_weights() -> None:
    config = MoEConfig(experts=4, top_k=2, bias_rate=0.005)
    torch.manual_seed(2)
    router, free, experts = Balanced(config, 12), TopK(config, 12), Experts(4, 12, 8)
    with torch.no_grad():
        router.weight.normal_(std=0.2).add_(torch.tensor([0.1, 0.0, 0.0, -0.1])[:, None])
        free.weight.copy_(router.weight)
    x = torch.randn(8, 40, 12) + 0.4
    load = []
    for _ in range(100):
        router(x, experts)
        load.append(router.load_E / router.load_E.sum())
        router.after_step()
        assert not router.load_E.any()
    assert load[0].max() > 0.32
    assert load[-1].max() < 0.27
    assert router.auxiliary_loss is None
    weight_TK, expert_TK = router.choose(x.flatten(0, 1))
    probability_TE = torch.nn.functional.linear(x.flatten(0, 1), router.weight).softmax(dim=-1)
    chosen_TK = probability_TE.gather(1, expert_TK)
    torch.testing.assert_close(weight_TK, chosen_TK / chosen_TK.sum(dim=-1, keepdim=True))
    assert (expert_TK.sort(dim=-1).values != free.choose(x.flatten(0, 1))[1].sort(dim=-1).values).any()


def test_the_load_is_counted_over_all_parts_of_a_batch_and_not_in_evaluation() -> None:
    router, experts = Balanced(MoEConfig(experts=4, top_k=1), 12), Experts(4, 12, 8)
    even, uneven = _even_and_uneven()
    for x in (even, uneven):
        router(x, experts)
    counted = router.load_E.clone()
    assert counted.sum() == 40
    router.eval()
    router(uneven, experts)
    assert torch.equal(router.load_E, counted)


def test_soft_places_are_means_over_one_lumisections_tokens() -> None:
    """Compared with a loop over places; the output of a lumisection is the same in any batch."""
    config = MoEConfig(experts=3, places=2, router="soft")
    torch.manual_seed(3)
    router, experts = Soft(config, 12), Experts(3, 12, 8)
    with torch.no_grad():
        router.scale.fill_(5.0)
    x = torch.randn(2, 7, 12)
    logits = 5 * torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(router.weight, dim=-1).T
    by_hand = torch.zeros_like(x)
    for b in range(2):
        for place in range(6):
            mean_D = logits[b, :, place].softmax(dim=0) @ x[b]
            e = place // 2
            hidden_H = torch.nn.functional.gelu(experts.up_EHD[e] @ mean_D + experts.up_bias_EH[e])
            by_hand[b] += logits[b].softmax(dim=1)[:, place, None] * (experts.down_EDH[e] @ hidden_H + experts.down_bias_ED[e])
    torch.testing.assert_close(router(x, experts), by_hand)
    torch.testing.assert_close(router(x[1:], experts), by_hand[1:])
