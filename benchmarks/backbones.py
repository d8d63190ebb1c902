"""Size and cost of each published family: parameters, operations, and milliseconds of a forward and a backward pass an image.

    python -m benchmarks.backbones [--size tiny] [--shape 1 64 72] [--device cpu]

Prints a table, and one JSON array as the last line of stdout. Times are medians over rounds in which all families are timed in
turn, on one thread, with batches of 16 and a head of 10 classes; operations are counted as in `learners.gradient.flops`. It
takes a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import Tensor, nn

from dqmstream.learners.gradient.flops import counter
from dqmstream.learners.networks.backbones import NAMES, READOUTS, SIZES, build_classifier

BATCH, CLASSES = 16, 10


def pass_of(model: nn.Module, x_BCHW: Tensor) -> float:
    """Seconds of a forward and a backward pass, with gradients of all weights: process time on a CPU, elapsed time on a GPU."""
    clock = time.perf_counter if x_BCHW.device.type == "cuda" else time.process_time
    model.zero_grad()
    began = clock()
    model(x_BCHW).square().sum().backward()
    if x_BCHW.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def measure(shape: tuple[int, int, int], size: str, readout: str, rounds: int, device: torch.device) -> list[dict[str, object]]:
    """For each family: parameters without the head, features, GFLOP and ms an image."""
    torch.manual_seed(0)
    x_BCHW = torch.randn(BATCH, *shape, device=device)
    channels, height, width = shape
    models = {}
    for name in NAMES:
        made = build_classifier(
            name, channels=channels, height=height, width=width, classes=CLASSES, size=size, readout=readout
        )
        models[name] = made.to(device)
    gflop, seconds = {}, {name: [] for name in models}
    for name, model in models.items():
        with counter() as counted:
            pass_of(model, x_BCHW[:2])
        gflop[name] = counted.get_total_flops() / 2 / 1e9
    for round_ in range(rounds + 2):
        for name, model in models.items():
            took = pass_of(model, x_BCHW)
            if round_ >= 2:
                seconds[name].append(took)
    return [
        {
            "backbone": name, "size": size, "readout": readout, "shape": list(shape), "device": device.type,
            "parameters": sum(p.numel() for p in model[0].parameters()), "features": model[0].features,
            "gflop": round(gflop[name], 4), "ms": round(1000 * statistics.median(seconds[name]) / BATCH, 2),
        }
        for name, model in models.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--readout", choices=READOUTS, default="map", help="native, or map as in a stream")
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 64, 72), metavar=("C", "H", "W"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(tuple(options.shape), options.size, options.readout, options.rounds, torch.device(options.device))
    print(
        f"| {options.size}, {' x '.join(map(str, options.shape))} | parameters | features | GFLOP | ms |\n|---|---|---|---|---|"
    )
    for row in rows:
        print(f"| {row['backbone']} | {row['parameters']:,} | {row['features']} | {row['gflop']} | {row['ms']} |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
