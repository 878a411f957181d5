"""Bad input is refused before any sampling, in one sentence that names the widget or file."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.utils
import pytest
import torch
from comfy_execution.graph import DynamicPrompt
from comfy_extras.nodes_custom_sampler import DisableNoise

from pack.nodes import algorithms, candidates, verifier_nodes
from pack.nodes.model_files import DEMO_MODELS, register_folders
from pack.search import SearchError
from pack.tests.nodes import tiny
from pack.verifiers.exact_judge import load_exact_judge

NAN_LATENT = {"samples": torch.full((1, 16, 8, 8), float("nan"))}


class OtherVAE(tiny.PictureVAE):
    """A VAE of a model with other channels, which says so as ComfyUI's do."""

    latent_channels = 4

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("expected input[1, 16, 8, 8] to have 4 channels, but got 16 channels instead")


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no verifier": ({"verifier": None}, "verifier"),
    "no vae": ({"vae": None}, "vae"),
    "a vae of another model": ({"vae": OtherVAE()}, "vae"),
    "something else as verifier": ({"verifier": "CLIPScore"}, "verifier"),
    "wrong latent channels": ({"latent_image": {"samples": torch.ones(1, 4, 8, 8)}}, "latent_image"),
    "a NaN latent": ({"latent_image": NAN_LATENT}, "latent_image"),
    "no limit": ({"max_candidates": 0}, "budget"),
    "only a target": ({"max_candidates": 0, "target_score": 1.0}, "budget"),
    "a negative budget": ({"max_nfe": -1}, "budget: got max_nfe=-1"),
    "a budget below one candidate": ({"max_candidates": 0, "max_nfe": 3}, "got max_nfe=3"),
    "a negative batch size": ({"batch_size": -3}, "batch_size=-3"),
    "denoise 0": ({"denoise": 0.0}, "denoise"),
    "top_k 0": ({"top_k": 0}, "top_k"),
    "an empty prompt and nothing upstream": ({"verifier": load_exact_judge()}, "prompt"),
    "a prompt that a wire does not bring": ({"verifier": load_exact_judge(), "prompt": None}, "prompt"),
    "a prompt that the judge cannot read": ({"verifier": load_exact_judge(), "prompt": "a cat"}, "."),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_sampling(case: str) -> None:
    settings, named = CASES[case]
    counted = tiny.Counted(tiny.model_of("flow"))
    graph = DynamicPrompt({"7": {"class_type": "NoiseSearchSampler", "inputs": {}}})
    inputs = {**tiny.WIDGETS, "vae": tiny.PictureVAE(), "verifier": tiny.Mean(), **settings}
    with pytest.raises(SearchError, match=named) as error:
        tiny.execute(tiny.SearchSampler, graph, model=counted.model, seed=1, **inputs)
    assert "\n" not in str(error.value)
    if case != "a prompt that the judge cannot read":  # only the verifier knows, once it sees an image
        assert counted.sizes == []


def test_a_vae_that_fails_for_another_reason_is_named() -> None:
    class Broken(tiny.PictureVAE):
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(SearchError, match="vae.*mat1 and mat2"):
        tiny.search(tiny.model_of("flow"), vae=Broken(), max_candidates=2)


def test_a_vae_that_gives_no_colours_is_named() -> None:
    class Grey(tiny.PictureVAE):
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            return samples[:, :1].movedim(1, -1)

    with pytest.raises(SearchError, match="vae: .*three colour channels"):
        tiny.search(tiny.model_of("flow"), vae=Grey(), max_candidates=1)


def test_a_real_vae_of_the_model_passes_the_check() -> None:
    weights = comfy.utils.load_torch_file(str(DEMO_MODELS / "vae" / "noise_search_demo_vae.safetensors"))
    out = tiny.search(tiny.model_of("flow"), vae=comfy.sd.VAE(sd=weights), max_candidates=1)
    assert out.args[1].shape == (1, 64, 64, 3)


def test_disabled_noise_has_no_neighbours() -> None:
    noise = DisableNoise.execute().args[0]
    around = tiny.execute(candidates.NoiseCandidate, seed=1, cosine=0.9, noise=noise).args[0]
    counted = tiny.Counted(tiny.model_of("flow"))
    with pytest.raises(SearchError, match="noise"):
        tiny.search(counted.model, candidates=around, max_candidates=3)
    assert counted.sizes == []


def test_paths_that_never_come_down_are_refused() -> None:
    with pytest.raises(SearchError, match="backward"):
        tiny.execute(algorithms.SearchOverPaths, forward=0.8, backward=0.8)


def test_an_unknown_verifier_is_refused() -> None:
    for chosen in (None, {}, {"verifier": "Nonsense"}):
        with pytest.raises(SearchError, match="verifier: got .*expected one of"):
            tiny.execute(verifier_nodes.VerifierNode, verifier=chosen)


def test_a_missing_weights_file_is_refused_with_the_folder_to_put_it() -> None:
    register_folders()
    for name, said in (("not there.safetensors", "put it into"), ("none", "put it into"), ("../s.pt", "expected one")):
        with pytest.raises(SearchError, match=f"file: .*{said}"):
            tiny.execute(verifier_nodes.VerifierNode, verifier={"verifier": "CLIPScore", "file": name})


SEED = '{"op": "seed", "seed": 1}'
RUBBISH = [
    "", "{}", "[]", "null", "7", "[7]", "not json", '[{"op": "near", "seed": 1, "cosine": 0.5}]', '[{"op": "seed"}]',
    '[{"op": "seed", "seed": -1}]', '[{"op": "seed", "seed": 1.5}]', '[{"op": "seed", "seed": true}]',
    f'[{SEED}, {{"op": "near", "seed": 2, "cosine": 2}}]', f'[{SEED}, {{"op": "jump"}}]',
    f'[{SEED}, {{"op": "near", "seed": 2, "cosine": NaN}}]', '[{"op": "given", "seed": 1}]',
    f'[{SEED}, {{"op": "renoise", "seed": 2, "from": 0.1, "to": 0.9}}]',
    f'[{SEED}, {{"op": "slerp", "with": [{{"op": "given", "seed": 1}}], "fraction": 0.5}}]',
    f'[{SEED}, {{"op": "slerp", "with": [], "fraction": 0.5}}]',
]  # fmt: skip


@pytest.mark.parametrize("text", RUBBISH)
def test_a_recipe_that_makes_no_noise_is_refused(text: str) -> None:
    with pytest.raises(SearchError, match="recipe") as error:
        tiny.execute(candidates.NoiseFromRecipe, recipe=text)
    assert "\n" not in str(error.value)
