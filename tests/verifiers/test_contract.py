"""What every verifier of the registry must do."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pack import load_pack
from pack.tests.verifiers.conftest import PROMPT
from pack.verifiers import VERIFIERS, LoadedVerifier, VerifierEnsemble, VerifierKind
from pack.verifiers.testing import asked, check_verifier

BLOCKED = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server")
EMBED = {
    "clip_score", "aesthetic", "aesthetic_v25", "pick_score", "hps", "open_clip", "clip_class", "clip_iqa", "siglip",
    "reference_similarity", "self_supervised",
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", VERIFIERS.values(), ids=VERIFIERS)


def test_a_verifier_keeps_the_contract(verifier: LoadedVerifier, drawn: Tensor) -> None:
    scores = check_verifier(verifier, drawn, PROMPT)
    assert scores.dtype == torch.float32 and scores.device.type == "cpu"


def test_a_batch_larger_than_one_forward_scores_as_its_parts(verifier: LoadedVerifier, drawn: Tensor) -> None:
    many = drawn.repeat(7, 1, 1, 1)
    assert torch.allclose(asked(verifier, many, PROMPT), asked(verifier, drawn, PROMPT).repeat(7), atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_pixel_that_is_no_number_makes_that_score_alone_nan(
    verifier: LoadedVerifier, drawn: Tensor, bad: float
) -> None:
    images = drawn.clone()
    images[1, 3, 4, 0] = bad
    scores = asked(verifier, images, PROMPT)
    assert scores[1].isnan()
    assert torch.allclose(scores[[0, 2]], asked(verifier, drawn, PROMPT)[[0, 2]], atol=1e-5)


@pytest.mark.parametrize("height, width", [(96, 64), (64, 113), (7, 5), (200, 200)])
def test_pictures_of_any_shape_and_size_are_scored(
    verifier: LoadedVerifier, height: int, width: int, drawn: Tensor
) -> None:
    pictures = torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(0))
    assert asked(verifier, pictures, PROMPT).isfinite().all()


@pytest.mark.parametrize("images", [torch.rand(64, 64, 3), torch.rand(2, 64, 64, 4), torch.rand(1, 3, 64, 64)])
def test_a_tensor_that_is_no_batch_of_pictures_is_refused(verifier: LoadedVerifier, images: Tensor) -> None:
    from pack.search import SearchError

    with pytest.raises(SearchError, match=r"\[B, H, W, 3\]"):
        verifier.score(images, PROMPT)


def test_the_module_is_one_that_comfyui_can_manage(verifier: LoadedVerifier) -> None:
    from transformers import PreTrainedModel

    if verifier.module is None:
        return
    assert isinstance(verifier.module, nn.Module) and not isinstance(verifier.module, PreTrainedModel)
    verifier.module.device = torch.device("cpu")  # what ComfyUI's ModelPatcher does; transformers' models refuse it
    assert not verifier.module.training
    assert not any(parameter.requires_grad for parameter in verifier.module.parameters())


def test_half_precision_weights_give_nearly_the_same_scores(verifier: LoadedVerifier, drawn: Tensor) -> None:
    if verifier.module is None:
        return
    exact = asked(verifier, drawn, PROMPT)
    verifier.module.to(torch.bfloat16)
    scores = asked(verifier, drawn, PROMPT)
    assert scores.dtype == torch.float32
    # by the verifier's own measure of what is much
    assert torch.allclose(scores, exact, atol=0.05 * max(1.0, float(exact.abs().max())))


def test_weights_loaded_in_inference_mode_still_pass_a_gradient(
    verifier: LoadedVerifier, drawn: Tensor, request: pytest.FixtureRequest
) -> None:
    with torch.inference_mode():
        verifier = request.getfixturevalue("verifier")
        asked(verifier, drawn, PROMPT)
    check_verifier(verifier, drawn, PROMPT)


def test_a_gradient_is_the_slope_of_the_score(verifier: LoadedVerifier, drawn: Tensor) -> None:
    """Central differences along the gradient, to 1 % at the best of six step sizes: scores are float32."""
    if not verifier.differentiable:
        return
    # Away from 0 and 1, where resizing cuts off, and without flat areas, where the largest of equals has no slope.
    images = 0.3 + 0.3 * drawn + 0.1 * torch.rand(drawn.shape, generator=torch.Generator().manual_seed(0))
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(verifier.score(pixels, PROMPT).sum(), pixels)
    slope = gradient.flatten(1).norm(dim=1)
    assert slope.max() > 0
    direction = gradient / slope.clamp(min=1e-30)[:, None, None, None]
    errors = []
    for step in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        ahead, behind = (verifier.score(images + sign * step * direction, PROMPT) for sign in (1, -1))
        errors.append(((ahead - behind) / (2 * step) - slope).abs() / slope.clamp(min=1e-30))
    assert torch.stack(errors).min(dim=0).values.max() < 0.01


def test_the_verifiers_of_image_towers_embed_images_too(
    verifier: LoadedVerifier, drawn: Tensor, request: pytest.FixtureRequest
) -> None:
    embed = getattr(verifier, "features", None)
    assert callable(embed) == (request.node.callspec.params["verifier"] in EMBED)
    if callable(embed):
        features = embed(drawn)
        assert features.dtype == torch.float32 and features.device.type == "cpu"
        assert torch.allclose(features.norm(dim=1), torch.ones(len(drawn)), atol=1e-5)


@KINDS
def test_every_setting_is_an_argument_of_load_and_its_default_is_allowed(kind: VerifierKind) -> None:
    assert VERIFIERS[kind.key] is kind
    arguments = inspect.signature(kind.load).parameters
    assert set(arguments) == {setting.name for setting in kind.settings} | set(kind.host)
    for setting in kind.settings:
        assert setting.tooltip
        if setting.kind == "choice":
            assert setting.default in setting.options
        if setting.kind in ("float", "int"):
            assert setting.minimum <= setting.default <= setting.maximum
        if setting.kind == "file":
            assert setting.folders
        else:
            assert arguments[setting.name].default == setting.default


def test_names_in_the_drop_down_differ() -> None:
    assert len({kind.name for kind in VERIFIERS.values()}) == len(VERIFIERS)


def test_an_ensemble_of_all_of_them_keeps_the_contract(
    drawn: Tensor, classifier_file: Path, clip_folder: Path
) -> None:
    members = [
        VERIFIERS["clip_score"].load(file=str(clip_folder)),
        VERIFIERS["demo_classifier"].load(file=str(classifier_file)),
        VERIFIERS["exact_judge"].load(),
    ]
    for method in ("z_score", "rank_mean"):
        check_verifier(VerifierEnsemble(members, method=method), drawn, PROMPT)
    assert check_verifier(VerifierEnsemble(members[:2]), drawn, PROMPT).isfinite().all()


def test_without_comfyui_the_verifiers_import_lightly_and_score() -> None:
    folder = Path(load_pack.ROOT)
    program = f"""
import sys
sys.path.append({str(folder)!r})
import load_pack
load_pack.hide_root()
for name in {BLOCKED!r}:
    sys.modules[name] = None
load_pack.load_pack()
import pack.search, pack.verifiers, torch
heavy = {{"transformers", "open_clip", "safetensors", "matplotlib", "scipy"}} & set(sys.modules)
assert not heavy, heavy
from pack.demo import paths
verifier = pack.verifiers.VERIFIERS["clip_score"].load(file=str(paths.CLIP))
print(verifier.score(torch.full((1, 64, 64, 3), 0.5), "a red circle").tolist())
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COMFYUI_PATH")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.strip("[]\n")) <= 2.5
