"""The files that an offline training writes after each epoch, atomically; a stopped training continues to the same bits.

    best.safetensors        weights of the best epoch by validation; also a file for --weights
    checkpoint.safetensors  weights and optimizer after the last complete epoch; removed once the result is stored

Both have metadata in JSON that identify the training. Random numbers are seeded by (seed, epoch), so no random state is kept.
The best weights are written first: after a crash between the two writes their epoch is trained again, to the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn, optim

from dqmstream.errors import StateError
from dqmstream.storage.locks import write_atomically

BEST, LAST = "best.safetensors", "checkpoint.safetensors"


def write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Replace a file atomically by tensors and their metadata."""
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(own, {"said": json.dumps(about)}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `write` wrote. Raises StateError for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["said"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 safe_open is no mapping
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise StateError(f"{path} cannot be read: {error}; delete it to start the training again") from error


def tensors_of(network: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """Weights, buffers and optimizer state, by name."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for number, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in slots.items()}
    return tensors


def restore(tensors: Mapping[str, Tensor], network: nn.Module, optimizer: optim.Optimizer) -> None:
    """Load what `tensors_of` gave. Raises StateError if it belongs to another network."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, slot = name.split(".", 2)
            slots.setdefault(int(number), {})[slot] = tensor
    try:
        network.load_state_dict({name[8:]: tensor for name, tensor in tensors.items() if name.startswith("network.")})
        optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})
    except (RuntimeError, ValueError) as error:
        raise StateError(f"a checkpoint does not fit its network: {' '.join(str(error).split())}") from error
