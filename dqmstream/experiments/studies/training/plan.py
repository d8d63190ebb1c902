"""The settings of an offline training: plain values that identify a result and need no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dqmstream.errors import InputError

Augmentation = Literal["flip", "rotate", "shift"]
"""An augmentation of images in `studies.training.augmentation`."""

SIZES = ("tiny", "study")

Pixels = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=1, le=65_536)]


class TrainingPlan(BaseModel):
    """Network, preprocessing and training.

    model: convnet, moe_vit, a name in `learners.networks.backbones`, or "ensemble:" with several of those joined by "+". size:
    of a backbone: "tiny", "small" (the smallest published size, on images as they are) or "study" (the published size at 224 x
    224, for which pretrained weights exist). normalise: "maximum" divides each channel by its largest magnitude; "unit" scales
    all values to 0-1 by the smallest and largest of all channels; "standard" subtracts the mean of each channel and divides by
    its standard deviation; "none" changes nothing. pad: height and width after zero padding at the far edges. resize: side of
    the square after bilinear resizing, 0 for none. loss: "softmax" has a logit per class and cross-entropy, "sigmoid" one logit
    and binary cross-entropy (two classes). epsilon: of Adam. batch: images per step. micro_batch: images per forward pass, 0
    for all; batch norm takes its statistics over them. patience: epochs without a better validation AUC after which a training
    ends, 0 for never; in any case the weights of the best epoch are evaluated. dropout: in the head of the network, and where
    its family has it. augment: augmentations, applied one after another. bf16: whether training on a GPU uses bfloat16.

    For a convnet: convolutions, features of each 3 x 3 convolution with ReLU; pooling, whether a 2 x 2 maximum follows each;
    hidden, widths of the fully connected layers before the last; initial, "torch" or "glorot" (that of Keras).
    For a moe_vit: moe, changes to `learners.networks.recipe.Recipe`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    size: Literal["tiny", "small", "study"] = "small"
    normalise: Literal["maximum", "unit", "standard", "none"] = "maximum"
    pad: tuple[Pixels, Pixels] | None = None
    resize: int = Field(0, ge=0, le=4096)
    loss: Literal["softmax", "sigmoid"] = "softmax"
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = Field(1e-3, gt=0, le=1e38)
    weight_decay: float = Field(0.0, ge=0, le=1e12)
    epsilon: float = Field(1e-8, gt=0, le=1)
    batch: int = Field(32, ge=2, le=10**9)
    micro_batch: int = Field(0, ge=0, le=10**9)
    epochs: int = Field(80, ge=1, le=10**9)
    patience: int = Field(0, ge=0, le=10**9)
    dropout: float = Field(0.0, ge=0, lt=1)
    augment: tuple[Augmentation, ...] = ()
    bf16: bool = True
    convolutions: tuple[Width, ...] = (16, 32)
    pooling: bool = False
    hidden: tuple[Width, ...] = (64,)
    initial: Literal["torch", "glorot"] = "torch"
    moe: dict[str, Any] = Field(default_factory=dict)

    def changed(self, changes: Mapping[str, Any]) -> TrainingPlan:
        """The plan with some entries changed. Raises InputError for an entry that does not exist or makes no sense."""
        return plan_of(self.model_dump() | dict(changes))

    def tiny(self) -> TrainingPlan:
        """The plan for a quick look: a tiny network on images as they are; a convnet with a quarter of the widths."""
        quarter = {name: tuple(max(4, width // 4) for width in getattr(self, name)) for name in ("convolutions", "hidden")}
        moe = {**self.moe, "dim": 64, "depth": 2, "heads": 4} if self.model == "moe_vit" else {}
        return self.changed({"size": "tiny", "pad": None, "resize": 0, "micro_batch": 0, "moe": moe, **quarter})


def plan_of(values: Mapping[str, Any]) -> TrainingPlan:
    """A plan from plain values. Raises InputError, which names the entry."""
    try:
        return TrainingPlan.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"plan, {where}: {first['msg']} (got {first['input']!r}); the entries are {', '.join(TrainingPlan.model_fields)}"
        ) from error
