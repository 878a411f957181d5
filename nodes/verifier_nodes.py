"""Verifier, Verifier Ensemble and Score Images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd1_clip
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..search import judging
from ..search.errors import SearchError
from ..search.recipe import Recipe
from ..search.report import Evaluation, Kept, SearchReport, ranked
from ..search.types import NAN, Row
from ..search.words import some
from ..verifiers import METHODS, SCALES, VERIFIERS, VerifierEnsemble
from ..verifiers.notes import notes_on
from . import sockets
from .host_towers import HostImageTower, HostTextTower
from .host_vlm import HostVisionLanguageModel
from .memory import ManagedEnsemble, managed
from .model_files import choices, path_of

SOCKETS = {"image": io.Image, "clip_vision": io.ClipVision, "clip_text": io.Clip, "vlm": io.Clip}
PORTS = {"clip_vision": HostImageTower, "clip_text": HostTextTower, "vlm": HostVisionLanguageModel}
NO_MINIMUM = -1000000.0  # not 0: many verifiers score the mean image 0, which makes it the minimum to ask for


def widget(setting: Any) -> io.Input:
    """The widget or the socket of one verifier setting."""
    if setting.kind in SOCKETS:
        return SOCKETS[setting.kind].Input(setting.name, tooltip=setting.tooltip, optional=setting.optional)
    shared = {"tooltip": setting.tooltip, "default": setting.default}
    if setting.kind == "float":
        return io.Float.Input(setting.name, min=setting.minimum, max=setting.maximum, step=setting.step, **shared)
    if setting.kind == "int":
        return io.Int.Input(setting.name, min=setting.minimum, max=setting.maximum, **shared)
    if setting.kind == "flag":
        return io.Boolean.Input(setting.name, **shared)
    if setting.kind in ("text", "lines"):
        return io.String.Input(setting.name, multiline=setting.kind == "lines", **shared)
    if setting.kind == "file":
        options = choices(setting.folders, setting.default, setting.optional)
        return io.Combo.Input(
            setting.name, options=options, default=setting.default or options[0], tooltip=setting.tooltip,
            optional=setting.optional,
        )  # fmt: skip
    return io.Combo.Input(setting.name, options=list(setting.options), **shared)


def value(setting: Any, given: Any) -> Any:
    """What a verifier gets for a setting: paths for file names, and ports for models of the host."""
    if setting.kind == "file":
        return path_of(setting.folders, given)
    if given is None or setting.kind not in PORTS:
        return given
    return PORTS[setting.kind](given)


class VerifierNode(io.ComfyNode):
    """One scoring model, chosen from a drop-down."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        options = [
            io.DynamicCombo.Option(kind.name, [widget(setting) for setting in kind.settings])
            for kind in VERIFIERS.values()
        ]
        return io.Schema(
            node_id="NoiseSearchVerifier",
            display_name="Verifier",
            category=sockets.CATEGORY,
            description="Scores images; bigger is better. "
            + " ".join(f"{k.name}: {k.description}" for k in VERIFIERS.values()),
            inputs=[io.DynamicCombo.Input("verifier", options=options, tooltip="Which verifier; its settings follow.")],
            outputs=[sockets.verifier_output()],
        )

    @classmethod
    def execute(cls, verifier: dict[str, Any] | None = None) -> io.NodeOutput:
        chosen = dict(verifier or {})
        name = chosen.pop("verifier", None)
        kinds = {kind.name: kind for kind in VERIFIERS.values()}
        if name not in kinds:
            raise SearchError(f"verifier: got {name!r}; expected one of {', '.join(kinds)}: choose it in the drop-down")
        # a widget that an API call leaves out has its default
        given = {s.name: value(s, chosen.get(s.name, s.default)) for s in kinds[name].settings}
        known = {
            "tokenizer": str(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"),
            "check_cancel": comfy.model_management.throw_exception_if_processing_interrupted,
        }
        of_host = {argument: known[argument] for argument in kinds[name].host}
        return io.NodeOutput(managed(kinds[name].load(**{**given, **of_host})))


class VerifierEnsembleNode(io.ComfyNode):
    """Several verifiers as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplatePrefix(sockets.Verifier.Input("verifier"), prefix="verifier", min=2, max=16)
        return io.Schema(
            node_id="NoiseSearchVerifierEnsemble",
            display_name="Verifier Ensemble",
            category=sockets.CATEGORY,
            description="Several verifiers made into one score: every single verifier can be fooled.",
            inputs=[
                io.Combo.Input("method", options=list(METHODS), default="z_score",
                               tooltip="z_score: weighted mean on each verifier's scale. rank_mean: mean rank among "
                               "the candidates, as in the paper. weighted_sum: weights times raw scores. worst_case: "
                               "the lowest z of all, so that none can be fooled alone."),
                io.String.Input("weights", default="", tooltip="One number per verifier, such as 1, 0.5. Empty: all 1; "
                                "0 = recorded but not counted."),
                io.String.Input("vetoes", default="", tooltip="One minimum per verifier, such as 0.2, - (- = none). "
                                "A candidate below a minimum cannot win."),
                io.Autogrow.Input("verifiers", template=template,
                                  tooltip="In the order of weights and vetoes. A free socket is always left."),
                io.Combo.Input("scale", options=list(SCALES), default="fixed", optional=True,
                               tooltip="Mean and standard deviation behind z_score and worst_case. fixed: those that "
                               "each verifier brings. pool: those of the candidates so far."),
            ],
            outputs=[sockets.verifier_output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, method: str = "z_score", weights: str = "", vetoes: str = "", verifiers: dict[str, Any] | None = None,
        scale: str = "fixed",
    ) -> io.NodeOutput:  # fmt: skip
        members = list((verifiers or {}).values())
        counted = numbers("weights", weights, len(members), 1.0)
        ensemble = VerifierEnsemble(members, method=method, weights=counted)
        minima = numbers("vetoes", vetoes, len(members), NAN)
        named = {m.name: v for m, v in zip(ensemble.members, minima, strict=True) if v == v}
        return io.NodeOutput(ManagedEnsemble(members, method=method, weights=counted, vetoes=named, scale=scale))


class ScoreImages(io.ComfyNode):
    """Scores and sorts any images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchScoreImages",
            display_name="Score Images",
            category=sockets.CATEGORY,
            description="Scores a batch of images and sorts it, best first. Images that cannot be judged come last. "
            "Keeps the best alone, if it is told how many or above which score.",
            inputs=[
                io.Image.Input("images"),
                sockets.Verifier.Input("verifier", tooltip="What scores the images."),
                io.String.Input("prompt", multiline=True, default="", optional=True,
                                tooltip="What a verifier such as CLIPScore compares the images with. Empty only where "
                                "the verifier needs none."),
                io.Int.Input("keep", default=0, min=0, max=100000, optional=True,
                             tooltip="Return so many of the best, and no image that cannot be judged or is vetoed. "
                             "0 = all."),
                io.Float.Input("minimum", default=NO_MINIMUM, min=NO_MINIMUM, max=1000000.0, step=0.01, optional=True,
                               tooltip="Return images that score this much or more, and none that cannot be judged or "
                               "is vetoed. -1000000 = off."),
                io.Latent.Input("latent", optional=True,
                                tooltip="What the images were decoded from, one row for each: it is sorted and cut "
                                "with them."),
            ],
            outputs=[
                io.Image.Output(display_name="sorted", tooltip="The best first."),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="In the order of the sorted images."
                ),
                sockets.SearchReport.Output(display_name="report", tooltip="On all images, returned or not."),
                io.Int.Output(display_name="indices", is_output_list=True,
                              tooltip="Where the sorted images stood in the batch, from 0, in their order."),
                io.Latent.Output(display_name="latent", tooltip="Of the sorted images, where latent is wired."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, images: Any = None, verifier: Any = None, prompt: str = "", keep: int = 0, minimum: float = NO_MINIMUM,
        latent: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        sockets.check_verifier("verifier", verifier)
        prompt = prompt or ""  # a wire may bring nothing
        check_scorable(images, verifier, prompt)
        check_rows(latent, len(images))
        report = scored(images[..., :3].float().cpu(), verifier, prompt)
        order = returned(report, keep, minimum)
        scores = [report.evaluations[i].score for i in order]
        return io.NodeOutput(images[order], scores, report, order, latent_rows(latent, order))


def returned(report: SearchReport, keep: int, minimum: float) -> list[int]:
    """Which images to return, best first; without a limit all, those without a score last.

    Raises SearchError where a limit leaves none.
    """
    best = [kept.evaluation.id for kept in report.top]
    if keep < 1 and minimum <= NO_MINIMUM:
        return best + [e.id for e in report.evaluations if not e.can_win]
    if not best:
        raise SearchError(
            f"keep, minimum: no image is left: {report.why_none_wins}; change the verifier or its vetoes, or set keep "
            "to 0 and minimum to -1000000 to have them all"
        )
    enough = [id for id in best if minimum <= NO_MINIMUM or report.evaluations[id].score >= minimum]
    if not enough:
        raise SearchError(
            f"minimum: got {minimum:g}, and the best of {some(len(report.evaluations), 'image')} scores "
            f"{report.top[0].evaluation.score:.6g}: lower minimum, or wire better images"
        )
    return enough[:keep] if keep > 0 else enough


def check_scorable(images: torch.Tensor, verifier: Any, prompt: str) -> None:
    """Refuse an empty batch, and an empty prompt where the verifier needs one."""
    if not len(images):
        raise SearchError("images: got an empty batch; wire at least one image")
    if not prompt.strip() and getattr(verifier, "needs_prompt", True):
        raise SearchError(
            f"prompt: it is empty, and verifier {verifier.name} needs one: type what the images should show into the "
            "prompt widget"
        )


def check_rows(latent: dict[str, Any] | None, images: int) -> None:
    """Refuse a LATENT whose rows are not those of the images."""
    rows = images if latent is None else latent["samples"].shape[0]
    if rows != images:
        raise SearchError(
            f"latent: got {some(rows, 'row')} for {some(images, 'image')}; expected one for each: wire the LATENT that "
            "the images were decoded from (the frames of a video have no rows of their own)"
        )


def latent_rows(latent: dict[str, Any] | None, rows: list[int]) -> Any:
    """Rows of a LATENT in that order, each as the host's LatentFromBatch gives it; blocked where there is none."""
    if latent is None:
        return ExecutionBlocker("latent: nothing is wired to it; wire the LATENT that the images were decoded from")
    numbers = latent.get("batch_index", range(latent["samples"].shape[0]))  # what tells the rows' noises apart
    chosen = {**latent, "samples": latent["samples"][rows], "batch_index": [numbers[row] for row in rows]}
    mask = latent.get("noise_mask")
    if mask is not None and mask.shape[0] > 1:  # one mask is for all rows; too few are repeated
        chosen["noise_mask"] = mask[[row % mask.shape[0] for row in rows]]
    return chosen


def scored(images: torch.Tensor, verifier: Any, prompt: str) -> SearchReport:
    """A report on finished images [B, H, W, 3], as if a search had made them for nothing."""
    parts = judging.ask(verifier, images, prompt)
    scale = {"scales": judging.scales(verifier), "pooled": judging.is_pooled(verifier)}
    report = SearchReport({"verifier": verifier.name, "prompt": prompt, "algorithm": {"name": "score images"}, **scale})
    for i, score in enumerate(judging.combine(verifier, parts)):
        report.evaluations.append(Evaluation(i, i, None, 0.0, score, parts[i], {}, 0, 0, 0.0, None, ()))
    kept = [Kept(e, Row(Recipe(()), 0.0), images[e.id : e.id + 1]) for e in report.evaluations if e.can_win]
    report.top = ranked(kept)
    report.notes = notes_on([verifier], prompt)
    return report


def numbers(widget_name: str, text: str, count: int, missing: float) -> list[float]:
    """`count` numbers from a widget such as "1, 0.5"; "-" and an empty widget stand for `missing`."""
    words = text.replace(",", " ").split()
    if not words:
        return [missing] * count
    if len(words) != count:
        raise SearchError(
            f"{widget_name}: got {some(len(words), 'value')} for {some(count, 'verifier')}; expected one for each, or "
            "none"
        )
    try:
        return [missing if word == "-" else float(word) for word in words]
    except ValueError:
        raise SearchError(f"{widget_name}: got {text!r}; expected numbers such as 1, 0.5 (- = none)") from None
