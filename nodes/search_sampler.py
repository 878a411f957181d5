"""Search Sampler: KSampler that searches."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy_api.latest import io

from .. import search
from ..search.probe import collapse
from ..search.report import SearchReport
from ..search.run import run
from ..search.space import Candidates
from ..verifiers.notes import notes_on
from . import sockets
from .candidates import WiredCandidates, candidates_around
from .guided_sampler import GuidedSampler
from .live import FINISH, LiveSearch
from .noise import packed
from .origin import Origin
from .prompt_text import prompt_of
from .provenance import announce

SEED = io.Int.Input(
    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
    tooltip="Candidate 0 is exactly this seed, as KSampler uses it. With candidates wired, theirs is candidate 0 and "
    "this one drives the search's own draws.",
)  # fmt: skip


def search_inputs() -> list[io.Input]:
    """The inputs that both samplers share. New ones go last, and are optional."""
    return [
        io.Vae.Input("vae", tooltip="Decodes candidates for the verifier."),
        sockets.Verifier.Input("verifier", tooltip="What the search looks for: a Verifier or a Verifier Ensemble."),
        io.String.Input("prompt", multiline=True, default="", optional=True,
                        tooltip="What the verifier compares images with, as it stands. Empty = the text that feeds the "
                        "sampler, without weights such as (cat:1.2), brackets and embedding: words."),
        io.Int.Input("max_candidates", default=16, min=0, max=100000, optional=True,
                     tooltip="Finished images. 0 = off."),
        io.Int.Input("max_nfe", default=0, min=0, max=100000000, optional=True,
                     tooltip="Model calls per image and step; a positive and its negative count once. 0 = off."),
        io.Float.Input("max_seconds", default=0.0, min=0.0, max=1000000.0, step=1.0, optional=True,
                       tooltip="Seconds from the first model call. 0 = off."),
        io.Float.Input("target_score", default=0.0, min=-1000000.0, max=1000000.0, step=0.01, optional=True,
                       tooltip="Stop at the first image that scores this much. 0 = off."),
        io.Int.Input("patience", default=0, min=0, max=100000, optional=True,
                     tooltip="Stop after so many images in a row without a better one. 0 = off."),
        io.Int.Input("batch_size", default=0, min=0, max=1024, optional=True,
                     tooltip="Candidates per model call. 0 = what fits by ComfyUI's estimate, up to 4, and one by one "
                     "with a target_score or in Search: Guided; where images are rendered whole, your own candidate "
                     "comes first, alone. It is halved when memory runs out, and never changes which candidates are "
                     "tried."),
        io.Int.Input("top_k", default=4, min=1, max=256, optional=True,
                     tooltip="How many images to return, best first."),
        sockets.NoiseCandidates.Input("candidates", optional=True,
                                      tooltip="From Noise Candidate. Unwired = the seed above."),
        sockets.SearchAlgorithm.Input("algorithm", optional=True,
                                      tooltip="From a Search node. Unwired = auto: pruned best of N where model calls "
                                      "or seconds are the limit, the sampler can pause and early scores of the "
                                      "verifier are known to tell something, else random search."),
        sockets.Verifier.Input("held_out", optional=True,
                               tooltip="A verifier that scores the finished images for the report and is never "
                               "optimised: it shows whether the search pleases only its own judge."),
        io.Float.Input("distinct", default=1.0, min=0.0, max=1.0, step=0.01, optional=True,
                       tooltip="Of the top k, none is as like a better one as this cosine: lower = more different. "
                       "1 = off. Where fewer are distinct, fewer are returned."),
        sockets.Verifier.Input("distinct_by", optional=True,
                               tooltip="Whose features tell which images are alike: CLIPScore, Reference Similarity "
                               "(DINO) and others. Unwired = the verifier's, or else small thumbnails."),
        io.Vae.Input("preview_vae", optional=True,
                     tooltip="A small VAE of the same model family, such as TAESD, for images on the way and scouts, "
                     "which only have to be ranked: cheaper looks, and far less memory for Search: Guided. Finished "
                     "images always come from vae. Unwired = vae."),
    ]  # fmt: skip


def search_outputs() -> list[io.Output]:
    """The outputs that both samplers share."""
    return [
        io.Latent.Output(display_name="latent", tooltip="The best candidate."),
        io.Image.Output(display_name="images", tooltip="The top k, best first."),
        io.Noise.Output(display_name="noise", tooltip="The winner's start noise, for SamplerCustomAdvanced."),
        io.Int.Output(display_name="seed", tooltip="The winner's seed, for KSampler, where it has one."),
        io.Float.Output(display_name="score", tooltip="The winner's, by verifier."),
        sockets.report_output(),
    ]


#: What a node that searches asks ComfyUI for, beside its inputs.
HIDDEN = [io.Hidden.unique_id, io.Hidden.dynprompt, io.Hidden.prompt, io.Hidden.extra_pnginfo]


def search_schema(node_id: str, display_name: str, description: str, inputs: list[io.Input]) -> io.Schema:
    """A node that runs a search. Its result depends on Finish now, so equal nodes must not share one."""
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category=sockets.CATEGORY,
        description=description,
        inputs=[*inputs, *search_inputs()],
        outputs=search_outputs(),
        hidden=HIDDEN,
        not_idempotent=True,
        has_intermediate_output=True,
    )


class SearchSampler(io.ComfyNode):
    """KSampler's inputs and habits, and a search around them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return search_schema(
            "NoiseSearchSampler",
            "Search Sampler",
            "KSampler that searches for the noise with the best image. With one candidate it is KSampler, bit for bit.",
            [
                io.Model.Input("model"),
                SEED,
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps of every candidate."),
                io.Float.Input(
                    "cfg",
                    default=8.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strongly the prompt steers the image, as in KSampler.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    tooltip="The sampler that renders every candidate.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    tooltip="How fast noise is removed, as in KSampler.",
                ),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image"),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1, candidates keep part of latent_image and differ less.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return FINISH.ended_early(str(cls.hidden.unique_id))

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        return search_as_ksampler(cls, **settings)


def search_as_ksampler(
    node: Any, model: Any = None, seed: int = 0, steps: int = 20, cfg: float = 8.0, sampler_name: str = "euler",
    scheduler: str = "normal", positive: Any = None, negative: Any = None, latent_image: Any = None,
    denoise: float = 1.0, **settings: Any,
) -> io.NodeOutput:  # fmt: skip
    """Run the search that KSampler's widgets and those of `search_with` describe."""
    guider, sampler, sigmas = as_ksampler(model, steps, cfg, sampler_name, scheduler, positive, negative, denoise)
    wired = WiredCandidates(Candidates.of_seed(seed))
    dtype = comfy.model_management.intermediate_dtype()
    return search_with(node, guider, sampler, sigmas, latent_image, wired, seed, dtype, ("positive",), **settings)


def as_ksampler(
    model: Any = None, steps: int = 20, cfg: float = 8.0, sampler_name: str = "euler", scheduler: str = "normal",
    positive: Any = None, negative: Any = None, denoise: float = 1.0,
) -> tuple[Any, Any, torch.Tensor]:  # fmt: skip
    """The GUIDER, SAMPLER and SIGMAS that KSampler makes of its widgets."""
    stock = comfy.samplers.KSampler(
        model, steps, model.load_device, sampler_name, scheduler, denoise, model.model_options
    )
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider, comfy.samplers.sampler_object(stock.sampler), stock.sigmas


class SearchSamplerAdvanced(io.ComfyNode):
    """SamplerCustomAdvanced's inputs and habits, and a search around them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return search_schema(
            "NoiseSearchSamplerAdvanced",
            "Search Sampler (Advanced)",
            "SamplerCustomAdvanced that searches: any GUIDER, SAMPLER and SIGMAS. The wired NOISE is candidate 0.",
            [
                io.Noise.Input("noise", tooltip="Candidate 0, and the seed of the further ones."),
                io.Guider.Input("guider"),
                io.Sampler.Input("sampler"),
                io.Sigmas.Input("sigmas"),
                io.Latent.Input("latent_image"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        return FINISH.ended_early(str(cls.hidden.unique_id))

    @classmethod
    def execute(
        cls, noise: Any = None, guider: Any = None, sampler: Any = None, sigmas: Any = None, latent_image: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:  # fmt: skip
        wired = candidates_around(noise, int(noise.seed), None)
        return search_with(
            cls, guider, sampler, sigmas, latent_image, wired, int(noise.seed), None, ("guider",), **settings
        )


def search_with(
    node: Any,
    guider: Any,
    sampler: Any,
    sigmas: torch.Tensor,
    latent_image: dict[str, Any],
    wired: WiredCandidates,
    seed: int,
    dtype: torch.dtype | None,
    text_inputs: tuple[str, ...],
    vae: Any = None,
    verifier: Any = None,
    prompt: str | None = "",
    max_candidates: int = 16,
    max_nfe: int = 0,
    max_seconds: float = 0.0,
    target_score: float = 0.0,
    patience: int = 0,
    batch_size: int = 0,
    top_k: int = 4,
    candidates: WiredCandidates | None = None,
    algorithm: search.Algorithm | None = None,
    held_out: Any = None,
    distinct: float = 1.0,
    distinct_by: Any = None,
    preview_vae: Any = None,
    part: str = "",
) -> io.NodeOutput:
    """Run the search that a node's widgets describe and make the node's output. `part`: of a node with several."""
    sockets.check_verifier("verifier", verifier)
    for name, other in (("held_out", held_out), ("distinct_by", distinct_by)):
        if other is not None:
            sockets.check_verifier(name, other)
    if vae is None:
        raise search.SearchError("vae: got nothing; wire the VAE that belongs to the model")
    node_id = str(node.hidden.unique_id)
    budget = search.Budget(max_candidates, max_nfe, max_seconds, target_score, patience)
    wired = candidates or wired
    algorithm = algorithm or search.AUTO
    port = GuidedSampler(guider, sampler, sigmas, latent_image, vae, wired.given, preview_vae)
    if wired.given is not None and budget.candidates != 1 and not packed(wired.given.generate_noise(port.latent)).any():
        raise search.SearchError(
            "noise: got a NOISE that is zero everywhere (Disable Noise), so there is nothing to search; "
            "wire Random Noise"
        )
    refusal = port.abilities.midway_refusal() if algorithm.acts_midway else None
    if refusal:
        raise search.SearchError(
            f"algorithm: {algorithm.name} pauses images mid-way, and {refusal}; use Search: Random or Search: "
            "Zero-Order, or remove that patch or sampler"
        )
    refusal = port.abilities.gradient_refusal() if algorithm.needs_gradient and budget.candidates != 1 else None
    if refusal:
        raise search.SearchError(
            f"algorithm: {algorithm.name} takes the gradient of the score back to the start noise, and {refusal}; or "
            "use Search: Random or Search: Zero-Order, which need none"
        )
    prompt = prompt or ""  # a wire may bring nothing
    if not prompt.strip() and any(getattr(v, "needs_prompt", True) for v in (verifier, held_out) if v is not None):
        prompt = prompt_of(node.hidden.dynprompt, node_id, text_inputs)
    origin = Origin.of(port.latent, wired.given, dtype)
    with LiveSearch(node.hidden, part, origin) as live:
        port.viewer = live.previews(guider.model_patcher)
        report = run(
            algorithm, port, verifier, budget, candidates=wired.candidates, prompt=prompt, seed=seed,
            held_out=held_out, distinct=distinct, distinct_by=distinct_by, top_k=top_k, batch=batch_size,
            folder=live.folder, watcher=live,
        )  # fmt: skip
    report.origin = origin  # for Pick From Report
    report.notes += [*port.notes, *notes_on((verifier, held_out), prompt), *collapse(report)]
    live.keep(report)
    announce(node.hidden, part, report)
    return search_output(report)


def search_output(report: SearchReport) -> io.NodeOutput:
    """A node's outputs from a report. What the winner does not have (a seed, a NOISE) blocks that output alone."""
    latent, noise, seed, score = report.origin.outputs(report.top[0], "the winner")
    return io.NodeOutput(latent, top_images(report), noise, seed, score, report, ui={"noise_search": [summary(report)]})


def top_images(report: SearchReport) -> torch.Tensor:
    """The pictures of the top k, best first; of a video or a batch, all frames of the best only."""
    each = [kept.images.reshape(-1, *kept.images.shape[-3:]) for kept in report.top]
    return each[0] if len(each[0]) > 1 else torch.cat(each)


def summary(report: SearchReport) -> dict[str, Any]:
    """What the node shows when the search is over. JSON only: the host does not survive anything else."""
    full = report.to_dict()
    keys = (
        "stopped", "nfe", "model_rows", "seconds", "candidates", "best", "gains", "agreements", "scouting", "warnings",
        "notes",
    )  # fmt: skip
    return {**{key: full[key] for key in keys}, "first": full["evaluations"][0] if full["evaluations"] else None}
