"""A strategy or network from outside is used by its name, as one of this package, after an import or an installation."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from dqmstream.errors import InputError
from dqmstream.learners.checks.strategy import check_resumes_to_the_same_bits
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.gradient.method import Method
from dqmstream.learners.gradient.strategy import register_method
from dqmstream.learners.networks.base import GrowingLinear, Network
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.learners.networks.registry import network_names, register_network
from dqmstream.learners.registry import (
    NAMES,
    make_strategy,
    recipe_changes,
    recipe_of,
    register_strategy,
    resolve,
    strategy_info,
    strategy_names,
)
from dqmstream.lumisection import Geometry, he_depth1_mask
from dqmstream.plugins import NETWORKS, STRATEGIES, Registry
from tests.learners.streams import make_stream, reader
from tests.packages import installed
from tests.runs import simulated_archive

OURS: Registry[Callable[[], bool]] = Registry("thing", "dqmstream.tests", {"rested": "rested", "broken": "broken_module"})

BRIEF = Recipe(steps=4, batch=16)


@register_strategy("outside_gains")
class OutsideGains(GainMap):
    """A closed form."""

    name = "outside_gains"


@register_network("outside_sum")
class OutsideSum(Network):
    """A network with one feature for each class: the sum of the residuals."""

    def __init__(self, live: np.ndarray, recipe: Recipe) -> None:
        super().__init__(live)
        self.head = GrowingLinear(1, bias=True)

    def forward(self, residuals_BL: Tensor) -> Tensor:
        logits_BC: Tensor = self.head(residuals_BL.sum(dim=1, keepdim=True))
        return logits_BC

    def heads(self) -> list[GrowingLinear]:
        return [self.head]


@register_method("outside_method", recipe=replace(BRIEF, model="outside_sum"))
class OutsideMethod(Method):
    """A method."""

    name = "outside_method"


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """A folder to install into; its modules are forgotten afterwards."""
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("outside_"):
            del sys.modules[name]


def test_a_strategy_that_was_imported_is_made_by_its_name() -> None:
    made = make_strategy("outside_gains", geometry=Geometry(1), seed=3)
    assert isinstance(made, OutsideGains)
    assert strategy_info("outside_gains").recipe is None and not strategy_info("outside_gains").budgeted
    assert recipe_of("outside_gains", {"steps": 3}) is None
    assert resolve("outside_gains") in strategy_names()
    check_resumes_to_the_same_bits(
        lambda seed: make_strategy("outside_gains", geometry=Geometry(1), seed=seed), make_stream(2, drift=0.03, n=100)
    )


def test_a_method_and_a_network_that_were_imported_train_by_the_recipe() -> None:
    made = make_strategy("outside_method", geometry=Geometry(1), seed=0, device="cpu")
    stream = make_stream(2, drift=0.03, n=100)
    for experience, run in enumerate(stream):
        log = made.learn(experience, run, reader(stream))
    assert len(log.loss) == 4
    assert {name for name in made.state() if name.startswith("model.")} == {"model.head.weight", "model.head.bias"}
    changed = recipe_of("outside_method", {"steps": 5})
    assert changed == replace(BRIEF, model="outside_sum", steps=5)
    assert recipe_changes("outside_method", {"steps": 5, "batch": 16}) == {"steps": 5}
    members = build(he_depth1_mask()[None], Recipe(model="ensemble:outside_sum+linear"))
    assert len(members.heads()) == 2


def test_a_strategy_of_an_installed_package_is_found_by_its_entry_point(package: Path) -> None:
    source = (
        "from dqmstream.learners.closed_form.gain_map import GainMap\n"
        "from dqmstream.learners.registry import register_strategy\n"
        "@register_strategy('installed_gains', budgeted=True)\n"
        "class Installed(GainMap):\n"
        "    name = 'installed_gains'\n"
        "    def __init__(self, geometry, seed, memory_bytes):\n"
        "        super().__init__(geometry, seed)\n"
        "        self.budget = memory_bytes\n"
    )
    with pytest.raises(InputError, match="no strategy 'installed_gains'"):
        resolve("installed_gains")
    with installed(package, STRATEGIES, source, name="outside_strategies"):
        made = make_strategy("installed_gains", geometry=Geometry(1), seed=0, memory_bytes=7)
        assert made.budget == 7  # type: ignore[attr-defined]
        assert strategy_names()[: len(NAMES)] == NAMES and "installed_gains" in strategy_names()


def test_a_network_of_an_installed_package_is_a_recipes_model(package: Path) -> None:
    source = (
        "from dqmstream.learners.networks.linear import Linear\n"
        "from dqmstream.learners.networks.registry import register_network\n"
        "@register_network('installed_linear')\n"
        "class Installed(Linear): pass\n"
    )
    with pytest.raises(InputError, match="no network 'installed_linear'"):
        Recipe(model="installed_linear")
    with installed(package, NETWORKS, source, name="outside_networks"):
        recipe = Recipe.from_json({"model": "installed_linear"})
        assert type(build(he_depth1_mask()[None], recipe)).__name__ == "Installed"
        assert "installed_linear" in network_names()


def test_the_command_line_takes_an_installed_strategy_by_its_name(package: Path) -> None:
    """In a process of its own, as a user starts it."""
    source = (
        "from dqmstream.learners.closed_form.gain_map import GainMap\n"
        "from dqmstream.learners.registry import register_strategy\n"
        "@register_strategy('installed_map')\n"
        "class Installed(GainMap): name = 'installed_map'\n"
    )
    archive = simulated_archive(package, runs=2)
    with installed(package, STRATEGIES, source, name="outside_commands"):
        done = subprocess.run(
            [sys.executable, "-m", "dqmstream", "replay", "--archive", archive.path, "--strategy", "installed_map", "--json"],
            env=os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{Path(__file__).parents[2]}"},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["strategy"] == "installed_map"


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'gain_map' already"):
        register_strategy("gain_map")(OutsideGains)
    with pytest.raises(ValueError, match="'outside_gains' already"):
        register_strategy("outside_gains")(GainMap)
    with pytest.raises(ValueError, match="'default' stands for another"):
        register_strategy("default")(OutsideGains)
    with pytest.raises(ValueError, match="'cnn' already"):
        register_network("cnn")(OutsideSum)
    with pytest.raises(ValueError, match="cannot name a network"):
        register_network("a+b")
    assert register_strategy("outside_gains")(OutsideGains) is OutsideGains, "a module that is run again"


def test_what_is_no_network_is_refused_when_it_is_built() -> None:
    register_network("outside_list")(_no_network)
    with pytest.raises(InputError, match=r"network 'outside_list' is a list"):
        build(he_depth1_mask()[None], Recipe(model="outside_list"))


def _no_network(live: np.ndarray, recipe: Recipe) -> list[int]:
    return []


def test_names_and_recipes_of_this_package_are_known_without_pytorch() -> None:
    code = (
        "import sys\n"
        "from dqmstream.learners.registry import NAMES, recipe_of, strategy_info, resolve\n"
        "assert resolve('default') == 'hybrid' and recipe_of('cnn', {'steps': 3}).model == 'cnn'\n"
        "assert strategy_info('replay').budgeted and {'replay', 'stacked'} <= set(NAMES)\n"
        "assert not {'torch', 'avalanche', 'timm'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_the_garbage_collector_rests_during_an_import_and_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rested.py").write_text(
        "import gc\nfrom tests.learners.test_registry import OURS\nenabled = gc.isenabled()\n\n\n"
        "def made():\n    return enabled\n\n\nOURS.register('rested', made)\n"
    )
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert gc.isenabled()
    assert OURS["rested"]() is False and gc.isenabled()
    with pytest.raises(RuntimeError, match="broken"):
        _ = OURS["broken"]
    assert gc.isenabled()
