"""Cost of a Mixture of Experts over an MLP of as many active operations: a forward and a backward pass, on this device.

    python -m benchmarks.moe

Prints one JSON array, the last line of stdout. Ratios are medians over rounds in which all layers are timed in turn, on one
thread, each router with its balancing. Times depend on the machine, ratios hardly. It takes a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from dqmstream.learners.networks.moe.config import MoEConfig
from dqmstream.learners.networks.moe.layer import MoE

SIZES = ({"tokens": 4096, "dim": 64, "hidden": 128}, {"tokens": 4096, "dim": 192, "hidden": 768})
"""The default network at a batch of 128, and a larger one."""

TOKENS_OF_ONE = 32
"""Tokens of one lumisection."""


def measure(tokens: int, dim: int, hidden: int, rounds: int, device: torch.device) -> dict[str, object]:
    """Milliseconds of the MLP; for each layer, the time over the MLP's: median and quartiles over the rounds."""
    default = MoEConfig()
    torch.manual_seed(0)
    mlp = Mlp(dim, default.top_k * hidden).to(device)
    steps: dict[str, Callable[[], float]] = {"mlp": _step(mlp, tokens, dim, device)}
    for router, computation in (("top_k", "loop"), ("top_k", "grouped"), ("balanced", "loop"), ("soft", "")):
        moe = MoE(dim, hidden, config=MoEConfig(router=router)).to(device)
        moe.experts.computation = computation
        steps[f"{router} {computation}".strip()] = _step(moe, tokens, dim, device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 2):
        for name, step in steps.items():
            took = step()
            if round_ >= 2:
                seconds[name].append(took)
    over = {name: sorted(s / mlp_s for s, mlp_s in zip(seconds[name], seconds["mlp"], strict=True)) for name in steps}
    return {
        "tokens": tokens, "dim": dim, "hidden": hidden, "experts": default.experts, "top_k": default.top_k,
        "mlp_ms": round(1000 * statistics.median(seconds["mlp"]), 2),
        "over_mlp": {
            name: [round(statistics.median(ratios), 3), [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]]]
            for name, ratios in over.items()
            if name != "mlp"
        },
    }  # fmt: skip


def _step(layer: nn.Module, tokens: int, dim: int, device: torch.device) -> Callable[[], float]:
    """A function that returns the seconds of a forward and a backward pass, with gradients of input and weights."""
    x_BND = torch.randn(tokens // TOKENS_OF_ONE, TOKENS_OF_ONE, dim, device=device, requires_grad=True)
    gradient_BND = torch.randn_like(x_BND)
    # On a CPU the process's own time, which other processes do not change.
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def step() -> float:
        layer.zero_grad()
        began = clock()
        y_BND: Tensor = layer(x_BND)
        auxiliary = layer.router.auxiliary_loss if isinstance(layer, MoE) else None
        loss = (y_BND * gradient_BND).sum()
        (loss if auxiliary is None else loss + auxiliary).backward()
        if isinstance(layer, MoE):
            layer.router.after_step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    print(json.dumps([measure(**size, rounds=options.rounds, device=device) for size in SIZES]))


if __name__ == "__main__":
    main()
