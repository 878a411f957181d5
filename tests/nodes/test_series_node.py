"""Search Prompts: one search per line, the growing set of winners, and what is kept when it ends early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import pytest
import torch

from pack.demo import paths
from pack.nodes.live import FINISH
from pack.nodes.memory import managed
from pack.nodes.series_node import SearchPrompts, lines
from pack.nodes.verifier_nodes import VerifierEnsembleNode
from pack.search import SearchError
from pack.tests.nodes import tiny
from pack.verifiers.feature_sources import load_features
from pack.verifiers.fid_statistics import statistics_of, write_statistics
from pack.verifiers.oracle_fid import load_inception_score, load_oracle_fid

Interrupt = comfy.model_management.InterruptProcessingException
TEXT = "a red circle\n\n# a comment\n  two blue squares  \na green cross"


class TextEncoder:
    """A CLIP whose conditioning is a function of the text."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> Any:
        self.texts.append(tokens)
        return tiny.conditioning(sum(map(ord, tokens)))


def series(verifier: Any = None, text: str = TEXT, model: Any = None, seed: int = 5, **settings: Any) -> Any:
    widgets = {k: v for k, v in tiny.WIDGETS.items() if k not in ("positive", "negative")}
    inputs = {
        **widgets, "clip": TextEncoder(), "prompts": text, "vae": tiny.PictureVAE(), "max_candidates": 3,
        "verifier": verifier or tiny.Mean(), **settings,
    }  # fmt: skip
    return tiny.execute(SearchPrompts, model=model or tiny.sd3(), seed=seed, **inputs)


def folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "noise_search" / "no-prompt-7"


@pytest.fixture
def oracle(tmp_path: Path) -> Any:
    """Oracle FID of the demo classifier's features from pictures such as PictureVAE decodes, as the node makes it."""
    pictures = torch.rand(250, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = load_features(str(paths.CLASSIFIER)).features(pictures)
    write_statistics(tmp_path / "reference.npz", statistics_of(features))
    return managed(load_oracle_fid(str(paths.CLASSIFIER), str(tmp_path / "reference.npz")))


def test_the_prompts_are_the_lines_without_comments() -> None:
    assert lines(TEXT) == ["a red circle", "two blue squares", "a green cross"]
    assert lines(" \n#x\n") == []


def test_every_prompt_has_the_result_of_a_search_sampler_with_its_own_seed() -> None:
    model = tiny.sd3()
    images, latents, prompts, scores, reports = series(model=model, negative="ugly").args
    assert prompts == ["a red circle", "two blue squares", "a green cross"] == [r.settings["prompt"] for r in reports]
    encoder = TextEncoder()
    for number, prompt in enumerate(prompts):
        alone = tiny.search(
            model, seed=5 + number, positive=encoder.encode_from_tokens_scheduled(prompt), max_candidates=3,
            negative=encoder.encode_from_tokens_scheduled("ugly"), top_k=1,
        ).args  # fmt: skip
        assert tiny.difference(latents[number], alone[0]) == 0.0
        assert torch.equal(images[number], alone[1]) and scores[number] == alone[4]
        assert [e.seed for e in reports[number].evaluations] == [e.seed for e in alone[5].evaluations]
    assert reports[1].evaluations[0].seed == 6


def test_seeds_wrap_around_and_the_negative_is_encoded_once() -> None:
    clip = TextEncoder()
    reports = series(text="a\nb", seed=(1 << 64) - 1, max_candidates=1, clip=clip, negative="bad").args[4]
    assert [r.evaluations[0].seed for r in reports] == [(1 << 64) - 1, 0]
    assert clip.texts == ["bad", "a", "b"]


def test_with_oracle_fid_every_score_is_the_fid_of_the_set_that_the_winner_joins(oracle: Any) -> None:
    images, _, _, scores, reports = series(oracle, text="\n".join(f"prompt {i}" for i in range(6))).args
    assert oracle.set.count == 0  # nothing is left for another search
    for image, score in zip(images, scores, strict=True):
        oracle.accept(image)
        assert score == pytest.approx(-oracle.set.value(), rel=1e-4)
    assert oracle.set.count == 6 and scores[-1] > scores[1]
    assert all(score == max(e.score for e in report.evaluations) for score, report in zip(scores, reports, strict=True))
    oracle.reset()
    again = series(oracle, text="\n".join(f"prompt {i}" for i in range(6))).args[3]
    assert again == scores  # whatever was accepted before


def test_searching_with_oracle_fid_ends_with_a_better_set_than_any_candidate_0(oracle: Any) -> None:
    text = "\n".join(["the same"] * 8)
    searched = series(oracle, text=text, max_candidates=6).args[0]
    plain = series(oracle, text=text, max_candidates=1).args[0]
    values = []
    for images in (searched, plain):
        oracle.reset()
        for image in images:
            oracle.accept(image)
        values.append(oracle.set.value())
    oracle.reset()
    assert values[0] < values[1] and not torch.equal(plain[0], plain[1])


def test_members_of_an_ensemble_and_the_held_out_verifier_grow_too(oracle: Any) -> None:
    held = managed(load_inception_score(str(paths.CLASSIFIER)))
    wired = {"verifier0": tiny.Mean(), "verifier1": oracle}
    ensemble = tiny.execute(VerifierEnsembleNode, method="rank_mean", verifiers=wired).args[0]
    reports = series(ensemble, held_out=held).args[4]
    parts = [(r.best.evaluation.parts["Oracle FID"], r.best.evaluation.held_out["Inception Score"]) for r in reports]
    alone = [float(oracle.score(r.best.images, "")) for r in reports]  # against the empty set
    assert parts[0][0] == pytest.approx(alone[0], rel=1e-4)
    assert all(part[0] != pytest.approx(one, rel=1e-3) for part, one in zip(parts[1:], alone[1:], strict=True))
    assert oracle.set.count == held.set.count == 0


def test_cancel_in_the_third_prompt_keeps_the_first_two(oracle: Any) -> None:
    shutil.rmtree(folder(), ignore_errors=True)
    counted = tiny.Counted(tiny.sd3())
    calls = 4 * 3  # per prompt: four steps, three candidates one by one

    def cancel_late() -> None:
        if len(counted.sizes) == 2 * calls + 6:
            raise Interrupt

    counted.before = cancel_late
    with pytest.raises(Interrupt):
        series(oracle, model=counted.model, batch_size=1)
    for part in ("0001", "0002"):
        assert (folder() / part / "best.png").exists()
        kept = json.loads((folder() / part / "report.json").read_text(encoding="utf-8"))
        assert kept["candidates"] == 3 and len((folder() / part / "ledger.jsonl").read_text().splitlines()) == 4
    assert json.loads((folder() / "0002" / "report.json").read_text())["settings"]["prompt"] == "two blue squares"
    assert len((folder() / "0003" / "ledger.jsonl").read_text().splitlines()) == 2
    assert not (folder() / "0003" / "report.json").exists()
    assert oracle.set.count == 0 and FINISH.ask(None) == []


def test_the_encoder_gets_a_line_as_it_stands_and_the_verifier_what_it_says() -> None:
    line, encoder = r"a (red:1.3) circle, embedding:good", TextEncoder()
    _, _, prompts, _, [report] = series(text=line, clip=encoder, max_candidates=1).args
    assert prompts == [line] and line in encoder.texts and report.settings["prompt"] == "a red circle"


def test_an_error_names_the_prompt() -> None:
    class Failing(tiny.Mean):
        needs_prompt = True

        def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
            if "blue" in prompt:
                raise ValueError("no blue")
            return super().score(images, prompt)

    with pytest.raises(SearchError, match=r"prompt 2 of 3 \(two blue squares\): verifier mean failed.*1 before it"):
        series(Failing())


def test_finish_now_ends_one_prompt_and_the_next_begins() -> None:
    counted = tiny.Counted(tiny.sd3())

    def ask() -> None:
        if len(counted.sizes) == 5:
            FINISH.ask("7")

    counted.before = ask
    reports = series(model=counted.model, max_candidates=8, batch_size=1).args[4]
    assert [len(r.finished) for r in reports] == [1, 8, 8] and reports[0].stopped == {"finish now": 1}


def test_what_the_node_shows_is_the_sum_of_its_searches() -> None:
    out = series()
    [shown] = out.ui["noise_search"]
    assert shown["candidates"] == 9 and shown["nfe"] == 36 and shown["notes"][0] == "best score, mean of 3 prompts"
    assert shown["best"]["score"] == pytest.approx(sum(out.args[3]) / 3)
    json.dumps(shown, allow_nan=False)


def test_the_node_shows_the_mean_verdict_of_the_held_out_verifier() -> None:
    class Dark(tiny.Mean):
        def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
            return -super().score(images, prompt)

    out = series(held_out=Dark("dark"), max_candidates=8)
    [shown], reports = out.ui["noise_search"], out.args[4]
    assert shown["best"]["held_out"] == {"dark": pytest.approx(-shown["best"]["score"])}
    [gain] = shown["gains"]
    expected = [sum(getattr(report.gains[0], side) for report in reports) / 3 for side in ("searched", "held_out")]
    assert [gain["searched"], gain["held_out"]] == pytest.approx(expected) and gain["ratio"] == pytest.approx(-1.0)
    numbers = [number for number, report in enumerate(reports, 1) for _ in report.warnings]
    assert numbers and [warning.partition(":")[0] for warning in shown["warnings"]] == [f"prompt {n}" for n in numbers]
    assert all("held-out dark fell" in warning for warning in shown["warnings"])
    json.dumps(shown, allow_nan=False)


def test_a_held_out_verifier_that_cannot_judge_is_shown_as_nothing() -> None:
    class Blind(tiny.Mean):
        def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
            return torch.full((len(images),), float("nan"))

    [shown] = series(held_out=Blind("blind"), text="a red circle").ui["noise_search"]
    assert shown["best"]["held_out"] == {"blind": None} and shown["notes"] == ["best score of 1 prompt"]
    assert [(gain["held_out"], gain["ratio"]) for gain in shown["gains"]] == [(None, None)]
    json.dumps(shown, allow_nan=False)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"text": "# nothing\n"}, "prompts: got none; write one per line"), ({"clip": None}, "clip: got nothing"),
        ({"vae": None}, "prompt 1 of 3.*vae: got nothing"), ({"max_candidates": 0}, "budget"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_a_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SearchError, match=said) as error:
        series(**settings)
    assert "\n" not in str(error.value)


def test_the_shared_widgets_are_those_of_search_sampler() -> None:
    ours = {each.id: each.as_dict() for each in SearchPrompts.define_schema().inputs}
    theirs = {each.id: each.as_dict() for each in tiny.SearchSampler.define_schema().inputs}
    for name in ours.keys() & theirs.keys() - {"seed", "negative"}:
        assert ours[name] == theirs[name]
    assert set(theirs) - set(ours) == {"positive", "prompt", "top_k", "candidates", "distinct", "distinct_by"}
    optional = [each.optional for each in SearchPrompts.define_schema().inputs]
    assert optional == sorted(optional)
