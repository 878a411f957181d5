"""Verifier, Verifier Ensemble, Score Images, and verifiers whose network ComfyUI's memory manager owns."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.nested_tensor
import folder_paths
import pytest
import torch

import nodes as host_nodes
from pack.nodes.memory import ManagedVerifier, managed
from pack.nodes.model_files import NONE, choices, models_in, path_of, register_folders
from pack.nodes.verifier_nodes import SOCKETS, ScoreImages, VerifierEnsembleNode, VerifierNode, numbers
from pack.search import SearchError
from pack.tests.nodes import tiny
from pack.verifiers import VERIFIERS
from pack.verifiers.notes import note


class Red(tiny.Mean):
    """Redder is better; cannot judge what has no red."""

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        red = images[..., 0].mean(dim=(1, 2))
        return torch.where(red > 0, red, float("nan"))


class Network:
    """A verifier with a network, for the memory manager."""

    name, needs_prompt, notes, scale, differentiable = "network", False, ["a note"], (0.5, 2.0), True

    def __init__(self) -> None:
        self.module = torch.nn.Linear(3, 1)
        self.devices: list[Any] = []

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        self.devices.append(self.module.weight.device)
        return self.module(images.mean(dim=(1, 2)).to(self.module.weight)).squeeze(1)


def ensemble(*members: Any, **widgets: str) -> Any:
    wired = {f"verifier{i}": member for i, member in enumerate(members)}
    return tiny.execute(VerifierEnsembleNode, verifiers=wired, **widgets).args[0]


PICTURES = torch.rand(5, 8, 8, 3, generator=torch.Generator().manual_seed(1))


def test_weights_and_vetoes_are_read_in_the_order_of_the_sockets() -> None:
    a, b = tiny.Mean("a"), tiny.Mean("b")
    made = ensemble(a, b, weights="1, 0.5", vetoes="- 0.2")
    assert [(m.name, m.weight, m.minimum) for m in made.members] == [("a", 1.0, None), ("b", 0.5, 0.2)]
    made = ensemble(tiny.Mean("a"), tiny.Mean("a"), vetoes="0.1,-")
    assert [(m.name, m.minimum) for m in made.members] == [("a", 0.1), ("a 2", None)]
    assert ensemble(a, b).members[1].weight == 1.0


SENSELESS = [
    ({"weights": "1"}, "weights: got 1 value for 2 verifiers"), ({"weights": "1, x"}, "weights: got '1, x'"),
    ({"vetoes": "1 2 3"}, "vetoes: got 3"), ({"weights": "-1 1"}, "weight"), ({"weights": "0 0"}, "weights"),
    ({"weights": "nan 1"}, "weight"), ({"method": "best"}, "method"), ({"weights": "inf 1"}, "weight"),
]  # fmt: skip


@pytest.mark.parametrize(("widgets", "named"), SENSELESS)
def test_widgets_that_make_no_sense_are_named(widgets: dict[str, str], named: str) -> None:
    with pytest.raises(SearchError, match=named):
        ensemble(tiny.Mean("a"), tiny.Mean("b"), **widgets)


def test_an_ensemble_of_nothing_or_of_ensembles_is_refused() -> None:
    for members in ((), (ensemble(tiny.Mean("a"), tiny.Mean("b")), tiny.Mean())):
        with pytest.raises(SearchError, match="member"):
            ensemble(*members)


def test_a_veto_keeps_a_candidate_from_winning() -> None:
    made = ensemble(tiny.Mean("bright"), Red("red"), weights="1 0", vetoes="- 2")
    with pytest.raises(SearchError, match="vetoed 3"):
        tiny.search(tiny.sd3(), verifier=made, max_candidates=3)


@pytest.mark.parametrize("method", ["z_score", "rank_mean"])
def test_a_search_with_an_ensemble_records_every_member(method: str) -> None:
    made = ensemble(tiny.Mean("bright"), Red("red"), method=method)
    reports = [tiny.search(tiny.sd3(), verifier=made, max_candidates=5, batch_size=b).args[5] for b in (1, 4)]
    for report in reports:
        assert all(set(e.parts) == {"bright", "red"} for e in report.finished)
    assert [e.score for e in reports[0].finished] == pytest.approx([e.score for e in reports[1].finished], abs=1e-5)
    assert any("no measured scale" in note for note in reports[0].notes) == (method == "z_score")


def test_scored_images_are_sorted_and_what_cannot_be_judged_comes_last() -> None:
    pictures = torch.stack([torch.full((4, 4, 3), v) for v in (0.2, 0.0, 0.9, 0.5, 0.0)])
    out = tiny.execute(ScoreImages, images=pictures, verifier=Red())
    assert [round(float(p.mean()), 3) for p in out.args[0]] == [0.9, 0.5, 0.2, 0.0, 0.0]
    assert out.args[1][:3] == pytest.approx([0.9, 0.5, 0.2]) and all(s != s for s in out.args[1][3:])
    assert len(out.args[2].evaluations) == 5 and len(out.args[2].top) == 3
    with_alpha = torch.cat([pictures, torch.ones(5, 4, 4, 1)], dim=-1)
    assert tiny.execute(ScoreImages, images=with_alpha, verifier=Red()).args[0].shape == with_alpha.shape


GRAYS = torch.stack([torch.full((4, 4, 3), v) for v in (0.2, 0.0, 0.9, 0.5, 0.0)])  # the black ones nobody can judge
LIMITS = [
    ({}, [2, 3, 0, 1, 4]), ({"keep": 2}, [2, 3]), ({"keep": 9}, [2, 3, 0]), ({"minimum": 0.5}, [2, 3]),
    ({"minimum": 0.0}, [2, 3, 0]), ({"minimum": -2.5}, [2, 3, 0]), ({"keep": 1, "minimum": 0.3}, [2]),
    ({"keep": 2, "minimum": 0.7}, [2]),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "left"), LIMITS)
def test_keep_and_minimum_return_the_best_alone_and_say_where_they_stood(limits: Any, left: list[int]) -> None:
    out = tiny.execute(ScoreImages, images=GRAYS, verifier=Red(), **limits)
    assert out.args[3] == left and torch.equal(out.args[0], GRAYS[left])
    grays = [0.2, float("nan"), 0.9, 0.5, float("nan")]
    assert out.args[1] == pytest.approx([grays[place] for place in left], nan_ok=True)
    assert len(out.args[2].evaluations) == 5 and len(out.args[2].top) == 3  # the report is on all


def test_vetoed_images_are_left_out_where_a_limit_is_set() -> None:
    made = ensemble(tiny.Mean("bright"), Red("red"), weights="1 0", vetoes="- 0.3")
    assert tiny.execute(ScoreImages, images=GRAYS[[0, 2, 3]], verifier=made).args[3] == [1, 2, 0]
    assert tiny.execute(ScoreImages, images=GRAYS[[0, 2, 3]], verifier=made, keep=3).args[3] == [1, 2]


def test_limits_that_leave_no_image_say_which_widget_and_what_the_best_scored() -> None:
    for minimum in (0.95, float("nan")):
        with pytest.raises(SearchError, match=r"minimum: got .*the best of 5 images scores 0\.9: lower minimum"):
            tiny.execute(ScoreImages, images=GRAYS, verifier=Red(), minimum=minimum)
    for limit in ({"keep": 1}, {"minimum": 0.0}):
        with pytest.raises(SearchError, match="keep, minimum: .* mean could not judge 2 .* vetoed 0; .* set keep to 0"):
            tiny.execute(ScoreImages, images=GRAYS[[1, 4]], verifier=Red(), **limit)
    assert tiny.execute(ScoreImages, images=GRAYS[[1, 4]], verifier=Red()).args[3] == [0, 1]


def masks(count: int) -> torch.Tensor:
    return torch.arange(count).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).float()


LATENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "numbered": {"batch_index": [7, 3, 5, 1, 0]},
    "of another pack": {"more": "kept"},
    "one mask": {"noise_mask": masks(1)},
    "a mask for each": {"noise_mask": masks(5)},
    "two masks": {"noise_mask": masks(2)},
}


@pytest.mark.parametrize("kind", LATENTS)
def test_the_rows_of_a_wired_latent_go_with_their_images_as_latent_from_batch_gives_them(kind: str) -> None:
    latent = {"samples": torch.rand(5, 4, 8, 8), **LATENTS[kind]}
    before = {key: value.clone() if key in ("samples", "noise_mask") else value for key, value in latent.items()}
    out = tiny.execute(ScoreImages, images=GRAYS, verifier=Red(), keep=3, latent=latent).args[4]
    rows = [host_nodes.LatentFromBatch().frombatch(latent, row, 1)[0] for row in (2, 3, 0)]
    assert out.keys() == rows[0].keys() and out.get("more") == latent.get("more")
    assert torch.equal(out["samples"], torch.cat([row["samples"] for row in rows]))
    assert out["batch_index"] == [row["batch_index"][0] for row in rows]
    if "noise_mask" in latent:
        expected = masks(1) if kind == "one mask" else torch.cat([row["noise_mask"] for row in rows])
        assert torch.equal(out["noise_mask"], expected)
    assert str(latent) == str(before)


def test_a_row_goes_on_with_the_noise_that_it_had_in_the_batch() -> None:
    model, batch = tiny.sd3(), tiny.latent(batch=5)
    out = tiny.execute(ScoreImages, images=GRAYS, verifier=Red(), keep=2, latent=batch).args[4]
    whole, chosen = (tiny.stock(model, 3, latent_image=each)["samples"] for each in (batch, out))
    assert torch.allclose(chosen, whole[[2, 3]], atol=1e-5)


def test_a_nested_latent_is_sorted_in_all_its_parts() -> None:
    pictures, sounds = torch.rand(5, 4, 2, 8, 8), torch.rand(5, 3, 6)
    latent = {"samples": comfy.nested_tensor.NestedTensor([pictures, sounds])}
    out = tiny.execute(ScoreImages, images=GRAYS, verifier=Red(), keep=2, latent=latent).args[4]["samples"]
    assert out.is_nested and len(out.unbind()) == 2
    assert torch.equal(out.unbind()[0], pictures[[2, 3]]) and torch.equal(out.unbind()[1], sounds[[2, 3]])


def test_a_latent_of_other_images_is_refused_and_without_one_its_output_alone_is_blocked() -> None:
    verifier = Red()
    with pytest.raises(SearchError, match="latent: got 1 row for 5 images; .*frames of a video"):
        tiny.execute(ScoreImages, images=GRAYS, verifier=verifier, latent=tiny.video_latent(5))
    assert verifier.seen == 0
    assert "wire the LATENT" in tiny.execute(ScoreImages, images=GRAYS, verifier=verifier).args[4].message


def test_scoring_without_a_verifier_says_so() -> None:
    with pytest.raises(SearchError, match="verifier"):
        tiny.execute(ScoreImages, images=PICTURES, verifier=None)


class Talking(tiny.Mean):
    """Needs a prompt, and notes what it was asked with, once for each."""

    needs_prompt = True

    def __init__(self, name: str = "talking") -> None:
        super().__init__(name)
        self.notes = ["loaded by a guess"]

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        note(self.notes, f"asked for {prompt}", about=prompt)
        return super().score(images, prompt)


@pytest.mark.parametrize("prompt", ["", " \n", None])
def test_scoring_without_a_prompt_is_refused_where_the_verifier_needs_one(prompt: Any) -> None:
    for verifier in (Talking(), ensemble(Talking("a"), tiny.Mean("b"))):
        with pytest.raises(SearchError, match=f"prompt: it is empty, and verifier {verifier.name} needs one: type"):
            tiny.execute(ScoreImages, images=GRAYS, verifier=verifier, prompt=prompt)
    assert len(tiny.execute(ScoreImages, images=GRAYS, verifier=tiny.Mean(), prompt=prompt).args[1]) == 5


def test_an_empty_batch_is_refused_before_anything_is_scored() -> None:
    for verifier in (tiny.Mean(), ensemble(tiny.Mean("a"), tiny.Mean("b"))):
        with pytest.raises(SearchError, match="images: got an empty batch; wire at least one image"):
            tiny.execute(ScoreImages, images=GRAYS[:0], verifier=verifier)


def test_an_image_of_one_channel_is_told_how_many_it_needs() -> None:
    verifier = VERIFIERS["broken_image"].load()
    with pytest.raises(SearchError, match=r"got \(5, 4, 4, 1\).* three channels \(no alpha channel, and no mask\)"):
        tiny.execute(ScoreImages, images=GRAYS[..., :1], verifier=verifier)


def test_the_report_of_scored_images_has_the_notes_on_their_prompt_and_on_no_other() -> None:
    verifier = Talking()
    for prompt in ("a cat", "a dog", "a cat"):
        report = tiny.execute(ScoreImages, images=GRAYS, verifier=verifier, prompt=prompt).args[2]
        assert report.notes == ["loaded by a guess", f"asked for {prompt}"]
    both = ensemble(Talking("a"), Talking("b"))
    report = tiny.execute(ScoreImages, images=GRAYS, verifier=both, prompt="a cat").args[2]
    assert report.notes.count("asked for a cat") == 1


def test_a_search_tells_the_notes_on_its_own_prompt_also_those_of_the_held_out_verifier() -> None:
    verifier, held_out = Talking(), Talking("held")
    for prompt in ("a cat", "a dog", "a cat"):
        out = tiny.search(tiny.sd3(), max_candidates=2, verifier=verifier, held_out=held_out, prompt=prompt)
        assert [each for each in out.args[5].notes if each.startswith("asked")] == [f"asked for {prompt}"]


def test_ranks_of_scored_images_come_from_the_whole_batch() -> None:
    made = ensemble(tiny.Mean("bright"), Red("red"), method="rank_mean")
    out = tiny.execute(ScoreImages, images=PICTURES, verifier=made)
    assert out.args[1] == sorted(out.args[1], reverse=True) and set(out.args[1]) <= {i / 8 for i in range(9)}


def test_a_managed_verifier_scores_as_the_verifier_itself_and_is_owned_by_comfyui() -> None:
    network = Network()
    owned = managed(network)
    assert isinstance(owned, ManagedVerifier) and isinstance(owned.patcher, comfy.model_patcher.ModelPatcher)
    assert (owned.name, owned.notes, owned.scale, owned.needs_prompt) == ("network", ["a note"], (0.5, 2.0), False)
    with torch.inference_mode():
        expected = network.score(PICTURES, "")
        assert torch.equal(owned.score(PICTURES, ""), expected)
        assert any(m.model is owned.patcher for m in comfy.model_management.current_loaded_models)
        comfy.model_management.unload_all_models()
        assert not any(m.model is owned.patcher for m in comfy.model_management.current_loaded_models)
        assert torch.equal(owned.score(PICTURES, ""), expected)


def test_a_verifier_without_a_network_is_left_alone() -> None:
    plain = tiny.Mean()
    assert managed(plain) is plain


def test_a_managed_verifier_can_be_cancelled() -> None:
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        managed(Network()).score(PICTURES, "")


def test_an_ensemble_of_managed_verifiers_scores_and_tells_their_notes() -> None:
    made = ensemble(managed(Network()), tiny.Mean())
    report = tiny.search(tiny.sd3(), verifier=made, max_candidates=3).args[5]
    assert "a note" in report.notes and len(report.finished) == 3


@pytest.mark.parametrize("key", VERIFIERS)
def test_every_verifier_of_the_drop_down_loads_from_its_defaults_and_scores(key: str) -> None:
    register_folders()
    kind = VERIFIERS[key]
    missing = [s for s in kind.settings if s.kind == "file" and s.default not in models_in(s.folders)]
    if missing:
        pytest.skip(f"{missing[0].default} is not in this checkout")
    if key == "endpoint_judge" or any(s.kind in SOCKETS and not s.optional for s in kind.settings):
        pytest.skip("it needs a server or a model of the graph: it has a test of its own as a node")
    widgets = {setting.name: setting.default for setting in kind.settings}
    made = tiny.execute(VerifierNode, verifier={"verifier": kind.name, **widgets}).args[0]
    with torch.inference_mode():
        scores = made.score(torch.rand(2, 64, 64, 3), "a red circle")
    assert scores.shape == (2,) and made.name
    assert hasattr(made, "patcher") == (made.module is not None)


def test_the_drop_down_offers_every_verifier_and_its_settings() -> None:
    schema = VerifierNode.GET_SCHEMA()
    options = {option.key: [i.id for i in option.inputs] for option in schema.inputs[0].options}
    assert options == {kind.name: [s.name for s in kind.settings] for kind in VERIFIERS.values()}


def test_numbers_of_a_widget() -> None:
    assert numbers("w", " 1,2 ,3 ", 3, 0.0) == [1.0, 2.0, 3.0] and numbers("w", "", 2, 7.0) == [7.0, 7.0]


def test_model_files_are_found_below_their_folders(tmp_path: Any) -> None:
    for name in ("noise_search_test", "noise_search_other"):
        folder_paths.add_model_folder_path(name, str(tmp_path / name))
    both = ("noise_search_test", "noise_search_other")
    assert choices(both) == [] and choices(both, "x/a.safetensors", optional=True) == ["none", "x/a.safetensors"]
    (tmp_path / both[0] / "deep").mkdir(parents=True)
    (tmp_path / both[1]).mkdir()
    for name in ("a.safetensors", "deep/b.pt", "c.ckpt"):
        (tmp_path / both[0] / name).write_bytes(b"")
    (tmp_path / both[1] / "a.safetensors").write_bytes(b"")
    assert choices(both) == ["a.safetensors", "deep/b.pt", "noise_search_other/a.safetensors"]
    assert path_of(both, "deep/b.pt") == str(tmp_path / both[0] / "deep" / "b.pt")
    assert path_of(both, "noise_search_other/a.safetensors") == str(tmp_path / both[1] / "a.safetensors")
    assert path_of(both, NONE) == path_of(both, None) == ""
    # what is not there is named with the place where it belongs: the verifier then says where to get it
    assert path_of(both, "new/model.safetensors") == str(tmp_path / both[0] / "new/model.safetensors")
