"""Weights of a trunk from a safetensors file on this machine: all of them, by name and shape, or the file is refused.

Names are the trunk's own: timm's, for what timm builds. Two things may differ. The first convolution may be of other input
channels: its kernels are summed for one channel, and repeated and scaled for others, as timm does (`adapt_input_conv`), so that
an input which is the same in all channels gives the same. And a classifier's own layer is left in the file: its classes are
others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from dqmstream.errors import InputError

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Taken:
    """What a file gave. tensors: how many; adapted: of another number of channels; left: names of the classifier's."""

    path: Path
    tensors: int
    adapted: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        """In one line."""
        adapted = f", {', '.join(self.adapted)} adapted to other channels" if self.adapted else ""
        left = f", {', '.join(self.left)} left" if self.left else ""
        return f"{self.tensors} tensors of {self.path}{adapted}{left}"


def save_weights(trunk: nn.Module, path: Path) -> None:
    """Write a trunk's weights and running statistics so that `load_weights` takes them back."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in trunk.state_dict().items()}, path)


def load_weights(trunk: nn.Module, path: Path) -> Taken:
    """Fill a trunk from a file. Raises InputError, and changes nothing, for a file that is missing, damaged or of another."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights {path} cannot be read: {error}; give a .safetensors file") from error
    wanted = trunk.state_dict()
    config = getattr(trunk, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    left = tuple(sorted(name for name in found.keys() - wanted.keys() if name.startswith(tuple(f"{h}." for h in heads))))
    _refuse_others(path, {name: found[name] for name in found.keys() - set(left)}, wanted)
    first = config.get("first_conv") or ""
    adapted: tuple[str, ...] = ()
    for name, tensor in wanted.items():
        given = found[name]
        if name == f"{first}.weight" and given.ndim == tensor.ndim == 4 and given.shape[1] != tensor.shape[1]:
            found[name] = adapt_input_conv(tensor.shape[1], given, base_chans=given.shape[1])
            adapted = (name,)
        if found[name].shape != tensor.shape:
            raise InputError(
                f"weights {path} are of another model: {name} is of shape {tuple(given.shape)} there and {tuple(tensor.shape)} "
                "here; size 'study' is what published weights are of"
            )
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise InputError(f"weights {path} are damaged: {name} is not finite")
    trunk.load_state_dict({name: found[name].to(tensor.dtype) for name, tensor in wanted.items()})
    return Taken(path, len(wanted), adapted, left)


def _refuse_others(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """InputError where one has names that the other has not."""
    differing = []
    for what, names in (("lack", wanted.keys() - found.keys()), ("have", found.keys() - wanted.keys())):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            differing.append(f"{what} {shown}")
    if differing:
        raise InputError(f"weights {path} are of another model: they {', and '.join(differing)}")
