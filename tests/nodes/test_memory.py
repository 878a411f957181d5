"""Verifiers under ComfyUI's memory manager, on a fake device whose free memory a test decides."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as management
import pytest
import torch

from pack.demo import paths, scenes
from pack.nodes.memory import ManagedEnsemble, ManagedVerifier, beside_layers, halve, managed, use_casting_layers
from pack.tests.nodes import tiny
from pack.tests.verifiers.conftest import loaded
from pack.verifiers import VERIFIERS
from pack.verifiers.testing import check_verifier

PROMPT = "two red circles left of a blue square"
PICTURES = scenes.render([scenes.layout(scenes.parse(PROMPT), random.Random(seed)) for seed in range(20)])


def clip_score(file: Path = paths.CLIP / "model.safetensors") -> Any:
    return VERIFIERS["clip_score"].load(file=str(file))


class Device:
    """An accelerator to the host's eyes, with `free` bytes less what is loaded; still one that can compute."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.free = device, 10**12
        self.of_others = management.get_free_memory

    def free_memory(self, device: Any = None, torch_free_too: bool = False) -> Any:
        if device != self.device:
            return self.of_others(device, torch_free_too)
        left = max(0, self.free - sum(m.model.loaded_size() for m in self.loaded()))
        return (left, left) if torch_free_too else left

    def loaded(self) -> list[Any]:
        return [m for m in management.current_loaded_models if m.device == self.device]

    def clear(self) -> None:
        management.free_memory(1e30, self.device)


def pretend(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Device:
    made = Device(device)
    monkeypatch.setattr(management, "text_encoder_device", lambda: device)
    monkeypatch.setattr(management, "text_encoder_offload_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(management, "get_free_memory", made.free_memory)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 0)
    monkeypatch.setattr(management, "extra_reserved_memory", lambda: 0)
    monkeypatch.setattr(management, "is_device_cpu", lambda d: d == torch.device("cpu"))
    monkeypatch.setattr(management, "should_use_fp16", lambda *_, **__: False)
    monkeypatch.setattr(management, "lowvram_available", True)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    return made


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = pretend(monkeypatch, torch.device("cpu", 0))
    yield made
    made.clear()


@pytest.mark.parametrize("share", [2.0, 0.5, 0.1, 0.0], ids=["fits", "half fits", "a tenth fits", "nothing fits"])
def test_a_network_too_large_for_the_free_memory_scores_the_same(device: Device, share: float) -> None:
    plain = clip_score()
    expected = plain.score(PICTURES, PROMPT)
    owned = managed(plain)
    device.free = int(share * owned.patcher.model_size()) + 1000
    with torch.inference_mode():
        for _ in range(2):  # unloaded and loaded again
            assert torch.equal(owned.score(PICTURES, PROMPT), expected)
            assert owned.patcher.loaded_size() <= device.free
            assert (owned.patcher.loaded_size() == owned.patcher.model_size()) == (share > 1)
            device.clear()
            assert owned.patcher.loaded_size() == 0 and device.loaded() == []


def test_it_is_loaded_again_without_reading_the_disk(device: Device, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((paths.CLIP / name).read_bytes())
    owned = managed(clip_score(tmp_path))
    before = owned.score(PICTURES, PROMPT)
    device.clear()
    for file in tmp_path.iterdir():
        file.unlink()
    assert torch.equal(owned.score(PICTURES, PROMPT), before)


def test_weights_beside_layers_are_on_the_device_however_little_of_the_network_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # they tell the network where it runs: left behind by the host, everything would run on the CPU
    device = pretend(monkeypatch, torch.device("meta"))
    owned = managed(clip_score())
    device.free = owned.patcher.model_size() // 2
    owned.load()
    places = {p.device.type for p in owned.verifier.module.parameters()}
    assert places == {"cpu", "meta"}
    assert {getattr(part, name).device.type for part, name in beside_layers(owned.verifier.module)} == {"meta"}
    for gone in device.loaded():  # nothing comes back from there
        management.current_loaded_models.remove(gone)


def test_a_search_is_the_same_whatever_memory_its_verifier_gets(device: Device) -> None:
    searched = {"max_candidates": 4, "prompt": PROMPT, "batch_size": 1}
    expected = tiny.search(tiny.sd3(), verifier=clip_score(), **searched).args
    owned = managed(clip_score())
    for share in (2.0, 0.2):
        device.free = int(share * owned.patcher.model_size())
        found = tiny.search(tiny.sd3(), verifier=owned, **searched).args
        assert torch.equal(found[0]["samples"], expected[0]["samples"])
        assert [e.score for e in found[5].finished] == [e.score for e in expected[5].finished]


def test_the_weights_are_stored_in_half_precision_where_text_encoders_are(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = clip_score().score(PICTURES, PROMPT)
    monkeypatch.setattr(management, "should_use_fp16", lambda *_, **__: True)
    owned = managed(clip_score())
    assert {p.dtype for p in owned.verifier.module.parameters()} == {torch.float16}
    scores = owned.score(PICTURES, PROMPT)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, expected, atol=0.01) and not torch.equal(scores, expected)

    exact = clip_score()
    exact.half = False
    assert torch.equal(managed(exact).score(PICTURES, PROMPT), expected)


def test_heads_stay_in_full_precision() -> None:
    network = torch.nn.ModuleDict({"tower": torch.nn.Linear(3, 4), "head": torch.nn.Linear(4, 1)})
    halve(network, ("head",))
    assert network["tower"].weight.dtype == torch.float16 and network["head"].weight.dtype == torch.float32


def test_a_network_mostly_of_other_layers_is_loaded_whole(device: Device) -> None:
    class Norm:
        name, needs_prompt, notes, scale, differentiable = "norm", False, [], None, True

        def __init__(self) -> None:
            self.module = torch.nn.Sequential(torch.nn.GroupNorm(1, 3), torch.nn.Linear(3, 1)).requires_grad_(False)

        def score(self, images: Any, prompt: str) -> Any:
            return self.module(images.mean(dim=(1, 2))).amax(dim=1)

    plain = Norm()
    assert not use_casting_layers(plain.module)
    owned = managed(plain)
    device.free = 10
    expected = plain.score(PICTURES, "")
    assert torch.allclose(owned.score(PICTURES, ""), expected, atol=1e-6)
    assert owned.patcher.loaded_size() == owned.patcher.model_size()


@pytest.mark.parametrize("key", VERIFIERS)
def test_every_verifier_scores_the_same_and_passes_a_gradient_when_it_is_managed(key: str, tmp_path: Path) -> None:
    plain = loaded(key, tmp_path)
    expected = plain.score(PICTURES[:3], PROMPT)
    owned = managed(plain)
    assert isinstance(owned, ManagedVerifier) == (plain.module is not None)
    assert torch.allclose(owned.score(PICTURES[:3], PROMPT), expected, atol=1e-5, equal_nan=True)
    if plain.differentiable:
        check_verifier(owned, PICTURES[:3], PROMPT)


def test_cancel_is_looked_for_between_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    owned = managed(clip_score())
    score = owned.verifier.score

    def counted(images: Any, prompt: str) -> Any:
        seen.append(len(images))
        management.interrupt_current_processing(True)
        return score(images, prompt)

    monkeypatch.setattr(owned.verifier, "score", counted)
    with pytest.raises(management.InterruptProcessingException):
        owned.score(PICTURES.repeat(2, 1, 1, 1), PROMPT)
    assert seen == [16]


def test_an_ensemble_tells_the_host_which_models_it_holds() -> None:
    members = [managed(clip_score()), tiny.Mean(), managed(clip_score())]
    assert ManagedEnsemble(members).get_models() == [members[0].patcher, members[2].patcher]
