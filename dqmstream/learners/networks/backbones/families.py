"""Published families in three sizes, as trunks for maps of any height and width.

tiny: a few ms an image of 64 x 72 on one CPU thread. small: the smallest published sizes, on the map as it is. study: published
sizes on 224 x 224 pixels, to which the map is resized, so that published weights fit; the cnn takes the map as it is.

Transformers cut the map into about 8 x 8 patches, Swin and CSwin into about 16 x 16 places; a map that these do not divide is
padded (`learners.networks.backbones.backbone.Canvas`). Tiny and small sizes are for short trainings: residual branches are not
initialized near zero as published, and there is no stochastic depth. Tiny sizes have group norm in place of batch norm, so that
scores do not depend on running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import ceil, log2
from typing import Any

import timm
from timm.layers import GroupNorm, GroupNormAct
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import Tensor, nn

from dqmstream.learners.networks.backbones.backbone import Places, Trunk
from dqmstream.learners.networks.backbones.convolutional import ConvolutionalNetwork
from dqmstream.learners.networks.backbones.cswin import CSwin

PIXELS = (224, 224)
PATCHES, PLACES = 8, 16
"""Patches of a transformer and places of Swin and CSwin along a side, tiny and small."""


@dataclass(frozen=True, slots=True)
class InputMaps:
    """The maps that a trunk is built for. readout: native or map."""

    channels: int
    height: int
    width: int
    readout: str


Build = Callable[[InputMaps], Trunk]


@dataclass(frozen=True, slots=True)
class InputSize:
    """Pixels that a trunk takes, and the arguments of timm that set them."""

    pixels: tuple[int, int]
    arguments: Mapping[str, Any] = field(default_factory=dict)


def as_it_is(maps: InputMaps) -> InputSize:
    """The map's own pixels, for convolutional networks."""
    return InputSize((maps.height, maps.width))


def in_patches(maps: InputMaps) -> InputSize:
    """Patches of which 8 x 8 cover the map."""
    high, wide = ceil(maps.height / PATCHES), ceil(maps.width / PATCHES)
    pixels = (high * ceil(maps.height / high), wide * ceil(maps.width / wide))
    return InputSize(pixels, {"img_size": pixels, "patch_size": (high, wide)})


def in_windows(maps: InputMaps) -> InputSize:
    """About 16 x 16 places in 2 x 2 windows; the windows of later stages cover their maps."""
    patch = _places(maps)
    rows, columns = (2 * ceil(side / (2 * p)) for side, p in zip((maps.height, maps.width), patch, strict=True))
    pixels = (rows * patch[0], columns * patch[1])
    return InputSize(pixels, {"img_size": pixels, "patch_size": patch, "window_size": (rows // 2, columns // 2)})


def _places(maps: InputMaps) -> tuple[int, int]:
    """Height and width of places of which about 16 x 16 cover the map."""
    return max(1, round(maps.height / PLACES)), max(1, round(maps.width / PLACES))


def from_timm(
    name: str, fit: Callable[[InputMaps], InputSize] | None = None, places: Places | None = None, **changes: Any
) -> Build:
    """timm's model of that name, with changes to its arguments. fit: the size of its input, 224 x 224 pixels without one."""

    def build(maps: InputMaps) -> Trunk:
        fitted = InputSize(PIXELS) if fit is None else fit(maps)
        module = timm.create_model(name, in_chans=maps.channels, num_classes=0, **(changes | dict(fitted.arguments)))
        more = {} if places is None else {"places": places}
        return Trunk(module, fitted.pixels, fit is None, **more)

    return build


def patch_tokens(trunk: Any, last_BND: Tensor) -> Tensor:
    """A transformer's tokens without its class tokens."""
    return last_BND[:, trunk.num_prefix_tokens :]


def normed(trunk: Any, last_BDHW: Tensor) -> Tensor:
    """ConvNeXt's last norm, which it applies to the mean over places, applied to each place."""
    y_BDHW: Tensor = trunk.head.norm(last_BDHW)
    return y_BDHW


def cnn(widths: tuple[int, ...], hidden: int) -> Build:
    """The studies' convolutional network, on the map as it is."""

    def build(maps: InputMaps) -> Trunk:
        size = (maps.height, maps.width)
        network = ConvolutionalNetwork(size, maps.channels, widths=widths, hidden=hidden, readout=maps.readout)
        return Trunk(network, size)

    return build


def cswin(**sizes: Any) -> Build:
    """A CSwin of these sizes, on the map as it is."""

    def build(maps: InputMaps) -> Trunk:
        return Trunk(CSwin((maps.height, maps.width), maps.channels, stride=_places(maps), **sizes), (maps.height, maps.width))

    return build


def cswin_224(**sizes: Any) -> Build:
    """A published CSwin, on 224 x 224 pixels."""
    return lambda maps: Trunk(CSwin(PIXELS, maps.channels, **sizes), PIXELS, resize=True)


def hybrid(dim: int, depth: int, heads: int, at_224: bool = False, **stem_layers: Any) -> Build:
    """A transformer whose tokens are the output of strided convolutions (Xiao et al. 2021, arXiv:2106.14881).

    Convolutions halve the map until about 8 x 8 places are left, or 14 x 14 of 224 x 224 pixels; a 1 x 1 convolution follows.
    stem_layers: `norm_layer` and `act_layer` of the convolutions; by default batch norm and ReLU, as in the paper.
    """

    def build(maps: InputMaps) -> Trunk:
        pixels = PIXELS if at_224 else (maps.height, maps.width)
        halvings = 4 if at_224 else max(1, round(log2(max(pixels) / PATCHES)))
        step = 2**halvings
        fitted = (step * ceil(pixels[0] / step), step * ceil(pixels[1] / step))
        channels = (*(max(dim >> n, 8) for n in range(halvings - 1, -1, -1)), dim)
        stem = ConvStem(
            maps.channels,
            depth=halvings + 1,
            channels=channels,
            kernel_size=(*(3 for _ in range(halvings)), 1),
            stride=(*(2 for _ in range(halvings)), 1),
            **stem_layers,
        )
        module = VisionTransformer(
            img_size=fitted,
            patch_size=1,
            in_chans=maps.channels,
            num_classes=0,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            embed_layer=_Stem(stem),
        )
        module.pretrained_cfg = {"first_conv": "patch_embed.backbone.0.conv", "classifier": "head"}
        return Trunk(module, fitted, at_224, patch_tokens)

    return build


class _Stem:
    """An `embed_layer` for timm from a stem that exists already, without a projection."""

    def __init__(self, stem: nn.Module) -> None:
        self.stem = stem

    def __call__(self, **arguments: Any) -> nn.Module:
        return HybridEmbed(self.stem, proj=False, **arguments)


FAMILIES: dict[str, dict[str, Build]] = {
    "vit": {
        "tiny": from_timm("vit_tiny_patch16_224", in_patches, patch_tokens, embed_dim=64, depth=4, num_heads=4),
        "small": from_timm("vit_tiny_patch16_224", in_patches, patch_tokens),
        "study": from_timm("vit_base_patch16_224", None, patch_tokens),
    },
    "deit": {
        "tiny": from_timm("deit_tiny_distilled_patch16_224", in_patches, patch_tokens, embed_dim=64, depth=4, num_heads=4),
        "small": from_timm("deit_tiny_distilled_patch16_224", in_patches, patch_tokens),
        "study": from_timm("deit_small_distilled_patch16_224", None, patch_tokens),
    },
    "swin": {
        "tiny": from_timm(
            "swin_tiny_patch4_window7_224", in_windows, embed_dim=32, depths=(2, 2), num_heads=(2, 4), drop_path_rate=0.0
        ),
        "small": from_timm("swin_tiny_patch4_window7_224", in_windows, embed_dim=48, drop_path_rate=0.0),
        "study": from_timm("swin_tiny_patch4_window7_224"),
    },
    "pvt_v2": {
        "tiny": from_timm(
            "pvt_v2_b0", as_it_is, depths=(2, 2), embed_dims=(32, 64), num_heads=(1, 2), sr_ratios=(4, 2), mlp_ratios=(4, 4)
        ),
        "small": from_timm("pvt_v2_b0", as_it_is),
        "study": from_timm("pvt_v2_b2"),
    },
    "cswin": {
        "tiny": cswin(embed_dim=32, depths=(1, 2), heads=(2, 4), splits=(2, 4)),
        "small": cswin(embed_dim=48, depths=(1, 2, 6), heads=(2, 4, 8), splits=(2, 4, 4)),
        "study": cswin_224(),
    },
    "cnn": {"tiny": cnn((8, 16), 32), "small": cnn((32, 64), 128), "study": cnn((32, 64, 128), 128)},
    "resnet": {
        "tiny": from_timm(
            "resnet18", as_it_is, layers=(1, 1, 1, 1), channels=(16, 32, 48, 64), stem_width=16, output_stride=8,
            zero_init_last=False, norm_layer=partial(GroupNorm, num_groups=8),
        ),
        "small": from_timm("resnet18", as_it_is, zero_init_last=False),
        "study": from_timm("resnet50"),
    },
    "efficientnet": {
        "tiny": from_timm("test_efficientnet_gn", as_it_is, channel_multiplier=0.5, output_stride=8),
        "small": from_timm("efficientnet_lite0", as_it_is),
        "study": from_timm("efficientnet_b0"),
    },
    "convnext": {
        "tiny": from_timm(
            "convnext_atto", as_it_is, normed, depths=(1, 1, 2, 1), dims=(16, 32, 48, 64), output_stride=8, ls_init_value=None
        ),
        "small": from_timm("convnext_atto", as_it_is, normed, ls_init_value=1.0),
        "study": from_timm("convnext_tiny", None, normed),
    },
    "hybrid": {
        "tiny": hybrid(64, 4, 4, norm_layer=partial(GroupNormAct, group_size=8), act_layer=nn.GELU),
        "small": hybrid(192, 11, 3),
        "study": hybrid(384, 11, 6, at_224=True),
    },
}  # fmt: skip
"""What builds a trunk, by family and size."""
