"""DepthViT: depths of a patch attend to one another, and a masked map is rebuilt from what is not masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dqmstream.errors import InputError
from dqmstream.learners.networks.build import build
from dqmstream.learners.networks.depth_vit import AcrossDepths, MaskedDepthViT
from dqmstream.learners.networks.recipe import Recipe
from dqmstream.lumisection import he_depth1_mask

RECIPE = Recipe(model="depthvit", dim=8, depth=1, heads=4, linear_skip=False)


def live(depths: int) -> np.ndarray:
    return np.repeat(he_depth1_mask()[None], depths, axis=0)


def small(depths: int, patch: tuple[int, int] = (16, 12), among_patches: bool = False) -> MaskedDepthViT:
    torch.manual_seed(0)
    return MaskedDepthViT(live(depths), patch=patch, features=8, layers=1, mlp_ratio=1.0, among_patches=among_patches)


def test_depths_that_change_places_change_the_answer() -> None:
    """Each depth has an embedding of its own: the same maps at other depths are another lumisection."""
    torch.manual_seed(0)
    model = build(live(3), RECIPE).eval()
    model.grow(2)
    torch.nn.init.normal_(model.heads()[0].weight)
    x = torch.randn(4, 3, 932)
    assert (model(x.flatten(1)) - model(x[:, [1, 0, 2]].flatten(1))).abs().min() > 1e-3


@pytest.mark.parametrize("depths", range(1, 8))
def test_a_depth_is_rebuilt_from_the_others_of_its_patch_alone(depths: int) -> None:
    model = small(depths).eval()
    x = torch.zeros(1, depths * 932)
    changed = x.clone()
    changed[0, 0] = 3.0  # a channel of depth 1
    reached = ((model(changed) - model(x))[0].view(depths, 932).abs() > 1e-7).detach().numpy()
    row, column = np.nonzero(he_depth1_mask())
    same_patch = (row // 16 == row[0] // 16) & (column // 12 == column[0] // 12)
    assert (reached.any(axis=0) == same_patch).all()
    assert reached[:, same_patch].mean() > 0.99


def test_attention_weighs_the_depths_by_their_features() -> None:
    """With one query that matches the key of depth 2 alone, every depth reads the value of depth 2."""
    layer = AcrossDepths(depths=3, features=2, heads=2)
    with torch.no_grad():
        layer.weight_CFG.zero_()
        layer.bias_CG.zero_()
        layer.bias_CG[:, :2] = 30.0  # queries
        layer.bias_CG[1, 2:4] = 30.0  # key of the second depth
        layer.bias_CG[:, 4:] = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        layer.out.weight.copy_(torch.eye(2))
        layer.out.bias.zero_()
    torch.testing.assert_close(layer(torch.zeros(1, 1, 3, 2)), torch.tensor([3.0, 4.0]).expand(1, 1, 3, 2))


@pytest.mark.parametrize(("depths", "among_patches"), [(1, True), (3, False)])
def test_masked_channels_are_rebuilt_better_than_by_their_mean(depths: int, among_patches: bool) -> None:
    """All patches and depths move together, so that what is not masked tells what is."""
    model = small(depths, among_patches=among_patches)
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(depths * 932, generator=generator)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        x = torch.randn(16, 1, generator=generator) * pattern
        loss = (model(x, model.random_mask(16, 0.5, generator)) - x).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    x = torch.randn(64, 1, generator=generator) * pattern
    mask = model.eval().random_mask(64, 0.5, generator)
    hidden = model.hidden(mask)
    assert 0.4 < hidden.float().mean() < 0.6
    error = (model(x, mask) - x)[hidden].square().mean()
    assert error < 0.5 * x[hidden].square().mean()  # the mean map is zero


def test_a_masked_value_is_not_read() -> None:
    model = small(2, among_patches=True).eval()
    mask = model.random_mask(3, 0.5, torch.Generator().manual_seed(1))
    x = torch.randn(3, 2 * 932)
    other = torch.where(model.hidden(mask), 7.0, x)
    assert torch.equal(model(x, mask), model(other, mask))


def test_patches_need_not_divide_the_map() -> None:
    model = small(1, patch=(12, 12))
    assert model.tokens.patches == 24  # 4 of 6 rows of patches have channels of HE
    assert model(torch.randn(2, 932)).shape == (2, 932)


def test_there_is_no_class_token_to_read() -> None:
    with pytest.raises(InputError, match="no class token"):
        Recipe(model="depthvit", readout="class")
