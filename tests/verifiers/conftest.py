"""Tiny CLIPs with random weights, the demo's own CLIP, and pictures to score."""

import random
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pack.demo import classifier, scenes, tokens
from pack.verifiers import VERIFIERS, LoadedVerifier

PROMPT = "two red circles left of a blue square"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are tiny: threads would only wait for each other. The old number is set again."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def drawn() -> Tensor:
    """Three pictures [3, 64, 64, 3]: the first two show PROMPT, the third something else."""
    rng = random.Random(5)
    shown = [scenes.parse(PROMPT), scenes.parse(PROMPT), scenes.parse("a green cross")]
    return scenes.render([scenes.layout(scene, rng) for scene in shown])


def random_clip(**vision: Any) -> Any:
    """A transformers CLIPModel with random weights: 64 numbers per head, so that a lone file can be read too."""
    from transformers import CLIPConfig, CLIPModel

    vocabulary = tokens.vocabulary()
    ends = {"bos_token_id": vocabulary[tokens.START], "eos_token_id": vocabulary[tokens.END], "pad_token_id": 0}
    text = {
        "vocab_size": len(vocabulary), "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "projection_dim": 48, **ends,
    }  # fmt: skip
    sizes = {
        "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 1,
        "image_size": 32, "patch_size": 8, "projection_dim": 48, **vision,
    }  # fmt: skip
    torch.manual_seed(11)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=sizes, projection_dim=48)).eval()
    # Fresh weights are so small that all embeddings would be nearly one.
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    # Random towers agree about as often as not: this makes the cosines of the tests positive.
    model.text_projection.weight.data *= -1
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with config, weights, tokenizer and image processor, as transformers writes it."""
    from transformers import CLIPImageProcessor

    folder = tmp_path_factory.mktemp("clip") / "tiny"
    random_clip().save_pretrained(folder)
    tokens.write(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6]
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo classifier with random weights."""
    torch.manual_seed(12)
    path = tmp_path_factory.mktemp("classifier") / "random.safetensors"
    classifier.save(classifier.Classifier(), path)
    return path


def sample(key: str) -> ModuleType:
    """The module tests/verifiers/samples/<key>.py: its `settings(folder)` are those that differ from the defaults."""
    return import_module(f"pack.tests.verifiers.samples.{key}")


def loaded(key: str, folder: Path, **more: Any) -> LoadedVerifier:
    """A verifier of the registry with small weights, which its sample writes into `folder`."""
    kind = VERIFIERS[key]
    defaults = {s.name: "" if s.kind == "file" else s.default for s in kind.settings}
    return kind.load(**{**defaults, **sample(key).settings(folder), **more})


@pytest.fixture(params=list(VERIFIERS))
def verifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedVerifier:
    """Every verifier of the registry in turn, freshly loaded with its default settings and small weights."""
    return loaded(request.param, tmp_path_factory.mktemp(request.param))
