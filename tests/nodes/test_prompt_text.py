"""The prompt is the text that feeds the sampler, found through whatever stands between."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import comfy_extras
import pytest
from comfy.sd1_clip import SD1Tokenizer
from comfy_execution.graph import DynamicPrompt

import nodes as host_nodes
from pack.nodes.prompt_text import plain, prompt_of
from pack.search import SearchError
from pack.tests.nodes import tiny


@pytest.fixture(scope="module", autouse=True)
def extra_nodes() -> None:
    """The core node packs that the graphs below use."""
    for name in ("nodes_clip_sdxl", "nodes_custom_sampler", "nodes_primitive", "nodes_flux", "nodes_sd3"):
        file = Path(next(iter(comfy_extras.__path__))) / f"{name}.py"
        assert asyncio.run(host_nodes.load_custom_node(str(file), module_parent="comfy_extras"))


CLIP = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}}


def encode(text: Any, clip: Any = None) -> dict[str, Any]:
    return {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": clip or ["1", 1]}}


def found(inputs: tuple[str, ...] = ("positive",), node: str = "7", **nodes: Any) -> str:
    graph = {"1": CLIP, **{k.strip("n").replace("_", ":"): v for k, v in nodes.items()}}
    return prompt_of(DynamicPrompt(graph), node, inputs)


def sampler(**inputs: Any) -> dict[str, Any]:
    return {"class_type": "KSampler", "inputs": inputs}


MARKED = r"(masterpiece:1.3), (best quality), embedding:easynegative, a cat \(animal\)"
SAID = "masterpiece, best quality, a cat (animal)"
#: What is written, and what it says.
READ = {
    MARKED: SAID,
    "a red cube, left of two blue balls": "a red cube, left of two blue balls",
    "((very)) [old] man:1.2, a (tall (thin:0.8) tree:1.1)": "very [old] man:1.2, a tall thin tree",
    "(red:1.2)(blue) balls": "red blue balls",
    "a cat, (embedding:one.pt:1.2), embedding:two": "a cat",
    "my embedding:one, on a\nembedding:two mat": "my on a\nmat",
    "an unembedding: of (words": "an unembedding: of (words",
    "": "",
}


def test_text_of_an_encoder_directly() -> None:
    assert (
        found(n2=encode("a red cube"), n3=encode("ugly"), n7=sampler(positive=["2", 0], negative=["3", 0]))
        == "a red cube"
    )


def test_text_through_a_controlnet_takes_the_side_that_is_wired() -> None:
    control = {
        "class_type": "ControlNetApplyAdvanced",
        "inputs": {
            "positive": ["2", 0],
            "negative": ["3", 0],
            "control_net": ["9", 0],
            "image": ["10", 0],
            "strength": 1,
        },
    }
    nodes = {"n2": encode("yes"), "n3": encode("no"), "n4": control}
    assert found(**nodes, n7=sampler(positive=["4", 0], negative=["4", 1])) == "yes"
    assert found(**nodes, n7=sampler(positive=["4", 1], negative=["4", 0])) == "no"


def test_combined_texts_must_be_the_same() -> None:
    combine = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["2", 0], "conditioning_2": ["3", 0]}}
    assert found(n2=encode("same"), n3=encode("same"), n4=combine, n7=sampler(positive=["4", 0])) == "same"
    with pytest.raises(SearchError, match="prompt: .*2 different texts.*'one'.*'two'"):
        found(n2=encode("one"), n3=encode("two"), n4=combine, n7=sampler(positive=["4", 0]))


def test_text_that_is_wired_from_a_string_node() -> None:
    string = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "wired in"}}
    assert found(n2=string, n3=encode(["2", 0]), n7=sampler(positive=["3", 0])) == "wired in"


def test_encoders_with_a_text_per_tower_give_the_longest() -> None:
    both = {
        "class_type": "CLIPTextEncodeSDXL",
        "inputs": {"clip": ["1", 1], "text_g": "a long text that says all", "text_l": "short", "width": 8, "height": 8,
                   "crop_w": 0, "crop_h": 0, "target_width": 8, "target_height": 8},
    }  # fmt: skip
    assert found(n2=both, n7=sampler(positive=["2", 0])) == "a long text that says all"


def test_text_through_guidance_and_guiders_of_the_advanced_node() -> None:
    guidance = {"class_type": "FluxGuidance", "inputs": {"conditioning": ["2", 0], "guidance": 3.5}}
    basic = {"class_type": "BasicGuider", "inputs": {"model": ["1", 0], "conditioning": ["3", 0]}}
    advanced = {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["4", 0]}}
    assert found(("guider",), n2=encode("deep"), n3=guidance, n4=basic, n7=advanced) == "deep"
    cfg = {
        "class_type": "CFGGuider",
        "inputs": {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "cfg": 4.0},
    }
    assert found(("guider",), n2=encode("yes"), n3=encode("no"), n4=cfg, n7=advanced) == "yes"


def test_ids_of_subgraphs() -> None:
    assert found(node="3:2", n3_1=encode("inside"), n3_2=sampler(positive=["3:1", 0])) == "inside"


def test_a_negative_without_text_does_not_matter() -> None:
    zero = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["2", 0]}}
    assert found(n2=encode("yes"), n3=zero, n7=sampler(positive=["2", 0], negative=["3", 0])) == "yes"


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_text_counts_as_no_text(text: str) -> None:
    with pytest.raises(SearchError, match="prompt: the widget is empty and no text was found"):
        found(n2=encode(text), n7=sampler(positive=["2", 0]))


def test_no_text_upstream_ends_with_a_sentence() -> None:
    empty = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["1", 0]}}
    for graph in ({"n7": sampler()}, {"n2": empty, "n7": sampler(positive=["2", 0])}):
        with pytest.raises(SearchError, match="prompt: .*type it into the prompt widget"):
            found(**graph)


class Listening(tiny.Mean):
    """Remembers the prompts that it is asked with."""

    needs_prompt = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def score(self, images: Any, prompt: str) -> Any:
        self.asked.append(prompt)
        return super().score(images, prompt)


def test_the_sampler_finds_the_prompt_in_its_own_graph() -> None:
    graph = DynamicPrompt({"1": CLIP, "2": encode("seen"), "7": sampler(positive=["2", 0])})
    verifier = Listening()
    inputs = {**tiny.WIDGETS, "vae": tiny.PictureVAE(), "verifier": verifier, "max_candidates": 1}
    out = tiny.execute(tiny.SearchSampler, graph, model=tiny.sd3(), seed=1, **inputs)
    assert verifier.asked == ["seen"] and out.args[5].settings["prompt"] == "seen"
    tiny.execute(tiny.SearchSampler, graph, model=tiny.sd3(), seed=1, **inputs, prompt="typed")
    assert verifier.asked == ["seen", "typed"]


@pytest.mark.parametrize("written", READ)
def test_what_a_text_says_is_what_the_hosts_tokenizer_reads_without_weights(written: str, tmp_path: Path) -> None:
    assert plain(written) == READ[written]
    tokenizer = SD1Tokenizer(embedding_directory=str(tmp_path))
    [[_, (comma, _), (padding, _), *_]] = tokenizer.tokenize_with_weights(",")["l"]

    def words(text: str) -> list[int]:
        [batch] = tokenizer.tokenize_with_weights(text)["l"]
        return [token for token, _ in batch if token not in (comma, padding)]

    said = plain(written).replace("(", r"\(").replace(")", r"\)")
    assert words(said) == words(written)


def test_texts_that_say_the_same_are_one_prompt() -> None:
    combine = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["2", 0], "conditioning_2": ["3", 0]}}
    assert found(n2=encode(MARKED), n3=encode(SAID.replace("(animal)", r"\(animal\)")), n4=combine,
                 n7=sampler(positive=["4", 0])) == SAID  # fmt: skip


def test_a_typed_prompt_stays_as_typed_and_the_report_says_what_was_asked() -> None:
    graph = DynamicPrompt({"1": CLIP, "2": encode(MARKED), "7": sampler(positive=["2", 0])})
    verifier = Listening()
    inputs = {**tiny.WIDGETS, "vae": tiny.PictureVAE(), "verifier": verifier, "max_candidates": 1}
    for typed in ("", MARKED):
        report = tiny.execute(tiny.SearchSampler, graph, model=tiny.sd3(), seed=1, prompt=typed, **inputs).args[5]
        assert verifier.asked[-1] == report.to_dict()["settings"]["prompt"] == (typed or SAID)
