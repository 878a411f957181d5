"""LAION's aesthetic predictor against its five layers, one after another on transformers' embeddings."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from pack.search import SearchError
from pack.tests.verifiers.conftest import random_clip
from pack.tests.verifiers.samples import aesthetic as sample
from pack.tests.verifiers.tiny_clip import normal, soft_pictures, write_clip
from pack.verifiers.aesthetic import load_aesthetic, read_head
from pack.verifiers.images import square


def test_it_is_the_head_on_transformers_unit_embedding(tmp_path: Path) -> None:
    pictures = soft_pictures(8)
    pixels = normal(square(pictures.movedim(-1, 1), 32))
    unit = functional.normalize(random_clip().get_image_features(pixels).pooler_output, dim=-1)
    expected = sample.head().layers(unit)[:, 0]
    verifier = load_aesthetic(**sample.settings(tmp_path))
    assert torch.allclose(verifier.score(pictures, "nothing of this is read"), expected, rtol=0, atol=1e-6)
    assert torch.equal(verifier.score(pictures, ""), verifier.score(pictures, "x" * 3000))


@pytest.mark.parametrize("width", [48, 768])
def test_five_layers_without_activation_are_one_direction(tmp_path: Path, width: int) -> None:
    network = sample.head(width)
    # as large as the published file makes its scores
    network.layers[7].weight *= 60
    torch.save(network.state_dict(), tmp_path / "head.pth")
    weight, bias = read_head(str(tmp_path / "head.pth"))
    units = functional.normalize(torch.randn(200, width, generator=torch.Generator().manual_seed(1)), dim=-1)
    assert torch.allclose(units @ weight + bias, network.layers(units)[:, 0], rtol=0, atol=1e-6 * float(weight.norm()))


def test_files_that_are_no_head_or_fit_no_tower_are_refused(tmp_path: Path) -> None:
    made = sample.settings(tmp_path)
    good = torch.load(made["head"], weights_only=True)

    def refused(said: str, **changed: torch.Tensor) -> None:
        renamed = {name.replace("__", "."): tensor for name, tensor in changed.items()}
        torch.save({**good, **renamed}, tmp_path / "x.pth")
        with pytest.raises(SearchError, match=said):
            load_aesthetic(made["file"], str(tmp_path / "x.pth"))

    refused("x.pth has no usable layers.4", layers__4__bias=torch.zeros(3))
    refused("layer 2 of x.pth does not fit", layers__2__weight=torch.zeros(128, 9))
    refused("x.pth has 2 outputs", layers__7__weight=torch.zeros(2, 16), layers__7__bias=torch.zeros(2))
    refused("for embeddings of 768 numbers, the image tower in tower.s", layers__0__weight=torch.zeros(1024, 768))
    with pytest.raises(SearchError, match="file: none is chosen; get sac"):
        load_aesthetic(made["file"], "")


def test_the_prompt_less_tower_holds_no_text_weights(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.safetensors")
    verifier = load_aesthetic(whole, sample.settings(tmp_path)["head"])
    assert not any("text" in name for name in verifier.module.state_dict())
    assert not verifier.needs_prompt
