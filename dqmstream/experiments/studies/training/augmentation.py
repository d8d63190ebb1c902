"""Augmentations of images that keep their class: an electron's shower is still one when mirrored or shifted by a few cells.

They are for electron/photon and quark/gluon images. Occupancy maps are told apart by which channels changed, so no augmentation
is valid for them (`experiments.studies.recipes.REFUSED_AUGMENTATIONS`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOST_CELLS = 2
"""Largest shift of an image in cells, in each direction."""


def flip(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image or not, independently in both directions."""
    for dim in (2, 3):
        mirrored = _draw(2, len(x_BCHW), generator).to(x_BCHW.device).view(-1, 1, 1, 1) == 1
        x_BCHW = torch.where(mirrored, x_BCHW.flip(dim), x_BCHW)
    return x_BCHW


def rotate(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate each image by 0, 90, 180 or 270 degrees, or by 0 or 180 degrees if it is not square."""
    square = x_BCHW.shape[2] == x_BCHW.shape[3]
    quarters = _draw(4 if square else 2, len(x_BCHW), generator).to(x_BCHW.device) * (1 if square else 2)
    turned = x_BCHW.clone()
    for k in (1, 2, 3):
        turned[quarters == k] = x_BCHW[quarters == k].rot90(k, dims=(2, 3)) if square or k == 2 else x_BCHW[quarters == k]
    return turned


def shift(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `MOST_CELLS` cells in each direction; new cells are zero."""
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
"""The augmentations by their names in a plan."""


def augmented(x_BCHW: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """The images with the named augmentations, one after another. generator: on the CPU."""
    for name in names:
        x_BCHW = AUGMENTATIONS[name](x_BCHW, generator)
    return x_BCHW


def _draw(choices: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(choices, (size,), generator=generator)
