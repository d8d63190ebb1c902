"""Networks by name: those of this package, and those that other packages register.

A network is a `learners.networks.base.Network`, made by a callable that is registered under its name:

    @register_network("mine")
    class Mine(Network):
        def __init__(self, live, recipe): ...

Of this package only the names are kept here; its modules, which import PyTorch, are imported when a network is made. Another
package names its module in the entry-point group `dqmstream.networks` (`dqmstream.plugins`), or is imported before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dqmstream.errors import InputError
from dqmstream.plugins import NETWORKS, Registry

BACKBONES = ("deit", "swin", "pvt_v2", "cswin", "resnet", "efficientnet", "convnext", "hybrid")
"""Published families, built by `learners.networks.backbones`. Its `cnn` and `vit` are not among them: those names are taken."""

BUILT_IN = {
    "moe_vit": "vit",
    "vit": "vit",
    "cnn": "cnn",
    "linear": "linear",
    "quadratic": "quadratic",
    "pooled": "pooled",
    "study_vit": "study_vit",
    "depthvit": "depth_vit",
    **dict.fromkeys(BACKBONES, "published"),
}
"""Networks of this package, and the module beside this one that registers each."""

ENSEMBLE = "ensemble:"

Factory = Callable[..., Any]
"""From `live`, bool of shape (depth, 64, 72), and a `Recipe` to a `Network` with no classes."""

_F = TypeVar("_F", bound=Factory)
_registry = Registry[Factory]("network", NETWORKS, {name: f"{__package__}.{module}" for name, module in BUILT_IN.items()})


def register_network(name: str) -> Callable[[_F], _F]:
    """Decorator: the callable makes the network of recipes whose `model` is this name.

    Raises ValueError for a name that another network has, and for one that cannot be part of an ensemble's.
    """
    if not name or any(letter in name for letter in "+: "):
        raise ValueError(f"{name!r} cannot name a network: it is empty, or has '+', ':' or a space in it")

    def register(factory: _F) -> _F:
        _registry.register(name, factory)
        return factory

    return register


def network_names() -> tuple[str, ...]:
    """Names of all networks, also of installed packages."""
    return _registry.names()


def check_network(name: str) -> None:
    """Raise InputError if there is no network of this name, neither here nor in an installed package."""
    if name not in _registry:
        raise InputError(f"there is no network {name!r}; choose one of {', '.join(network_names())}")


def network_factory(name: str) -> Factory:
    """What makes the network of this name. Raises InputError as `check_network` does."""
    check_network(name)
    return _registry[name]


def ensemble_members(model: str) -> tuple[str, ...]:
    """Members of an ensemble: ("vit", "cnn") of `ensemble:vit+cnn`, none of another name. InputError for an empty member."""
    if not model.startswith(ENSEMBLE):
        return ()
    members = tuple(model.removeprefix(ENSEMBLE).split("+"))
    if not all(members):
        raise InputError(f"{model!r} has a member without a name; write it as ensemble:vit+cnn+resnet")
    return members
