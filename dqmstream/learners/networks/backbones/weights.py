"""Weights of a trunk in a safetensors file: a file whose names and shapes are not exactly the trunk's is refused.

Names are those of the trunk, for families of timm those of timm. Two differences are accepted. The first convolution may have
another number of input channels: its kernels are summed for one channel, and repeated and scaled for others, as timm does
(`adapt_input_conv`), so that an input which is the same in all channels gives the same output. The layer of a classifier in
the file is ignored.
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
class LoadedWeights:
    """What was loaded from a file.

    tensors: how many. adapted: names of those that were adapted to another number of channels. left: names of the classifier's.
    """

    path: Path
    tensors: int
    adapted: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        """One line for a report."""
        adapted = f", {', '.join(self.adapted)} adapted to other channels" if self.adapted else ""
        left = f", {', '.join(self.left)} left" if self.left else ""
        return f"{self.tensors} tensors of {self.path}{adapted}{left}"


def save_weights(trunk: nn.Module, path: Path) -> None:
    """Write a trunk's weights and running statistics for `load_weights`."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in trunk.state_dict().items()}, path)


def load_weights(trunk: nn.Module, path: Path) -> LoadedWeights:
    """Load a file into a trunk. Raises InputError, and changes nothing, for a file that is damaged or of another trunk."""
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
                f"weights {path} are of another network: {name} has shape {tuple(given.shape)} there and {tuple(tensor.shape)} "
                "here; published weights fit size 'study'"
            )
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise InputError(f"weights {path} are damaged: {name} is not finite")
    trunk.load_state_dict({name: found[name].to(tensor.dtype) for name, tensor in wanted.items()})
    return LoadedWeights(path, len(wanted), adapted, left)


def _refuse_others(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise InputError if the names in the file are not those of the trunk."""
    differing = []
    for what, names in (("lack", wanted.keys() - found.keys()), ("have", found.keys() - wanted.keys())):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            differing.append(f"{what} {shown}")
    if differing:
        raise InputError(f"weights {path} are of another network: they {', and '.join(differing)}")
