"""The numbers that make a deep learner: plain values, written into every checkpoint and compared when it is read.

It imports no torch, so that a command line can show or change a recipe at no cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dqmstream.errors import InputError
from dqmstream.learners.gradient.augmentation import AUGMENTATIONS, REFUSED
from dqmstream.learners.memory.selection import POLICIES
from dqmstream.lumisection import N_IETA, N_IPHI

BACKBONES = ("deit", "swin", "pvt_v2", "cswin", "resnet", "efficientnet", "convnext", "hybrid")
"""Published families that a recipe may ask for, those of `dqmstream.learners.networks.backbones` that no network of ours is
named as."""

SIZES = ("tiny", "small", "study")
"""Sizes of a backbone, as `dqmstream.learners.networks.backbones` has them."""

MODELS = ("moe_vit", "vit", "cnn", "linear", "study_vit", *BACKBONES)
"""Networks that a recipe may ask for, as `dqmstream.learners.networks.registry` makes them, and of which an ensemble may be."""

ROUTERS = ("top_k", "balanced", "soft")
"""Routers of a Mixture of Experts, as `dqmstream.learners.networks.moe.routers` makes them."""

MAX_EXPERTS = 256
"""Of one mixture, so that an expert's number is a byte."""

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
    "most_experts": (1, MAX_EXPERTS),
    **dict.fromkeys(("aux_weight", "z_weight", "bias_rate", "noise", "weight_decay"), _WEIGHT),
    **dict.fromkeys(("ewc_strength", "lwf_strength", "der_strength"), _WEIGHT),
    **dict.fromkeys(("steps", "batch", "fisher_samples"), (1, 1e9)),
    **dict.fromkeys(("micro_batch", "freeze_router", "grow_experts"), (0, 1e9)),
    **dict.fromkeys(("places", "augment_copies"), (1, 65_536)),
    "lr": (0, 1e38),
    **dict.fromkeys(("warmup", "ewc_decay", "dropout"), (0, 1)),
    "lwf_temperature": (1e-6, 1e6),
    "cnn_widths": (1, 65_536),
}
"""Least and most of every number, or of each of several; top_k is between 1 and experts."""

READOUTS = ("tokens", "mean", "class")
"""What a transformer's head reads, as `dqmstream.learners.networks.vit` has it."""

BACKBONE_READOUTS = ("tokens", "native")
"""What the head reads of a backbone: its last map, all places side by side, or what it is published to classify by."""


ENSEMBLE = "ensemble:"


def ensemble_members(model: str) -> tuple[str, ...]:
    """Names of the members of `ensemble:vit+cnn`; none if it is no ensemble. InputError for a member without a name."""
    if not model.startswith(ENSEMBLE):
        return ()
    members = tuple(model.removeprefix(ENSEMBLE).split("+"))
    if not all(members):
        raise InputError(f"{model!r} has a member without a name; write it as ensemble:vit+cnn+resnet")
    return members


@dataclass(frozen=True, slots=True)
class Recipe:
    """Model and training of a gradient strategy.

    Measured with replay on 6 runs of `small`: what holds a model back is that it learns its few lumisections by heart.
    Noise of 1.5 deviations on the residuals, with a weight decay of 1, raised the accuracy from .75 to .84 on the three
    seeds it was chosen on, and from .67 to .72 on two others; a second pair of blocks took twice the time and added nothing.

    model: the network, one of `MODELS`, or an ensemble of some, `ensemble:vit+cnn+resnet`. steps, batch: training steps a run,
    lumisections a step; micro_batch: how many of them go through the network at once, 0 for all. lr, weight_decay: of AdamW.
    warmup: share of the steps in which the rate rises; cosine: whether it falls afterwards. noise: deviation of the noise added
    to residuals in training. linear_skip: whether the residuals also reach the logits by a linear map. bf16: whether training
    computes in bfloat16 where there is a GPU.
    augment: redrawings of the counts beside the counts themselves (`learners.gradient.augmentation`), augment_copies of each.
    memory: of a
    method that keeps lumisections, the policy by which it chooses them (`learners.memory.selection`).

    Of our transformers: patch, cells (ieta, iphi) of a token, patch_shift, by how many columns the patches begin before the map
    does; dim, depth, heads; mlp_ratio, hidden width over dim of an MLP and of each expert; readout, one of `READOUTS`.
    Of a moe_vit: moe_blocks, which of its blocks hold a Mixture of Experts (those beyond its depth say nothing); experts,
    top_k; shared_expert, whether one more takes every token; router, one of `ROUTERS`; aux_weight, z_weight of the two losses
    of top_k; bias_rate of balanced; places of each expert of soft; freeze_router, the last experience at which routers learn, 0
    for all; grow_experts, trainings after which each mixture has one expert more, 0 for never, up to most_experts
    (`learners.networks.moe.growth`). A vit has an MLP of the same operations in the place of each mixture. Of a cnn:
    cnn_widths, features of
    each convolution. Of `BACKBONES`: size, of `SIZES`; readout, of `BACKBONE_READOUTS`; dropout, of what the head reads;
    weights, a safetensors file with which a new network begins. Of elastic weight consolidation: ewc_strength, ewc_decay,
    fisher_samples.
    Of what a training settles on (`learners.gradient.weight_choice`): ema, decay of averaged weights a step; patience, looks of
    ten steps without a better held-out loss after which it stops; temperature, whether scores have one. All are off: on
    `small` (6 runs, seed 0, replay) none helped, and the memory they hold out costs what exemplars would have brought.
    So is growth, which takes as long and brought nothing: replay, 6 runs of 400, steps=40, grow_experts=2 against 0 had an
    accuracy of .68 against .72 on `small` and .22 against .23 on `structured` (seed 0), 1.00 for both and .17 for .16 (seed 1).
    lwf_strength, lwf_temperature: of learning without forgetting's distillation; der_strength: of the stored logits in der.
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
    freeze_router: int = 0
    grow_experts: int = 0
    most_experts: int = 16
    linear_skip: bool = True
    steps: int = 100
    batch: int = 64
    micro_batch: int = 0
    bf16: bool = False
    lr: float = 1e-3
    weight_decay: float = 1.0
    warmup: float = 0.1
    cosine: bool = True
    noise: float = 1.5
    augment: tuple[str, ...] = ()
    augment_copies: int = 4
    memory: str = "balanced"
    ewc_strength: float = 1000.0
    ewc_decay: float = 0.9
    fisher_samples: int = 64
    ema: float = 0.0
    patience: int = 0
    temperature: bool = False
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
        for what, value, names in (
            *(("network", model, MODELS) for model in self.networks),
            ("router", self.router, ROUTERS),
            *(("readout", self.readout, BACKBONE_READOUTS if model in BACKBONES else READOUTS) for model in self.networks),
            ("size", self.size, SIZES),
            ("memory", self.memory, POLICIES),
        ):
            if value not in names:
                raise InputError(f"there is no {what} {value!r}; choose one of {', '.join(names)}")
        if "study_vit" in ensemble_members(self.model):
            raise InputError("study_vit learns from scaled counts and the others from residuals: it cannot be in an ensemble")
        if self.dropout == 1:
            raise InputError("dropout is below 1")
        if not (0 <= self.ema < 1 and 0 <= self.patience <= 10**9):
            raise InputError(f"ema is in 0..1 and below 1, and patience in 0..{10**9}: not {self.ema:g} and {self.patience}")
        if not self.cnn_widths:
            raise InputError("cnn_widths names no convolution: give the features of one at least")
        if self.weights and (len(self.networks) > 1 or self.model not in BACKBONES):
            raise InputError(f"weights are of one of {', '.join(BACKBONES)}, and {self.model} is none: leave them out")
        for name in self.augment:
            if name not in AUGMENTATIONS:
                why = f": {REFUSED[name]}" if name in REFUSED else ""
                raise InputError(f"there is no augmentation {name!r}{why}; choose among {', '.join(AUGMENTATIONS)}")
        if N_IETA % self.patch[0] or N_IPHI % self.patch[1]:
            raise InputError(f"patch {self.patch} does not divide a map of {N_IETA} x {N_IPHI} cells")
        if self.dim % self.heads:
            raise InputError(f"dim {self.dim} cannot be shared among {self.heads} heads")
        if not 1 <= self.top_k <= self.experts:
            raise InputError(f"top_k {self.top_k} is not in 1..{self.experts}, the number of experts")
        if self.grow_experts and self.experts > self.most_experts:
            raise InputError(f"most_experts {self.most_experts} is not in {self.experts}..{MAX_EXPERTS}: set it, or experts")
        if self.grow_experts and self.router == "soft":
            raise InputError(
                "router soft computes the places of every expert for every lumisection, so each expert more would make all "
                "steps dearer: with it experts do not grow; choose router top_k or balanced, or leave grow_experts at 0"
            )

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks: the model's, or those of its members."""
        return ensemble_members(self.model) or (self.model,)

    def experts_at(self, classes: int) -> int:
        """Experts of a mixture when so many runs are learnt; the first training has two."""
        if not self.grow_experts:
            return self.experts
        return min(self.experts + max(classes - 2, 0) // self.grow_experts, self.most_experts)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """What `to_json` gave; entries left out keep their default. InputError for an unknown entry or a value of no use."""
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
        """The same with other values for some entries, as JSON or TOML has them. Raises InputError as `from_json` does."""
        return self.from_json(self.to_json() | dict(changes))

    def changes_from(self, other: Recipe) -> dict[str, Any]:
        """What `other.changed` needs to become this one."""
        before = other.to_json()
        return {name: value for name, value in self.to_json().items() if value != before[name]}


CNN = Recipe(model="cnn", linear_skip=False)
"""Of the strategy `cnn`: replay's memory and training steps, on a network of convolutions."""

STUDY = Recipe(
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
"""Of the second study (field notes 6): ViT-B/16 on resized maps of scaled counts, 85 million weights. It needs a GPU."""

REDRAWN = Recipe(noise=0.0, patch=(32, 4), patch_shift=2)
"""Of strategies that are taught by redrawn lumisections, which are seen once: noise only blurs them, and there are enough to
learn by what goes on in a readout box, which a patch holds whole. On 12 runs of `structured` (seed 0, steps=32) patches of
8 x 9 cells gave an accuracy of .35, these .57; with noise=1 .08."""
