"""HPSv2 against open_clip: the plain cosine of the letterboxed picture."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pack.tests.verifiers.conftest import random_clip
from pack.tests.verifiers.tiny_clip import normal, open_clip_model, soft_pictures, token_ids, write_clip
from pack.verifiers.hps import load_hps
from pack.verifiers.images import letterbox

PROMPT = "two red circles left of a blue square"


def by_open_clip(pixels: Tensor, prompt: str) -> Tensor:
    """The cosines by open_clip's own network of pixels [B, 3, 32, 32]."""
    model = open_clip_model(random_clip().state_dict())
    image, text = model.encode_image(pixels, normalize=True), model.encode_text(token_ids(prompt), normalize=True)
    return (image @ text.T)[:, 0]


@pytest.mark.parametrize("prompt", [PROMPT, "", "café 漢字 🙂"])
def test_it_is_open_clips_cosine(tmp_path: Path, prompt: str) -> None:
    pictures = soft_pictures(8)
    expected = by_open_clip(normal(letterbox(pictures.movedim(-1, 1), 32)), prompt)
    for name in ("hps.pt", "hps.safetensors"):
        got = load_hps(write_clip(tmp_path / name)).score(pictures, prompt)
        assert torch.allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("height, width", [(768, 512), (512, 768), (640, 640)])
def test_photos_score_as_through_open_clips_own_transform(tmp_path: Path, height: int, width: int) -> None:
    transform = pytest.importorskip("open_clip.transform").image_transform(32, is_train=False, resize_mode="longest")
    from PIL import Image
    from torch.nn.functional import interpolate

    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    eight_bit = (interpolate(coarse, (height, width), mode="bilinear") * 255).round().byte().movedim(1, -1)
    expected = by_open_clip(torch.stack([transform(Image.fromarray(one.numpy())) for one in eight_bit]), PROMPT)
    got = load_hps(write_clip(tmp_path / "hps.pt")).score(eight_bit / 255, PROMPT)
    # open_clip resizes bytes and rounds them: pixels differ by up to 0.007, cosines of this random network by 3.4e-3
    assert torch.allclose(got, expected, rtol=0, atol=5e-3)
    assert expected.std() > 0.01


def test_the_edges_of_a_wide_picture_count(tmp_path: Path) -> None:
    verifier = load_hps(write_clip(tmp_path / "hps.pt"))
    wide = torch.rand(2, 64, 128, 3, generator=torch.Generator().manual_seed(3))
    edge = wide.clone()
    edge[:, :, :16] = edge[:, :, -16:] = 0
    assert (verifier.score(wide, PROMPT) - verifier.score(edge, PROMPT)).abs().min() > 1e-4
