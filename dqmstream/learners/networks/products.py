"""Products of learnt projections: what a head needs to see that features move together, whatever their sign.

Runs can differ by how channels move from lumisection to lumisection while every mean stays as it is. Features of zero mean
then say nothing in a linear head, and their products say all. A head on K products of two projections is a quadratic form of
rank K at most for each class.

B lumisections, F features, K products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Products(nn.Module):
    """K products of two learnt projections of features: (u_k . x) (v_k . x), (B, F) to (B, K).

    Weights are drawn so that features of unit variance have projections of unit variance.
    """

    def __init__(self, features: int, products: int) -> None:
        super().__init__()
        self.u_KF = nn.Parameter(torch.randn(products, features) / features**0.5)
        self.v_KF = nn.Parameter(torch.randn(products, features) / features**0.5)

    def forward(self, x_BF: Tensor) -> Tensor:
        return (x_BF @ self.u_KF.T) * (x_BF @ self.v_KF.T)
