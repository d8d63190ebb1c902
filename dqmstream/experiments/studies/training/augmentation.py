"""Augmentations of images that keep their class: an electron's shower is one in any mirror image and a few cells off.

They are for electron/photon and quark/gluon images. A map of occupancies is told by which channels changed, and stays what it
is under none of them (`experiments.studies.recipes.REFUSED_MOVES`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOST_CELLS = 2
"""Cells that an image is shifted by at most, each way."""


def flip(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored or not, in each of the two directions alone."""
    for dim in (2, 3):
        mirrored = _draw(2, len(x_BCHW), generator).to(x_BCHW.device).view(-1, 1, 1, 1) == 1
        x_BCHW = torch.where(mirrored, x_BCHW.flip(dim), x_BCHW)
    return x_BCHW


def rotate(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by 0, 90, 180 or 270 degrees; by 0 or 180 where it is not square."""
    square = x_BCHW.shape[2] == x_BCHW.shape[3]
    quarters = _draw(4 if square else 2, len(x_BCHW), generator).to(x_BCHW.device) * (1 if square else 2)
    turned = x_BCHW.clone()
    for k in (1, 2, 3):
        turned[quarters == k] = x_BCHW[quarters == k].rot90(k, dims=(2, 3)) if square or k == 2 else x_BCHW[quarters == k]
    return turned


def shift(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `MOST_CELLS` cells each way; what comes in from outside is zero."""
    moved = x_BCHW.new_zeros(x_BCHW.shape[0], x_BCHW.shape[1], *(side + 2 * MOST_CELLS for side in x_BCHW.shape[2:]))
    moved[:, :, MOST_CELLS:-MOST_CELLS, MOST_CELLS:-MOST_CELLS] = x_BCHW
    for dim in (2, 3):
        side = x_BCHW.shape[dim]
        start = _draw(2 * MOST_CELLS + 1, len(x_BCHW), generator)
        place = (start[:, None] + torch.arange(side)).to(x_BCHW.device)
        wanted = list(moved.shape)
        wanted[dim] = side
        moved = moved.gather(dim, place.view(-1, 1, *((side, 1) if dim == 2 else (1, side))).expand(wanted))
    return moved


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"flip": flip, "rotate": rotate, "shift": shift}
"""By the names that a plan gives as `augment`."""


def augmented(x_BCHW: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """The images under each of the named moves, one upon the other. generator: of the CPU."""
    for name in names:
        x_BCHW = AUGMENTATIONS[name](x_BCHW, generator)
    return x_BCHW


def _draw(choices: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(choices, (size,), generator=generator)
