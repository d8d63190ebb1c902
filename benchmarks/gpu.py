"""The gradient strategies on a GPU: precision, training speed, where the time goes, and the cost of a run.

    python -m benchmarks.gpu --device cuda [--only PART ...]

Prints one JSON object, the last line of stdout; progress goes to stderr. Its parts:

* forward: largest difference of a network's logits from those on a CPU, over the largest logit.
* steps: images/s of training steps: by the template, with and without recording (a training of 100 steps, 40 of the large
  network, with all that belongs to it); by an eager loop, and by one with a compiled model (and the seconds of compiling); by a
  whole step that is recorded as a CUDA graph and replayed with nothing in between, the ceiling.
* experts: milliseconds of the experts' forward and backward pass, by each computation, eager and recorded where possible.
* profile: of the template's steps, kernels and copies a step, share of the time in which the GPU computes, and the five most
  expensive operations.
* scores: images/s of a strategy's `scores`, and of its network alone.
* runs: seconds in which the default strategy learns one more run, on this device and on the CPU.

`--tiny` runs all parts at small sizes, also on a CPU, as a test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dqmstream.experiments.simulator import stream
from dqmstream.experiments.simulator.learner_input import as_run_data
from dqmstream.learners.gradient.naive import Naive
from dqmstream.learners.gradient.trainer import Lesson, RunTemplate, decay_groups
from dqmstream.learners.networks.base import Network
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.moe.experts import Experts
from dqmstream.learners.networks.recipe import CNN_RECIPE, REDRAWN_RECIPE, Recipe
from dqmstream.learners.registry import DEFAULT, make_strategy
from dqmstream.learners.splits import Split
from dqmstream.learners.threads import set_threads
from dqmstream.lumisection import Geometry, he_depth1_mask

CLASSES, ROWS = 10, 400
SEED = 0
LIVE = he_depth1_mask()[None]
OWN = REDRAWN_RECIPE
LARGE = replace(OWN, dim=192, depth=6, heads=6)
SIZES = {"default": OWN, "large": LARGE}
BATCHES = (64, 256, 1024)
COMPILED = (("default", "moe_vit", 64, False), ("default", "vit", 64, False), ("large", "moe_vit", 1024, True))
"""Size, model, batch and bf16 of the compiled steps: few, since compiling takes as long as hundreds of trainings."""


def network(recipe: Recipe, device: torch.device) -> Network:
    torch.manual_seed(SEED)
    model = build(LIVE, recipe)
    model.grow(CLASSES)
    for head in model.heads():
        nn.init.normal_(head.weight, std=0.1)
    return model.to(device)


def lesson(recipe: Recipe, steps: int, device: torch.device) -> Lesson:
    rng = np.random.default_rng(SEED)
    rows = {i: rng.standard_normal((ROWS, int(LIVE.sum())), dtype=np.float32) for i in range(CLASSES)}
    return Lesson(rows, recipe, steps, device, torch.Generator().manual_seed(SEED))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median seconds of one call; each call ends before the next begins."""
    work()
    found = []
    for _ in range(repeats):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def forward(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Differences for 256 random lumisections; float32 also with TF32 in matrix products, which is off by default."""
    x = torch.randn(256, int(LIVE.sum()), generator=torch.Generator().manual_seed(SEED))
    found: dict[str, Any] = {
        "tf32_by_default": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
    }
    for name, recipe in {"moe_vit": OWN, "vit": replace(OWN, model="vit"), "cnn": CNN_RECIPE, "large moe_vit": LARGE}.items():
        with torch.no_grad():
            true = network(recipe, torch.device("cpu")).double().eval()(x.double())
            model = network(recipe, device).eval()

            def apart(model: Network = model, true: Tensor = true) -> float:
                return float((model(x.to(device)).double().cpu() - true).abs().max() / true.abs().max())

            on_cpu = network(recipe, torch.device("cpu")).eval()(x).double()
            found[name] = {"cpu_fp32_from_fp64": float((on_cpu - true).abs().max() / true.abs().max()), "fp32": apart()}
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                found[name]["fp32_without_tf32"] = apart()
            torch.backends.cuda.matmul.allow_tf32 = True
            found[name]["tf32"] = apart()
            torch.backends.cuda.matmul.allow_tf32 = False
            with torch.autocast(device.type, torch.bfloat16):
                found[name]["bf16"] = apart()
        print(name, found[name], file=sys.stderr, flush=True)
    return found


class BareStep:
    """A training step without the template, always on the same batch."""

    def __init__(self, recipe: Recipe, device: torch.device, fused: bool = False, compiled: bool = False) -> None:
        self.recipe, self.device = recipe, device
        self.model = network(recipe, device).train()
        self.called: Callable[[Tensor], Tensor] = torch.compile(self.model) if compiled else self.model
        on_gpu = fused and device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            decay_groups(self.model, recipe.weight_decay), lr=recipe.lr, fused=on_gpu or None, capturable=on_gpu
        )
        self.residuals_BL, self.label_B = next(lesson(recipe, 1, device).batches())

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            logits_BC = self.called(self.residuals_BL)
        loss = nn.functional.cross_entropy(logits_BC.float(), self.label_B) + self.model.auxiliary_loss()
        loss.backward()
        self.optimizer.step()
        self.model.after_step()
        return loss.detach()


def recorded(step: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A step recorded as a CUDA graph, after three unrecorded calls."""
    stream_ = torch.cuda.Stream()
    stream_.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream_):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream_)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream_):
        step()
    return graph


def taught(recipe: Recipe, steps: int, device: torch.device, capture: bool, repeats: int = 3) -> tuple[float, bool]:
    """Median seconds of a training, and whether its steps were recorded."""
    model, drawn = network(recipe, device), lesson(recipe, steps, device)
    templates = []

    def teach() -> None:
        template = RunTemplate(model=model, recipe=recipe, device=device, plugin=Naive(recipe, 0, 0), capture=capture)
        template.teach(drawn)
        templates[:] = [template]

    return seconds(teach, device, repeats), templates[0].captured


def steps_of(size: str, model: str, batch: int, bf16: bool, device: torch.device, tiny: bool) -> dict[str, Any]:
    recipe = replace(SIZES[size], model=model, batch=batch, bf16=bf16)
    steps, few, repeats = (5, 2, 1) if tiny else (100, 30, 3) if size == "default" else (40, 10, 1)
    images: dict[str, float] = {}

    def times(name: str, work: Callable[[], object], calls: int) -> None:
        def all_calls() -> None:
            for _ in range(calls):
                work()

        images[name] = calls * batch / seconds(all_calls, device, 3)

    template_s, captured = taught(recipe, steps, device, True, repeats)
    images["template"] = steps * batch / template_s
    fewer = min(steps, 40)
    images["template, not recorded"] = fewer * batch / taught(recipe, fewer, device, False, 1)[0]
    times("eager", BareStep(recipe, device), few)
    times("eager, fused AdamW", BareStep(recipe, device, fused=True), few)
    compile_s = None
    if device.type == "cuda":
        step = BareStep(recipe, device, fused=True)
        for experts in (module for module in step.model.modules() if isinstance(module, Experts)):
            # In float32 a large layer is fastest in a loop, which waits for the host: no launch holds up the next best.
            experts.computation = "" if captured else "dense"
        began = time.perf_counter()
        graph = recorded(step)
        wait(device)
        record_s = time.perf_counter() - began
        times("ceiling", graph.replay, few)
        del graph, step
        if (size, model, batch, bf16) in COMPILED:
            step = BareStep(recipe, device, fused=True, compiled=True)
            began = time.perf_counter()
            for _ in range(3):
                step()
            wait(device)
            compile_s = time.perf_counter() - began
            times("compiled", step, few)
            del step
            torch._dynamo.reset()
    found: dict[str, Any] = {
        "size": size, "model": model, "batch": batch, "bf16": bf16, "captured": captured,
        "teach_steps": steps, "teach_s": round(template_s, 4),
        "images_per_s": {name: round(rate) for name, rate in images.items()},
    }  # fmt: skip
    if "ceiling" in images:
        found["record_s"] = round(record_s, 4)
        found["share_of_ceiling"] = {
            name: round(rate / images["ceiling"], 3) for name, rate in images.items() if name != "ceiling"
        }
    if compile_s:
        found["compile_s"] = round(compile_s, 1)
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def steps(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    found = []
    for size, model in (("default", "moe_vit"), ("default", "vit"), ("large", "moe_vit"), ("large", "vit")):
        for batch in (16,) if tiny else BATCHES:
            for bf16 in (False, True):
                if not (tiny and size == "large"):
                    found.append(steps_of(size, model, batch, bf16, device, tiny))
    return found


def experts(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    """Each computation of eight experts, two a token, by width, number of tokens and precision."""
    found = []
    for width, hidden in ((64, 128), (192, 384), (384, 1536)):
        for tokens in (256,) if tiny else (1024, 4096, 16384, 65536):
            for bf16 in (False, True):
                torch.manual_seed(SEED)
                layer = Experts(8, width, hidden, device=device)
                x_TD = torch.randn(tokens, width, device=device, requires_grad=True)
                probability_TE = torch.randn(tokens, 8, device=device).softmax(dim=1)
                weight_TK, expert_TK = probability_TE.topk(2, dim=1)
                gradient_TD = torch.randn_like(x_TD)

                def step(
                    layer: Experts = layer, x: Tensor = x_TD, weight: Tensor = weight_TK, expert: Tensor = expert_TK,
                    gradient: Tensor = gradient_TD, bf16: bool = bf16,
                ) -> None:  # fmt: skip
                    layer.zero_grad()
                    x.grad = None
                    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                        y = layer(x, weight, expert)
                    y.backward(gradient.to(y.dtype))

                eager, replayed = {}, {}
                for computation in ("loop", "grouped", "dense"):
                    if computation == "dense" and 4 * 8 * tokens * hidden * 6 > 40e9:
                        continue
                    layer.computation = computation
                    eager[computation] = round(1000 * seconds(step, device), 4)
                    if device.type == "cuda" and (computation == "dense" or (computation == "grouped" and bf16)):
                        replayed[computation] = round(1000 * seconds(recorded(step).replay, device), 4)
                layer.computation = ""
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    chosen = layer.fastest(x_TD)
                found.append(
                    {"width": width, "hidden": hidden, "tokens": tokens, "bf16": bf16,
                     "products": tokens * layer.up_EHD.numel(), "eager_ms": eager, "recorded_ms": replayed, "chosen": chosen}
                )  # fmt: skip
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def profile(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    found = []
    for size, batch, bf16, capture in (
        ("default", 64, False, False), ("default", 64, False, True), ("default", 1024, False, True),
        ("large", 256, True, False), ("large", 256, True, True),
    ):  # fmt: skip
        if tiny and size == "large":
            continue
        recipe, number = replace(SIZES[size], batch=batch, bf16=bf16), 5 if tiny else 40
        step_s = taught(recipe, number, device, capture)[0] / number
        model, drawn = network(recipe, device), lesson(recipe, number, device)
        template = RunTemplate(model=model, recipe=recipe, device=device, plugin=Naive(recipe, 0, 0), capture=capture)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profiler(activities=activities) as seen:
            template.teach(drawn)
            wait(device)
        work = [event for event in seen.events() if event.device_type.name == "CUDA" and not event.is_user_annotation]
        kernels = [event for event in work if not event.name.startswith(("Memcpy", "Memset"))]
        by_name: dict[str, float] = {}
        for event in kernels:
            by_name[event.name] = by_name.get(event.name, 0.0) + event.time_range.elapsed_us()
        busy_us = sum(event.time_range.elapsed_us() for event in work)
        operations: dict[str, float] = {}
        for average in seen.key_averages():
            if average.device_type.name == "CPU" and average.self_device_time_total:
                operations[average.key] = average.self_device_time_total
        found.append({
            "size": size, "batch": batch, "bf16": bf16, "recorded": template.captured, "step_ms": round(1000 * step_s, 3),
            "gpu_ms_a_step": round(busy_us / number / 1000, 3), "gpu_busy_share": round(busy_us / number / 1e6 / step_s, 3),
            "kernels_a_step": round(len(kernels) / number, 1),
            "copies_a_step": {kind: count(work, f"Memcpy {kind}", number) for kind in ("HtoD", "DtoH", "DtoD")},
            "dearest_operations_us_a_step": dearest(operations, number), "dearest_kernels_us_a_step": dearest(by_name, number),
        })  # fmt: skip
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found


def count(events: list[Any], name: str, steps: int) -> float:
    return round(sum(event.name.startswith(name) for event in events) / steps, 2)


def dearest(us: dict[str, float], steps: int) -> dict[str, float]:
    """The five that take longest, with names cut to 70 letters."""
    return {name[:70]: round(us[name] / steps, 1) for name in sorted(us, key=lambda name: -us[name])[:5]}


def scores(device: torch.device, tiny: bool) -> dict[str, Any]:
    runs = [as_run_data(run, Split()) for run in stream("small", seed=SEED, runs=2, lumisections=200 if tiny else 6800)]
    found: dict[str, Any] = {}
    for name, own in {"replay": Recipe(), DEFAULT: OWN}.items():
        recipe = replace(own, steps=5)
        strategy: Any = make_strategy(name, geometry=Geometry(1), seed=SEED, recipe=recipe, device=str(device))
        for i, run in enumerate(runs):
            strategy.learn(i, run, lambda past: runs[past])
        maps = runs[1].maps
        counts = maps.counts[:, strategy.reference.live]
        inputs = torch.from_numpy(strategy.network.inputs(strategy.reference, counts)).to(device)

        def alone(model: Network = strategy.network, rows: Tensor = inputs) -> None:
            with torch.inference_mode():
                for part in rows.split(256):
                    model(part)

        found[name] = {
            "scores": round(len(maps) / seconds(lambda s=strategy, m=maps: s.scores(m), device, 3)),
            "network_scores": round(len(maps) / seconds(lambda s=strategy, c=counts: s.network_scores(c), device, 3)),
            "residuals": round(
                len(maps) / seconds(lambda s=strategy, c=counts: s.network.inputs(s.reference, c), torch.device("cpu"), 3)
            ),
            "network": round(len(maps) / seconds(alone, device, 3)),
        }
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def runs(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Median wall seconds of runs 3 to the last of `small`, 200 lumisections each, with one thread of the CPU."""
    drawn = [as_run_data(run, Split()) for run in stream("small", seed=SEED, runs=3 if tiny else 8, lumisections=200)]
    found: dict[str, Any] = {}
    for on in dict.fromkeys((str(device), "cpu")):
        recipe = replace(OWN, steps=2) if tiny else OWN
        strategy = make_strategy(DEFAULT, geometry=Geometry(1), seed=SEED, recipe=recipe, device=on)
        took = []
        for i, run in enumerate(drawn):
            wait(device)
            began = time.perf_counter()
            strategy.learn(i, run, lambda past: drawn[past])
            wait(device)
            took.append(time.perf_counter() - began)
        found[f"default, {on}"] = {"learn_s": statistics.median(took[2:]), "first_s": took[:3]}
    return found


PARTS: dict[str, Callable[[torch.device, bool], Any]] = {
    "forward": forward, "experts": experts, "steps": steps, "profile": profile, "scores": scores, "runs": runs,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cpu")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small sizes, as a test")
    asked = parser.parse_args()
    set_threads(1)
    warnings.filterwarnings("ignore", message=".*capturable=True.*")
    device = torch.device(asked.device)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__, "cuda": torch.version.cuda, "seed": SEED, "classes": CLASSES,
    }  # fmt: skip
    for part in asked.only:
        found[part] = PARTS[part](device, asked.tiny)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
