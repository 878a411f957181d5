"""The Inception of FID: the numbers of pytorch-fid's own network with the same random weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from pack.search import SearchError
from pack.verifiers.feature_sources import load_features
from pack.verifiers.inception import FIDInception

FILE = "pt_inception-2015-12-05-6726825d.pth"


def random_inception() -> dict[str, torch.Tensor]:
    """A whole checkpoint with random weights that keep the size of what goes through."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in FIDInception().state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    weights = {"fc.bias": torch.randn(1008, generator=generator)}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            weights[name] = drawn * (2 / drawn[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            weights[name] = 1 + 0.2 * torch.rand(shape, generator=generator)
        else:
            weights[name] = 0.1 * drawn
    return weights


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / FILE
    torch.save(random_inception(), path)
    return path


def test_features_and_logits_are_those_of_pytorch_fid(
    file: Path, references: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: Any = importlib.import_module("pytorch_fid.inception")
    # Their loader is strict, so it also checks that the names here are those of the published file.
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: torch.load(file, weights_only=True))
    images = torch.rand(3, 3, 96, 160, generator=torch.Generator().manual_seed(2))
    source = load_features(str(file))
    with torch.no_grad():
        expected = theirs.InceptionV3([3]).eval()(images)[0].flatten(1)
        got = source.features(images)
        assert got.shape == (3, 2048) and got.std() > 0.1
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
        whole = theirs.fid_inception_v3().eval()
        resized = torch.nn.functional.interpolate(images, (299, 299), mode="bilinear", align_corners=False)
        assert source.logits is not None and source.classes == 1008
        logits, expected = source.logits(images), whole(2 * resized - 1) - whole.fc.bias
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_every_row_is_alone_and_the_network_is_frozen(file: Path) -> None:
    source = load_features(str(file))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together = source.features(images)
        alone = torch.cat([source.features(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5 * float(together.abs().max()))
    assert not source.module.training and not any(p.requires_grad for p in source.module.parameters())
    assert not any(tensor.is_meta for tensor in [*source.module.parameters(), *source.module.buffers()])


def test_torchvisions_own_inception_is_refused(file: Path, tmp_path: Path) -> None:
    weights = torch.load(file, weights_only=True)
    other = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    torch.save({**other, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, tmp_path / "other.pth")
    with pytest.raises(SearchError, match=r"file: other.pth is no Inception v3 of FID.*fc.weight: got \(1000, 2048\)"):
        load_features(str(tmp_path / "other.pth"))
