"""Every backbone takes maps of every data set, learns, and gives a map the same features in any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dqmstream.errors import InputError
from dqmstream.learners.networks.backbones import NAMES, READOUTS, SIZES, build_backbone, build_classifier
from dqmstream.learners.networks.backbones.backbone import Backbone, Canvas
from dqmstream.learners.networks.backbones.cswin import CSwin, CSwinBlock, StripeAttention
from dqmstream.learners.networks.backbones.ensemble import Ensemble
from dqmstream.learners.networks.backbones.families import FAMILIES
from dqmstream.learners.networks.backbones.weights import save_weights
from dqmstream.learners.networks.registry import BACKBONES

OCCUPANCY, PHOTONS, JETS = (1, 64, 72), (2, 32, 32), (3, 125, 125)


def make(name: str, shape: tuple[int, int, int], **more: object) -> Backbone:
    torch.manual_seed(0)
    channels, height, width = shape
    return build_backbone(name, channels=channels, height=height, width=width, **more)


def test_names_and_sizes() -> None:
    assert set(NAMES) == {"vit", "deit", "swin", "pvt_v2", "cswin", "cnn", "resnet", "efficientnet", "convnext", "hybrid"}
    assert set(BACKBONES) == set(NAMES) - {"vit", "cnn"}
    assert all(set(sizes) == set(SIZES) for sizes in FAMILIES.values())


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("shape", [OCCUPANCY, PHOTONS, JETS], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_features_depend_on_all_weights_and_on_one_map(name: str, shape: tuple[int, int, int], readout: str) -> None:
    backbone = make(name, shape, readout=readout)
    x_BCHW = torch.randn(3, *shape)
    features_BF = backbone(x_BCHW)
    assert features_BF.shape == (3, backbone.features)
    (features_BF * torch.randn_like(features_BF)).sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []
    backbone.eval()
    with torch.no_grad():
        whole = backbone(x_BCHW)
        assert (whole.std(dim=0) > 0).any()
        torch.testing.assert_close(backbone(x_BCHW[2:3]), whole[2:3], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="takes maps of shape"):
        backbone(x_BCHW[:, :, :-1])


@pytest.mark.parametrize("name", NAMES)
def test_learns(name: str) -> None:
    """To tell whether the upper half of an image is brighter than the lower."""
    torch.manual_seed(0)
    model = build_classifier(name, channels=2, height=32, width=32, classes=2)
    x_BCHW, y_B = torch.randn(16, 2, 32, 32), torch.arange(16) % 2
    x_BCHW[y_B == 1, :, :16] += 0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses: list[float] = []
    while len(losses) < 40 and (not losses or losses[-1] >= 0.5 * losses[0]):
        loss = nn.functional.cross_entropy(model(x_BCHW), y_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_all_places_reach_the_features(name: str) -> None:
    """With the readout `map` a single bright cell gives different features at each place."""
    backbone = make(name, OCCUPANCY, readout="map").eval()
    x_BCHW = torch.zeros(6, *OCCUPANCY)
    for i in range(6):
        x_BCHW[i, 0, 9 * i + 5, 11 * i + 3] = 5.0
    with torch.no_grad():
        features_BF = backbone(x_BCHW)
    distance = torch.cdist(features_BF, features_BF)
    assert (distance[~torch.eye(6, dtype=torch.bool)] > 1e-2).all()


@pytest.mark.parametrize("name", NAMES)
def test_sizes_differ(name: str) -> None:
    """On the meta device: nothing is computed."""
    with torch.device("meta"):
        parameters = [sum(p.numel() for p in make(name, JETS, size=size).parameters()) for size in SIZES]
    assert parameters[0] < parameters[1]
    assert parameters[0] < parameters[2]


@pytest.mark.parametrize(
    ("variant", "parameters", "published"),
    [
        ({}, 22_320_552, 23e6),
        ({"depths": (2, 4, 32, 2)}, 34_643_304, 35e6),
        ({"embed_dim": 96, "depths": (2, 4, 32, 2), "heads": (4, 8, 16, 32)}, 77_382_184, 78e6),
    ],
    ids=["T", "S", "B"],
)
def test_cswin_is_as_large_as_published(variant: dict[str, object], parameters: int, published: float) -> None:
    """With a head of 1000 classes, as the paper and its code count; CSWin-T has 4.3 GFLOP."""
    with torch.device("meta"):
        model = CSwin((224, 224), 3, **variant)
        count = sum(p.numel() for p in model.parameters()) + 1000 * (model.norm.weight.numel() + 1)
        with FlopCounterMode(display=False) as counter:
            if not variant:
                model.forward_features(torch.zeros(1, 3, 224, 224))
    assert count == parameters
    assert count == pytest.approx(published, rel=0.04)
    assert variant or counter.get_total_flops() / 2e9 == pytest.approx(4.3, rel=0.06)


def test_a_stripe_that_does_not_divide_is_a_narrower_stripe() -> None:
    """The last of 7 columns in stripes of 3 is what attention within that column gives."""
    torch.manual_seed(0)
    attention = StripeAttention(8, 2, (5, 3))
    qkv_3BHWD = torch.randn(3, 2, 5, 7, 8)
    narrow = StripeAttention(8, 2, (5, 1))
    narrow.load_state_dict(attention.state_dict())
    torch.testing.assert_close(attention(qkv_3BHWD)[..., 6:, :], narrow(qkv_3BHWD[..., 6:, :]))
    torch.testing.assert_close(attention(qkv_3BHWD)[..., :3, :], attention(qkv_3BHWD[..., :3, :]))


def test_a_place_attends_to_its_row_and_column() -> None:
    block = CSwinBlock(8, 2, 2, (6, 10))
    x_BHWD = torch.randn(1, 6, 10, 8, requires_grad=True)
    block(x_BHWD)[0, 3, 5].sum().backward()
    seen = x_BHWD.grad.abs().sum(dim=-1)[0] > 0
    cross = torch.zeros(6, 10, dtype=torch.bool)
    cross[2:4], cross[:, 4:6] = True, True
    assert torch.equal(seen, cross)


def test_padding_is_periodic_in_iphi() -> None:
    x_BCHW = torch.randn(1, 1, 64, 72)
    padded = Canvas(64, 72, (66, 80), resize=False)(x_BCHW)
    assert torch.equal(padded[..., :64, 72:], x_BCHW[..., :8])
    assert not padded[..., 64:, :].any()
    assert not Canvas(125, 125, (128, 128), resize=False)(torch.ones(1, 1, 125, 125))[..., 125:].any()
    assert Canvas(32, 32, (224, 224), resize=True)(torch.ones(1, 2, 32, 32)).eq(1).all()


def test_dropout_acts_in_training_alone() -> None:
    backbone = make("cnn", PHOTONS, dropout=0.5, readout="map")
    x_BCHW = torch.randn(2, *PHOTONS)
    assert (backbone(x_BCHW) != backbone(x_BCHW)).any()
    backbone.eval()
    assert torch.equal(backbone(x_BCHW), backbone(x_BCHW))


@pytest.mark.parametrize("classes", [1, 3])
def test_an_ensemble_is_the_mean_of_its_members(classes: int) -> None:
    torch.manual_seed(0)
    model = build_classifier("ensemble:cnn+resnet+cnn", channels=2, height=32, width=32, classes=classes)
    assert isinstance(model, Ensemble)
    x_BCHW, y_B = torch.randn(5, 2, 32, 32), torch.arange(5) % classes
    parts = torch.stack([member(x_BCHW) for member in model.members])
    assert (parts[0] != parts[2]).all()
    logits = model(x_BCHW)
    torch.testing.assert_close(logits.softmax(-1), parts.log_softmax(-1).mean(dim=0).softmax(-1))
    if classes == 1:
        torch.testing.assert_close(logits, parts.mean(dim=0))
    alone = torch.stack([nn.functional.cross_entropy(part, y_B) for part in parts]).mean()
    together = nn.functional.cross_entropy(logits, y_B)
    torch.testing.assert_close(together + model.auxiliary_loss(), alone)
    assert model.eval()(x_BCHW).shape == (5, classes)
    assert model.auxiliary_loss() == 0


@pytest.mark.parametrize("name", NAMES)
def test_saved_weights_load_again(name: str, tmp_path: Path) -> None:
    """Running statistics too; also into a backbone of other channels, which for equal channels gives the same features."""
    first, path = make(name, OCCUPANCY), tmp_path / "w.safetensors"
    first(torch.randn(4, *OCCUPANCY))
    save_weights(first.trunk, path)
    torch.manual_seed(1)
    again = build_backbone(name, channels=1, height=64, width=72, weights=path).eval()
    first.eval()
    x_BCHW = torch.randn(2, *OCCUPANCY)
    assert torch.equal(again(x_BCHW), first(x_BCHW))
    assert again.loaded is not None
    assert (again.loaded.adapted, again.loaded.left) == ((), ())
    deeper = build_backbone(name, channels=3, height=64, width=72, weights=path).eval()
    assert deeper.loaded is not None
    assert len(deeper.loaded.adapted) == 1
    assert "adapted" in str(deeper.loaded)
    torch.testing.assert_close(deeper(x_BCHW.expand(-1, 3, -1, -1)), first(x_BCHW), rtol=1e-3, atol=1e-4)


def test_published_weights_of_timm_fit_the_study_size(tmp_path: Path) -> None:
    """A file as timm publishes it, with three channels and a classifier; for one channel kernels are summed."""
    timm, path = pytest.importorskip("timm"), tmp_path / "efficientnet_b0.safetensors"
    published = timm.create_model("efficientnet_b0")
    save_file(published.state_dict(), path)
    backbone = make("efficientnet", OCCUPANCY, size="study", weights=path)
    assert backbone.loaded is not None
    assert backbone.loaded.left == ("classifier.bias", "classifier.weight")
    kernel = published.conv_stem.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(backbone.trunk.conv_stem.weight, kernel)
    assert torch.equal(backbone.trunk.conv_head.weight, published.conv_head.weight)


def test_wrong_weights_are_refused_and_change_nothing(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_weights(make("cnn", PHOTONS).trunk, good)
    tensors = load_file(good)
    name = "convolutions.3.weight"
    for wrong, match in (
        ({}, "another network: they lack convolutions.0.bias, .* and 3 more$"),
        (tensors | {"head.weight": torch.zeros(2)}, "another network: they have head.weight$"),
        (
            tensors | {name: torch.zeros(16, 9, 3, 3)},
            r"convolutions.3.weight has shape \(16, 9, 3, 3\) there and \(16, 8, 3, 3\)",
        ),
        (tensors | {name: torch.full_like(tensors[name], torch.nan)}, "damaged: convolutions.3.weight is not finite"),
    ):
        save_file(wrong, bad)
        with pytest.raises(InputError, match=match):
            make("cnn", PHOTONS, weights=bad)
    bad.write_bytes(b"not a file of tensors")
    for path in (bad, tmp_path / "none.safetensors"):
        with pytest.raises(InputError, match="cannot be read"):
            make("cnn", PHOTONS, weights=path)
    with pytest.raises(InputError, match="of another network"):
        make("resnet", PHOTONS, weights=good)
    with pytest.raises(InputError, match="of one network"):
        build_classifier("ensemble:cnn+cnn", channels=2, height=32, width=32, classes=2, weights=good)


@pytest.mark.parametrize(
    ("name", "more", "match"),
    [
        ("alexnet", {}, "no backbone 'alexnet'; choose one of vit, deit"),
        ("ensemble:vit+cnn", {}, "build_classifier"),
        ("vit", {"size": "huge"}, "no size 'huge'; choose one of tiny, small, study"),
        ("vit", {"readout": "tokens"}, "no readout 'tokens'"),
        ("vit", {"dropout": 1.0}, "dropout below 1"),
    ],
)
def test_unknown_names_and_unusable_values_are_refused(name: str, more: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        make(name, PHOTONS, **more)
    with pytest.raises(InputError, match="at least 1 class"):
        build_classifier("vit", channels=1, height=32, width=32, classes=0)
    with pytest.raises(InputError, match="without a name"):
        build_classifier("ensemble:vit+", channels=1, height=32, width=32, classes=2)
