"""What a running search leaves on disk: its best image and latent, as ComfyUI's own nodes write and read them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import folder_paths
import numpy as np
import pytest
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from PIL import Image

import nodes as host_nodes
from pack import search
from pack.nodes import live
from pack.nodes.search_sampler import SearchSampler
from pack.tests.nodes import tiny
from pack.verifiers import VerifierEnsemble

Interrupt = comfy.model_management.InterruptProcessingException
HERE = "noise_search/no-prompt-7"


class Scripted(tiny.Mean):
    """Says of the candidates what it was told to, in their order."""

    def __init__(self, name: str, scores: list[float]) -> None:
        super().__init__(name)
        self.scores = scores

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        super().score(images, prompt)
        return torch.tensor(self.scores[self.seen - len(images) : self.seen])


@pytest.fixture
def folder() -> Path:
    """Where the searches of these tests keep their files; empty."""
    path = Path(folder_paths.get_output_directory()) / HERE
    shutil.rmtree(path, ignore_errors=True)
    return path


def loaded(name: str = "best.latent") -> torch.Tensor:
    """What stock Load Latent makes of a search's file."""
    [latent] = host_nodes.LoadLatent().load(f"{HERE}/{name} [output]")
    return latent["samples"]


def run_with(hidden: dict[Any, Any], **settings: Any) -> io.NodeOutput:
    """Run Search Sampler as ComfyUI does for a prompt that brings more than its node's id."""
    inputs = {**tiny.WIDGETS, "vae": tiny.PictureVAE(), "verifier": tiny.Mean(), "max_candidates": 2, **settings}
    v3_data = {"hidden_inputs": {io.Hidden.unique_id: "7", **hidden}}
    with torch.inference_mode():
        return SearchSampler.PREPARE_CLASS_CLONE(v3_data).execute(model=tiny.sd3(), **inputs)


@pytest.mark.parametrize("name", ["random", "zero_order", "paths"])
@pytest.mark.parametrize("batch", [1, 2])
def test_load_latent_makes_of_the_file_the_latent_that_came_out(folder: Path, name: str, batch: int) -> None:
    settings = {"max_candidates": 5, "latent_image": tiny.latent(batch=batch), "algorithm": search.algorithm(name)}
    latent = tiny.search(tiny.sd3(), **settings).args[0]
    assert torch.equal(loaded(), latent["samples"]) and loaded().shape == (batch, 16, 8, 8)
    euler, model = comfy.samplers.sampler_object("euler"), tiny.sd3()
    latent = tiny.search_custom(3, tiny.guider(model), euler, tiny.sigmas(model, 4), **settings).args[0]
    assert torch.equal(loaded(), latent["samples"])


def test_where_ranks_raise_an_older_candidate_last_the_files_are_its_own(folder: Path) -> None:
    said = {"first": [1.0, 0.0, 0.9, 0.8], "second": [0.0, 3.0, -1.0, -2.0]}
    judge = VerifierEnsemble([Scripted(name, scores) for name, scores in said.items()], "rank_mean", weights=[2, 3])
    latent, *_, report = tiny.search(tiny.sd3(), verifier=judge, max_candidates=4, batch_size=1).args
    assert report.best.evaluation.candidate == 0 and torch.equal(loaded(), latent["samples"])
    assert json.loads(Image.open(folder / "best.png").text["noise_search"])["candidate"] == 0


def test_cancel_leaves_the_best_latent_so_far(folder: Path) -> None:
    def interrupt() -> None:
        if judge.seen == 4:
            raise Interrupt

    judge = tiny.Mean(before=interrupt)
    with pytest.raises(Interrupt):
        tiny.search(tiny.sd3(), verifier=judge, max_candidates=8, batch_size=1)
    kept = loaded()
    latent = tiny.search(tiny.sd3(), max_candidates=4, batch_size=1).args[0]
    assert torch.equal(kept, latent["samples"])
    assert not list(folder.glob("*.partial"))


@pytest.mark.skipif(not tiny.HAS_MINIMAX, reason="this ComfyUI knows no tiny model with nested latents")
def test_nested_latents_which_stock_does_not_save_leave_no_file(folder: Path) -> None:
    guider = comfy.samplers.CFGGuider(tiny.minimax_h3())
    guider.set_conds(tiny.conditioning(1, width=48), tiny.conditioning(2, width=48))
    euler, sigmas = comfy.samplers.sampler_object("euler"), tiny.sigmas(guider.model_patcher, 2)
    latent = tiny.search_custom(3, guider, euler, sigmas, latent_image=tiny.nested_latent(), max_candidates=2).args[0]
    assert latent["samples"].is_nested
    assert (folder / "best.png").exists() and not (folder / "best.latent").exists()


def test_a_disk_that_takes_no_file_does_not_end_the_search(folder: Path) -> None:
    for name in ("best.png", "best.latent"):
        (folder / name / "in the way").mkdir(parents=True)  # a file cannot replace a folder
    assert len(tiny.search(tiny.sd3(), max_candidates=3).args[5].finished) == 3


def test_of_a_video_the_middle_frame_is_shown(folder: Path) -> None:
    settings = {"latent_image": tiny.video_latent(5), "max_candidates": 3, "batch_size": 1}
    images = tiny.search(tiny.wan(), **settings).args[1]
    middle = np.clip(255.0 * images[2].numpy(), 0, 255).astype(np.uint8)
    assert len(images) == 5 and np.array_equal(np.asarray(Image.open(folder / "best.png")), middle)


@pytest.mark.parametrize("disabled", [False, True])
def test_the_files_hold_the_graph_as_save_image_writes_it_and_the_evaluation(
    folder: Path, disabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(args, "disable_metadata", disabled)
    prompt, workflow = {"7": {"class_type": "NoiseSearchSampler", "inputs": {}}}, {"nodes": [], "version": 0.4}
    run_with({io.Hidden.prompt: prompt, io.Hidden.extra_pnginfo: {"workflow": workflow}}, seed=3)
    texts = Image.open(folder / "best.png").text
    if disabled:
        assert texts == {}
        return
    assert json.loads(texts["prompt"]) == prompt and json.loads(texts["workflow"]) == workflow
    assert json.loads(texts["noise_search"])["verdict"] == "judged"


def test_every_search_puts_its_winner_beside_those_of_others_for_save_image() -> None:
    info: dict[str, Any] = {"workflow": {"nodes": []}}
    out = run_with({io.Hidden.extra_pnginfo: info}, seed=3, max_nfe=60, held_out=tiny.Mean("other"))
    run_with({io.Hidden.extra_pnginfo: info, io.Hidden.unique_id: "3:8"}, seed=4)
    assert info.keys() == {"workflow", "noise_search"} and info["noise_search"].keys() == {"7", "3:8"}
    best = out.args[5].best.evaluation
    assert json.loads(json.dumps(info["noise_search"]["7"], allow_nan=False)) == {
        "recipe": [{"op": "seed", "seed": best.seed}], "seed": out.args[3], "score": out.args[4],
        "held_out": {"other": out.args[4]}, "verifier": "mean", "algorithm": out.args[5].settings["algorithm"]["name"],
        "budget": {"candidates": 2, "nfe": 60}, "stopped": {"candidates": 2}, "candidates": 2, "nfe": 8,
    }  # fmt: skip


def test_a_prompt_without_such_information_gets_none() -> None:
    hidden = {io.Hidden.extra_pnginfo: None, io.Hidden.prompt: None}
    assert run_with(hidden).args[4] > 0


def vetoed(scores: list[float], minimum: float = 10.0, method: str = "z_score") -> VerifierEnsemble:
    """A verifier that says what it was told to, and its veto below `minimum`."""
    return VerifierEnsemble([Scripted("strict", scores)], method, vetoes={"strict": minimum})


@pytest.mark.parametrize("method", ["z_score", "rank_mean"])
def test_where_all_are_vetoed_the_error_names_the_picture_of_the_nearest(folder: Path, method: str) -> None:
    judge = vetoed([1.0, math.nan, 3.0, 2.0], method=method)
    said = f"vetoed 3;.* nearest is in output/{HERE}/no_winner.png"
    with pytest.raises(search.SearchError, match=said):
        tiny.search(tiny.sd3(), verifier=judge, max_candidates=4, batch_size=1)
    told = json.loads(Image.open(folder / "no_winner.png").text["noise_search"])
    assert told["candidate"] == 2 and told["verdict"] == "vetoed"
    assert not (folder / "best.png").exists() and not (folder / "best.latent").exists()


def test_of_candidates_that_nobody_can_judge_the_first_is_the_nearest(folder: Path) -> None:
    with pytest.raises(search.SearchError, match="no_winner.png"):
        tiny.search(tiny.sd3(), verifier=Scripted("blind", [math.nan] * 3), max_candidates=3, batch_size=1)
    assert json.loads(Image.open(folder / "no_winner.png").text["noise_search"])["candidate"] == 0


def test_the_first_that_can_win_takes_the_place_of_the_nearest(folder: Path) -> None:
    out = tiny.search(tiny.sd3(), verifier=vetoed([1.0, 2.0, 11.0, 3.0]), max_candidates=4, batch_size=1)
    assert out.args[5].best.evaluation.candidate == 2 and len(out.args[5].top) == len(out.args[1]) == 1
    assert (folder / "best.png").exists() and not (folder / "no_winner.png").exists()
    assert torch.equal(loaded(), out.args[0]["samples"])


def test_the_nearest_is_no_best_before_a_cancel_either(folder: Path) -> None:
    def interrupt() -> None:
        if judge.members[0].verifier.seen == 2:
            raise Interrupt

    judge = vetoed([1.0, 2.0, 3.0])
    judge.members[0].verifier.before = interrupt
    with pytest.raises(Interrupt):
        tiny.search(tiny.sd3(), verifier=judge, max_candidates=3, batch_size=1)
    assert sorted(path.name for path in folder.iterdir()) == ["ledger.jsonl", "no_winner.png"]


def test_the_panel_is_given_what_the_report_says_of_verifiers_and_scouts() -> None:
    shown = tiny.search(tiny.sd3(), held_out=tiny.Mean("other"), max_candidates=4).ui["noise_search"][0]
    [agreement] = shown["agreements"]
    assert agreement == {"first": "mean", "second": "other (held out)", "correlation": 1.0}
    assert shown["scouting"] is None


class Browser:
    """Stands in for ComfyUI's server: hears what a page would."""

    client_id = "page"

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def send_sync(self, event: str, data: dict[str, Any], sid: str) -> None:
        """Keep the news."""
        if event == "noise_search.news":
            self.heard.append(data)


def heard(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[dict[str, Any]]:
    """Run a search and return all that a browser is told of it."""
    browser = Browser()
    monkeypatch.setattr(live.PromptServer, "instance", browser, raising=False)
    monkeypatch.setattr(live, "NEWS_SECONDS", 0.0)
    tiny.search(tiny.sd3(), batch_size=1, **settings)
    return browser.heard


def test_the_news_count_every_model_call_of_a_budget_of_which_the_hosts_bar_drops_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    news = heard(monkeypatch, max_candidates=3, max_nfe=100000)
    calls = [each["nfe"] for each in news if each["nfe"]]
    assert sorted(set(calls)) == list(range(1, 13)) and calls == sorted(calls)
    assert {each["expected"] for each in news if each["nfe"]} == {12}
    assert [each["images"] for each in news if each["nfe"] == 2] == [0]  # before the first image too


def test_the_news_name_no_end_where_no_limit_tells_one(monkeypatch: pytest.MonkeyPatch) -> None:
    news = heard(monkeypatch, max_candidates=0, patience=1)
    assert len(news) > 2 and all(each["expected"] is each["seconds_per_nfe"] is None for each in news)


def test_a_running_search_can_be_asked_how_it_goes() -> None:
    said: list[dict[str, Any]] = []
    judge = tiny.Mean(before=lambda: said.extend(live.FINISH.running()))
    tiny.search(tiny.sd3(), verifier=judge, max_candidates=2, batch_size=1)
    assert [(each["node_id"], each["nfe"], each["expected"], each["images"]) for each in said] == [
        ("7", 4, 8, 0), ("7", 8, 8, 1)
    ]  # fmt: skip
    assert said[0]["best"] is None and said[1]["best"] is not None and live.FINISH.running() == []
