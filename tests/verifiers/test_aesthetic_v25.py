"""Aesthetic Predictor V2.5 against its author's own package, and the files that do not fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from pack.search import SearchError
from pack.tests.verifiers.conftest import loaded
from pack.tests.verifiers.samples import aesthetic_v25 as sample
from pack.tests.verifiers.samples import towers
from pack.verifiers.aesthetic_v25 import load_aesthetic_v25


def test_it_equals_the_authors_package(references: Path, tmp_path: Path) -> None:
    if not (references / "aesthetic_predictor_v2_5").is_dir():
        pytest.skip("needs aesthetic-predictor-v2-5 in the reference implementations")
    from transformers import SiglipVisionConfig
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    from aesthetic_predictor_v2_5.siglip_v2_5 import AestheticPredictorV2_5Model, AestheticPredictorV2_5Processor

    logging.set_verbosity(verbosity)  # the package silences the whole library
    verifier = loaded("aesthetic_v25", tmp_path)
    config = SiglipVisionConfig.from_pretrained(tmp_path)
    model = AestheticPredictorV2_5Model(config)
    model.layers.load_state_dict(sample.head())
    tower = towers_of(tmp_path)
    missing, unexpected = model.load_state_dict(tower, strict=False)
    assert not unexpected and all(name.startswith("layers.") for name in missing)
    coarse = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    images = functional.interpolate(coarse, (80, 60), mode="bilinear").movedim(1, -1)
    processor = AestheticPredictorV2_5Processor.from_pretrained(tmp_path, do_rescale=False)
    pixels = processor(images=list(images.movedim(-1, 1)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.eval()(pixel_values=pixels, return_dict=True).logits[:, 0]
    scores = verifier.score(images, "")
    assert torch.allclose(scores, expected, rtol=0, atol=2e-6)
    assert scores.std() > 1e-3


def towers_of(folder: Path) -> dict[str, torch.Tensor]:
    """The image tower's weights under the names that transformers has in memory."""
    from transformers import SiglipModel

    weights: dict[str, torch.Tensor] = SiglipModel.from_pretrained(folder).vision_model.state_dict()
    return weights


def test_a_safetensors_head_scores_as_the_pickle(tmp_path: Path) -> None:
    made = loaded("aesthetic_v25", tmp_path)
    save_file(sample.head(), tmp_path / "head.safetensors")
    images = torch.rand(2, 40, 40, 3, generator=torch.Generator().manual_seed(2))
    other = load_aesthetic_v25(str(tmp_path / "model.safetensors"), str(tmp_path / "head.safetensors"))
    assert torch.equal(made.score(images, ""), other.score(images, "a cat"))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tower = str(towers.siglip(tmp_path / "siglip") / "model.safetensors")
    whole = sample.head()
    for tensors, said in (
        (sample.head(72), "made for embeddings of 72 numbers, the SigLIP in model.safetensors gives 64"),
        ({k: t for k, t in whole.items() if "6.bias" not in k}, "no usable scoring_head.6"),
        ({**whole, "scoring_head.4.weight": torch.zeros(64, 7)}, "layer 4 of head.pth does not fit"),
        ({**whole, "scoring_head.8.weight": torch.zeros(2, 16), "scoring_head.8.bias": torch.zeros(2)}, "2 outputs"),
    ):
        torch.save(tensors, tmp_path / "head.pth")
        with pytest.raises(SearchError, match=said):
            load_aesthetic_v25(tower, str(tmp_path / "head.pth"))
    torch.save(whole, tmp_path / "head.pth")
    dino = str(towers.dinov2(tmp_path / "dino") / "model.safetensors")
    with pytest.raises(SearchError, match="is a dinov2 model; expected one of the family siglip"):
        load_aesthetic_v25(dino, str(tmp_path / "head.pth"))
    with pytest.raises(SearchError, match="aesthetic_predictor_v2_5.pth .*AGPL-3.0.* from https://github.com/discus0434"):
        load_aesthetic_v25(tower, "")
    with pytest.raises(SearchError, match="3.51 GB.*huggingface.co/google/siglip-so400m-patch14-384"):
        load_aesthetic_v25("", str(tmp_path / "head.pth"))
