"""DepthViT: a transformer whose tokens belong to a patch of one depth and attend to the other depths of their patch.

Julson et al., "Continual Learning via Ensemble-Based Depth-Wise Masked Autoencoders", arXiv:2603.02369. Of the paper only the
abstract was read, and model code that names this architecture (github.com/daksh-mor/heptapod-dqm, dqm/depthvit.py). As in that
code, each depth has its own embedding and its own weights for queries, keys and values, and norms and the MLP of a block act
on all depths of a patch together; with as many heads as features, attention is computed for each feature as there. Ours are
attention among patches, which that code lacks and which can be left out, and the decoder (`MaskedDepthViT`).

B lumisections, L live channels, N patches, C depths, F features of a depth's token, D = C F, P cells of a patch, H heads.
"""

from __future__ import annotations

import numpy as np
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import register_network
from dqmstream.learners.networks.vit import READOUTS
from dqmstream.lumisection import N_IETA, N_IPHI


class DepthTokens(nn.Module):
    """Values of the live channels (B, L) to tokens (B, N, C, F), with a linear map for each depth, and back.

    A patch is high x wide cells, and begins `shift` columns before the map does. Where patches do not divide the map, zeros are
    added before its first row and column. Patches without a live channel are left out.
    """

    def __init__(self, live: np.ndarray, patch: tuple[int, int], shift: int, features: int) -> None:
        super().__init__()
        (high, wide), self.depths, self.features = patch, live.shape[0], features
        depth, row, column = np.nonzero(live)
        row, column = row + -N_IETA % high, (column + shift) % N_IPHI + -N_IPHI % wide
        patch_L = row // high * -(-N_IPHI // wide) + column // wide
        found, token_L = np.unique(patch_L, return_inverse=True)
        self.patches, self.cells = len(found), high * wide
        place_L = (token_L * self.depths + depth) * self.cells + row % high * wide + column % wide
        self.place_L: Tensor
        self.register_buffer("place_L", torch.from_numpy(place_L), persistent=False)
        bound = self.cells**-0.5
        self.weight_CPF = nn.Parameter(torch.empty(self.depths, self.cells, features).uniform_(-bound, bound))
        self.bias_CF = nn.Parameter(torch.empty(self.depths, features).uniform_(-bound, bound))

    def forward(self, x_BL: Tensor) -> Tensor:
        flat = x_BL.new_zeros(len(x_BL), self.patches * self.depths * self.cells).index_copy(1, self.place_L, x_BL)
        x_BNCP = flat.view(-1, self.patches, self.depths, self.cells)
        return torch.einsum("bncp,cpf->bncf", x_BNCP, self.weight_CPF) + self.bias_CF

    def channels(self, cells_BND: Tensor) -> Tensor:
        """Values of the live channels (B, L) from values of all cells of all patches (B, N, C P)."""
        return cells_BND.flatten(1).index_select(1, self.place_L)


class AcrossDepths(nn.Module):
    """Attention of the depths of each patch to one another: (B, N, C, F) to the same shape."""

    def __init__(self, depths: int, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        bound = features**-0.5
        self.weight_CFG = nn.Parameter(torch.empty(depths, features, 3 * features).uniform_(-bound, bound))
        self.bias_CG = nn.Parameter(torch.empty(depths, 3 * features).uniform_(-bound, bound))
        self.out = nn.Linear(features, features)

    def forward(self, x_BNCF: Tensor) -> Tensor:
        mixed = torch.einsum("bncf,cfg->bncg", x_BNCF, self.weight_CFG) + self.bias_CG
        query, key, value = (part.unflatten(-1, (-1, self.heads)) for part in mixed.chunk(3, dim=-1))  # (B, N, C, F / H, H)
        # Heads come last: a softmax over seven depths in the last axis would take most of the time.
        score_BNCEH = torch.einsum("bncfh,bnefh->bnceh", query, key) * x_BNCF.shape[-1] ** -0.5
        attended = torch.einsum("bnceh,bnefh->bncfh", score_BNCEH.softmax(dim=3), value)
        out_BNCF: Tensor = self.out(attended.flatten(3))
        return out_BNCF


class DepthBlock(nn.Module):
    """A block on tokens (B, N, C, F): attention across depths, attention among patches if wanted, and an MLP."""

    def __init__(self, depths: int, features: int, heads: int, mlp_ratio: float, among_patches: bool) -> None:
        super().__init__()
        width = depths * features
        self.depth_norm, self.across_depths = nn.LayerNorm(width), AcrossDepths(depths, features, heads)
        self.patch_norm = nn.LayerNorm(width) if among_patches else nn.Identity()
        self.among_patches = Attention(width, heads, qkv_bias=True) if among_patches else None
        self.mlp_norm, self.mlp = nn.LayerNorm(width), Mlp(width, max(int(mlp_ratio * width), 1))

    def forward(self, x_BNCF: Tensor) -> Tensor:
        shape = x_BNCF.shape[2:]
        x_BND = x_BNCF.flatten(2)
        x_BND = x_BND + self.across_depths(self.depth_norm(x_BND).unflatten(2, shape)).flatten(2)
        if self.among_patches is not None:
            x_BND = x_BND + self.among_patches(self.patch_norm(x_BND))
        return (x_BND + self.mlp(self.mlp_norm(x_BND))).unflatten(2, shape)


@register_network("depthvit")
class DepthViT(Network):
    """The encoder with a head on its tokens. `dim` of the recipe is F, the width of a token of one depth."""

    def __init__(self, live: np.ndarray, recipe: Recipe) -> None:
        super().__init__(live)
        depths = live.shape[0]
        self.tokens = DepthTokens(live, recipe.patch, recipe.patch_shift, recipe.dim)
        width = depths * recipe.dim
        self.position_ND = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.tokens.patches, width), std=0.02))
        self.blocks = nn.ModuleList(
            DepthBlock(depths, recipe.dim, recipe.heads, recipe.mlp_ratio, among_patches=True) for _ in range(recipe.depth)
        )
        self.norm = nn.LayerNorm(width)
        self._read = READOUTS[recipe.readout]
        self.head = GrowingLinear(width * (len(self.position_ND) if recipe.readout == "tokens" else 1), bias=True)
        self.skip = GrowingLinear(int(live.sum()), bias=False) if recipe.linear_skip else None

    def forward(self, residuals_BL: Tensor) -> Tensor:
        x_BNCF = self.tokens(residuals_BL)
        x_BNCF = x_BNCF + self.position_ND.view(x_BNCF.shape[1:])
        for block in self.blocks:
            x_BNCF = block(x_BNCF)
        logits_BC: Tensor = self.head(self._read(self.norm(x_BNCF.flatten(2))))
        return logits_BC if self.skip is None else logits_BC + self.skip(residuals_BL)

    def heads(self) -> list[GrowingLinear]:
        return [self.head] if self.skip is None else [self.head, self.skip]


class MaskedDepthViT(nn.Module):
    """Rebuilds the values of all live channels from those whose tokens are not masked: (B, L) to (B, L).

    A masked token is replaced by a learnt one for its depth, as in SimMIM (Xie et al., arXiv:2111.09886). The published code
    drops masked patches before its encoder, but gives its decoder the embedding of the whole map, and its cross-attention does
    not read what the encoder gives; here nothing but the unmasked tokens is read.
    """

    def __init__(
        self, live: np.ndarray, *, patch: tuple[int, int], features: int, layers: int, mlp_ratio: float, among_patches: bool
    ) -> None:
        """layers: blocks of the encoder, and of the decoder. Each feature is a head. Other arguments as of the blocks."""
        super().__init__()
        depths = live.shape[0]
        width = depths * features
        self.tokens = DepthTokens(live, patch, 0, features)
        self.mask_CF = nn.Parameter(torch.zeros(depths, features))
        self.position_SND = nn.Parameter(nn.init.trunc_normal_(torch.empty(2, self.tokens.patches, width), std=0.02))
        self.parts = nn.ModuleList(
            nn.Sequential(*(DepthBlock(depths, features, features, mlp_ratio, among_patches) for _ in range(layers)))
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.rebuild = nn.Linear(width, depths * self.tokens.cells)

    def random_mask(self, lumisections: int, share: float, generator: torch.Generator) -> Tensor:
        """Which tokens are masked: bool (B, N, C), the same number of each lumisection's."""
        size = self.tokens.patches * self.tokens.depths
        order = torch.rand(lumisections, size, generator=generator).argsort(dim=1)
        return (order < round(share * size)).view(lumisections, self.tokens.patches, self.tokens.depths)

    def hidden(self, mask_BNC: Tensor) -> Tensor:
        """Which live channels a mask hides: bool (B, L)."""
        cells = mask_BNC[..., None].expand(*mask_BNC.shape, self.tokens.cells)
        return self.tokens.channels(cells)

    def forward(self, x_BL: Tensor, mask_BNC: Tensor | None = None) -> Tensor:
        x_BNCF = self.tokens(x_BL)
        if mask_BNC is not None:
            x_BNCF = torch.where(mask_BNC[..., None], self.mask_CF, x_BNCF)
        for position_ND, blocks, norm in zip(self.position_SND, self.parts, self.norms, strict=True):
            x_BNCF = blocks(x_BNCF + position_ND.view(x_BNCF.shape[1:]))
            x_BNCF = norm(x_BNCF.flatten(2)).view(x_BNCF.shape)
        out_BL: Tensor = self.tokens.channels(self.rebuild(x_BNCF.flatten(2)))
        return out_BL
