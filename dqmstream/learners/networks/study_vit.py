"""The second study's network: timm's vit_base_patch16_224 without pretrained weights, on counts scaled to about 0-1.

Maps are padded with zeros from 64 x 72 to 64 x 76 and resized to 224 x 224; the head reads the class token. The study trained
it with Adam at 1e-4 and batches of 250: `learners.networks.recipe.STUDY_RECIPE`.

B lumisections, L live channels, C classes.
"""

from __future__ import annotations

import numpy as np
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import register_network
from dqmstream.learners.response.reference import Reference

PIXELS, PATCH, PADDED_IPHI = 224, 16, 76


@register_network("study_vit")
class StudyViT(Network):
    """timm's VisionTransformer with one input channel a depth; with `STUDY_RECIPE` it is ViT-B/16."""

    def __init__(self, live: np.ndarray, recipe: Recipe) -> None:
        super().__init__(live)
        self.transformer = VisionTransformer(
            img_size=PIXELS,
            patch_size=PATCH,
            in_chans=live.shape[0],
            num_classes=0,
            embed_dim=recipe.dim,
            depth=recipe.depth,
            num_heads=recipe.heads,
            mlp_ratio=recipe.mlp_ratio,
        )
        self.head = GrowingLinear(recipe.dim, bias=True)

    def inputs(self, reference: Reference, counts: np.ndarray) -> np.ndarray:
        return reference.scaled_of_live(counts)

    def forward(self, scaled_BL: Tensor) -> Tensor:
        maps = nn.functional.pad(self.to_map(scaled_BL), (0, PADDED_IPHI - self.map_shape[-1]))
        pixels = nn.functional.interpolate(maps, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False)
        logits_BC: Tensor = self.head(self.transformer(pixels))
        return logits_BC

    def heads(self) -> list[GrowingLinear]:
        return [self.head]
