"""The recipe of a gradient strategy: network and training, as plain values that a state stores and is checked against.

It imports no PyTorch, so that a command line can show or change a recipe at no cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dqmstream.errors import InputError
from dqmstream.learners.memory.selection import POLICIES
from dqmstream.learners.networks.moe.config import MAX_EXPERTS, ROUTER_NAMES
from dqmstream.learners.networks.registry import BACKBONES, check_network, ensemble_members
from dqmstream.lumisection import N_IETA, N_IPHI

SIZES = ("tiny", "small", "study")
"""Sizes of a published family, as `learners.networks.backbones.families` has them."""

READOUTS = ("tokens", "mean", "class")
"""What the head of a transformer reads, as `learners.networks.vit` has it."""

BACKBONE_READOUTS = ("tokens", "native")
"""What the head of a published family reads: all places of its last map, or what the family is published to classify by."""

_WEIGHT = (0, 1e12)
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "patch": (1, N_IPHI),
    "patch_shift": (-N_IPHI, N_IPHI),
    "dim": (1, 65_536),
    "depth": (1, 1024),
    "heads": (1, 1024),
    "mlp_ratio": (1e-3, 1e3),
    "moe_blocks": (0, 1024),
    "experts": (1, MAX_EXPERTS),
    **dict.fromkeys(("aux_weight", "z_weight", "bias_rate", "noise", "weight_decay"), _WEIGHT),
    **dict.fromkeys(("ewc_strength", "si_strength", "mas_strength", "lwf_strength", "der_strength"), _WEIGHT),
    "si_damping": (1e-12, 1e12),
    "rar_repeats": (1, 1e9),
    **dict.fromkeys(("steps", "batch", "fisher_samples"), (1, 1e9)),
    "micro_batch": (0, 1e9),
    "places": (1, 65_536),
    "products": (0, 65_536),
    "lr": (0, 1e38),
    **dict.fromkeys(("warmup", "ewc_decay", "dropout"), (0, 1)),
    "lwf_temperature": (1e-6, 1e6),
    "cnn_widths": (1, 65_536),
}
"""Smallest and largest value of each number, or of each number of a tuple; top_k lies between 1 and experts."""

REMOVED = {
    "augment": [],
    "augment_copies": 4,
    "ema": 0.0,
    "freeze_router": 0,
    "grow_experts": 0,
    "most_experts": 16,
    "patience": 0,
    "temperature": False,
}
"""Entries that recipes no longer have, and their defaults: states that were written with them at their defaults still open."""

ADDED = {"products": 0, "packed": False, "si_strength": 1.0, "si_damping": 1e-3, "mas_strength": 1.0, "rar_repeats": 4}
"""Entries that recipes of older versions lacked, and what those did."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Network and training of a gradient strategy. Raises InputError for values that cannot be used together.

    Parameters
    ----------
    model
        The network, by name (`learners.networks.registry`), or an ensemble such as `ensemble:vit+cnn+resnet`.
    patch, patch_shift
        Transformers: cells (ieta, iphi) of a token; by how many columns the patches begin before the map does.
    dim, depth, heads, mlp_ratio
        Transformers: width, number of blocks, attention heads, and hidden width over width of an MLP and of an expert. Of a
        depthvit `dim` is the width of one depth.
    readout
        Transformers: what the head reads, one of `READOUTS`. Published families: one of `BACKBONE_READOUTS`.
    moe_blocks
        moe_vit: the blocks with a Mixture of Experts. Numbers beyond the depth are ignored.
    experts, top_k, shared_expert, router, aux_weight, z_weight, bias_rate, places
        moe_vit: see `learners.networks.moe.config.MoEConfig`. A vit has an MLP of as many operations instead.
    linear_skip
        Whether a linear map from the residuals is added to the logits.
    products
        Transformers and linear: products of projections of what the head reads, for a second head
        (`learners.networks.products`). quadratic: those of its only head.
    steps, batch, micro_batch
        Training steps a run; lumisections a step; how many of these go through the network at once, 0 for all.
    bf16
        Whether training computes in bfloat16, on a GPU.
    lr, weight_decay, warmup, cosine
        AdamW: learning rate and weight decay; share of the steps in which the rate rises; whether it then falls as a cosine.
    noise
        Standard deviation of the Gaussian noise added to the residuals in training.
    memory
        How a method that keeps lumisections chooses them, one of `learners.memory.selection.POLICIES`.
    packed
        Whether it keeps lumisections of runs at 2 bits a channel, nearly eight times as many (`learners.gradient.packed`).
    ewc_strength, ewc_decay, fisher_samples
        Elastic weight consolidation (`learners.gradient.ewc`).
    si_strength, si_damping
        Synaptic intelligence (`learners.gradient.si`).
    mas_strength
        Memory aware synapses (`learners.gradient.mas`), which looks at `fisher_samples` lumisections too.
    rar_repeats
        Steps on each batch of the new run in repeated augmented rehearsal (`learners.gradient.rar`).
    lwf_strength, lwf_temperature
        Learning without forgetting (`learners.gradient.lwf`).
    der_strength
        DER++ (`learners.gradient.der`).
    cnn_widths
        cnn: features of each convolution.
    size, dropout, weights
        Published families: one of `SIZES`; dropout of the features; a safetensors file of initial weights.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)

    model: str = "moe_vit"
    patch: tuple[int, int] = (8, 9)
    patch_shift: int = 0
    dim: int = 64
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 2.0
    readout: str = "tokens"
    moe_blocks: tuple[int, ...] = (1, 3, 5, 7, 9, 11)
    experts: int = 8
    top_k: int = 2
    shared_expert: bool = False
    router: str = "top_k"
    aux_weight: float = 0.01
    z_weight: float = 1e-3
    bias_rate: float = 1e-3
    places: int = 8
    linear_skip: bool = True
    products: int = 0
    steps: int = 100
    batch: int = 64
    micro_batch: int = 0
    bf16: bool = False
    lr: float = 1e-3
    weight_decay: float = 1.0
    warmup: float = 0.1
    cosine: bool = True
    noise: float = 1.5
    memory: str = "balanced"
    packed: bool = False
    ewc_strength: float = 1000.0
    ewc_decay: float = 0.9
    fisher_samples: int = 64
    si_strength: float = 1.0
    si_damping: float = 1e-3
    mas_strength: float = 1.0
    rar_repeats: int = 4
    lwf_strength: float = 1.0
    lwf_temperature: float = 2.0
    der_strength: float = 0.5
    cnn_widths: tuple[int, ...] = (16, 32)
    size: str = "tiny"
    dropout: float = 0.0
    weights: str = ""

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else (given,):
                if not least <= value <= most:
                    raise InputError(f"{name} {value} is not in {least:.15g}..{most:.15g}")
        self._check_names()
        for refusal in self._refusals():
            raise InputError(refusal)

    def _check_names(self) -> None:
        for model in self.networks:
            check_network(model)
        for what, value, names in (
            ("router", self.router, ROUTER_NAMES),
            *(("readout", self.readout, BACKBONE_READOUTS if model in BACKBONES else READOUTS) for model in self.networks),
            ("size", self.size, SIZES),
            ("memory", self.memory, POLICIES),
        ):
            if value not in names:
                raise InputError(f"there is no {what} {value!r}; choose one of {', '.join(names)}")

    def _refusals(self) -> Iterator[str]:
        """Reasons why this recipe cannot be used."""
        if "study_vit" in ensemble_members(self.model):
            yield "study_vit learns from scaled counts and the others from residuals: it cannot be in an ensemble"
        if "depthvit" in self.networks and self.readout == "class":
            yield "depthvit has no class token: choose the readout tokens or mean"
        if "quadratic" in self.networks and not self.products:
            yield "quadratic reads products alone: give products, as in products=48"
        if self.dropout == 1:
            yield "dropout is below 1"
        if not self.cnn_widths:
            yield "cnn_widths names no convolution: give the features of one at least"
        if self.weights and (len(self.networks) > 1 or self.model not in BACKBONES):
            yield f"weights are of one of {', '.join(BACKBONES)}, and {self.model} is none: leave them out"
        if N_IETA % self.patch[0] or N_IPHI % self.patch[1]:
            yield f"patch {self.patch} does not divide a map of {N_IETA} x {N_IPHI} cells"
        if self.dim % self.heads:
            yield f"dim {self.dim} cannot be shared among {self.heads} heads"
        if not 1 <= self.top_k <= self.experts:
            yield f"top_k {self.top_k} is not in 1..{self.experts}, the number of experts"

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks: the model's, or those of an ensemble's members."""
        return ensemble_members(self.model) or (self.model,)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from values as JSON or TOML has them; entries left out have their default.

        Raises InputError for an unknown entry and for a value that cannot be used.
        """
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(f"a recipe has no {', '.join(unknown)}; it has {', '.join(field.name for field in fields(cls))}")
        try:
            return TypeAdapter(cls).validate_python(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"recipe, {where}: {first['msg']} (got {first['input']!r})") from error

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """This recipe with other values for some entries. Raises InputError as `from_json` does."""
        return self.from_json(self.to_json() | dict(changes))

    def changes_from(self, other: Recipe) -> dict[str, Any]:
        """The changes by which `other.changed` gives this recipe."""
        before = other.to_json()
        return {name: value for name, value in self.to_json().items() if value != before[name]}


CNN_RECIPE = Recipe(model="cnn", linear_skip=False)
"""Of the strategy `cnn`: replay with a small convolutional network."""

LABEL_RECIPE = Recipe(model="pooled", linear_skip=False, lr=3e-3, weight_decay=1e-2, noise=0.0, ewc_strength=100.0)
"""Of the task of labels (`learners.labels`): good and faulty lumisections by a small network whose weights all places share."""

STUDY_RECIPE = Recipe(
    model="study_vit",
    dim=768,
    depth=12,
    heads=12,
    mlp_ratio=4.0,
    linear_skip=False,
    batch=250,
    micro_batch=25,
    lr=1e-4,
    weight_decay=0.0,
    warmup=0.0,
    cosine=False,
    noise=0.0,
)
"""Of the second study: ViT-B/16 on resized maps of scaled counts, 85 million weights. It needs a GPU."""

REDRAWN_RECIPE = Recipe(noise=0.0, patch=(32, 4), patch_shift=2)
"""Of strategies that train on redrawn lumisections. Each is seen once, so no noise is added; a patch is a readout box."""

QUADRATIC_RECIPE = Recipe(model="quadratic", products=48, packed=True, noise=1.0, lr=3e-3, steps=64)
"""Of a network beside closed forms, taught by real lumisections (docs/decisions/2026-11-29-network-outside-the-law.md)."""
