"""Verifier, Verifier Ensemble and Score Images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd1_clip
import torch
from comfy_api.latest import io

from ..search import judging
from ..search.errors import SearchError
from ..search.recipe import Recipe
from ..search.report import Evaluation, Kept, SearchReport, ranked
from ..search.types import NAN, Row
from ..verifiers import METHODS, SCALES, VERIFIERS, VerifierEnsemble
from . import sockets
from .host_towers import HostImageTower, HostTextTower
from .host_vlm import HostVisionLanguageModel
from .memory import ManagedEnsemble, managed
from .model_files import choices, path_of

SOCKETS = {"image": io.Image, "clip_vision": io.ClipVision, "clip_text": io.Clip, "vlm": io.Clip}
PORTS = {"clip_vision": HostImageTower, "clip_text": HostTextTower, "vlm": HostVisionLanguageModel}


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
            outputs=[sockets.Verifier.Output(display_name="verifier")],
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
            outputs=[sockets.Verifier.Output(display_name="verifier")],
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
            description="Scores a batch of images and sorts it, best first. Images that cannot be judged come last.",
            inputs=[
                io.Image.Input("images"),
                sockets.Verifier.Input("verifier", tooltip="What scores the images."),
                io.String.Input("prompt", multiline=True, default="", optional=True,
                                tooltip="What a verifier such as CLIPScore compares the images with."),
            ],
            outputs=[
                io.Image.Output(display_name="sorted"),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="In the order of the sorted images."
                ),
                sockets.SearchReport.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(cls, images: Any = None, verifier: Any = None, prompt: str = "") -> io.NodeOutput:
        sockets.check_verifier("verifier", verifier)
        report = scored(images[..., :3].float().cpu(), verifier, prompt)
        order = [kept.evaluation.id for kept in report.top]
        order += [e.id for e in report.evaluations if e.id not in order]
        return io.NodeOutput(images[order], [report.evaluations[i].score for i in order], report)


def scored(images: torch.Tensor, verifier: Any, prompt: str) -> SearchReport:
    """A report on finished images [B, H, W, 3], as if a search had made them for nothing."""
    parts = judging.ask(verifier, images, prompt)
    scale = {"scales": judging.scales(verifier), "pooled": judging.is_pooled(verifier)}
    report = SearchReport({"verifier": verifier.name, "prompt": prompt, "algorithm": {"name": "score images"}, **scale})
    for i, score in enumerate(judging.combine(verifier, parts)):
        report.evaluations.append(Evaluation(i, i, None, 0.0, score, parts[i], {}, 0, 0, 0.0, None, ()))
    kept = [Kept(e, Row(Recipe(()), 0.0), images[e.id : e.id + 1]) for e in report.evaluations if e.can_win]
    report.top = ranked(kept)
    return report


def numbers(widget_name: str, text: str, count: int, missing: float) -> list[float]:
    """`count` numbers from a widget such as "1, 0.5"; "-" and an empty widget stand for `missing`."""
    words = text.replace(",", " ").split()
    if not words:
        return [missing] * count
    if len(words) != count:
        raise SearchError(
            f"{widget_name}: got {len(words)} values for {count} verifiers; expected one for each, or none"
        )
    try:
        return [missing if word == "-" else float(word) for word in words]
    except ValueError:
        raise SearchError(f"{widget_name}: got {text!r}; expected numbers such as 1, 0.5 (- = none)") from None
