"""One small node per search algorithm."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .. import search
from ..search.beam import EXPANSION, SHRINKING
from ..search.curves import CURVES
from ..search.depth_first import THRESHOLDS
from ..search.gradient_search import NORMS
from ..search.smc import METHODS, POTENTIALS, PRESETS, TRANSITIONS
from ..search.transitions import FRESH
from . import sockets


def _schema(name: str, title: str, description: str, inputs: list[io.Input]) -> io.Schema:
    return io.Schema(
        node_id=f"NoiseSearchAlgorithm{name}",
        display_name=f"Search: {title}",
        category=f"{sockets.CATEGORY}/algorithms",
        description=description,
        inputs=inputs,
        outputs=[sockets.SearchAlgorithm.Output(display_name="algorithm", tooltip="For algorithm of a search.")],
    )


class RandomSearch(io.ComfyNode):
    """Best of N."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("Random", "Random", "Best of N fresh noises: simple, diverse, hard to beat.", [])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(search.algorithm("random"))


class PrunedSearch(io.ComfyNode):
    """Pruned best-of-N."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Pruned", "Pruned",
            "Best of N that drops on the way what does not look like a winner, so that more noises are tried for the "
            "same model calls. Give it max_nfe to plan for. Needs a sampler without memory, such as euler, for a "
            "winner that stock makes again from its seed.",
            [
                io.Combo.Input("curve", options=list(CURVES), default="cautious",
                               tooltip="How early this verifier sees the best on this model: where to cut is computed "
                               "from it. cautious cuts late."),
                io.Float.Input("judge_cost", default=0.0, min=0.0, max=20.0, step=0.05,
                               tooltip="What decoding and scoring one half-made image costs, in model calls: the plan "
                               "then looks less often."),
                io.String.Input("measured_curve", default="", optional=True,
                                tooltip="From Measure Curve: used instead of the curve above. Its text can be kept "
                                "here for later."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, curve: str = "cautious", judge_cost: float = 0.0, measured_curve: str = "") -> io.NodeOutput:
        settings = {"curve": curve, "judge_cost": judge_cost, "measured_curve": measured_curve}
        return io.NodeOutput(search.algorithm("pruned", **settings))


class ZeroOrderSearch(io.ComfyNode):
    """ZO-N."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "ZeroOrder", "Zero-Order",
            "Walks from a noise to better neighbours, and starts afresh when none is better. Stays close to what it "
            "found: good for refining a liked image.",
            [
                io.Int.Input("neighbours", default=4, min=1, max=256, tooltip="Neighbours per round (N of ZO-N)."),
                io.Float.Input("cosine", default=0.95, min=-1.0, max=1.0, step=0.01,
                               tooltip="How close neighbours are to the pivot: 1 = the same noise, 0 = unrelated."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, neighbours: int = 4, cosine: float = 0.95) -> io.NodeOutput:
        return io.NodeOutput(search.algorithm("zero_order", neighbours=neighbours, cosine=cosine))


class SearchOverPaths(io.ComfyNode):
    """Paths-N."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        share = "as a share of noise: sigma of a flow model, sigma / (1 + sigma) of others."
        return _schema(
            "Paths", "Paths",
            "Re-noises half-made images several ways and goes on with the best. Needs a sampler without memory, "
            "such as euler.",
            [
                io.Int.Input("paths", default=2, min=1, max=64, tooltip="Paths kept after each round (N)."),
                io.Int.Input("width", default=5, min=1, max=64, tooltip="Ways each path is re-noised per round (M)."),
                io.Float.Input("start", default=0.11, min=0.01, max=0.99, step=0.01,
                               tooltip=f"Where paths start, {share}"),
                io.Float.Input("forward", default=0.78, min=0.01, max=0.98, step=0.01,
                               tooltip=f"How far a round re-noises, {share}"),
                io.Float.Input("backward", default=0.81, min=0.02, max=0.99, step=0.01,
                               tooltip="How far a round denoises; must be larger than forward."),
                io.Int.Input("leg_steps", default=0, min=0, max=1000,
                             tooltip="Steps of each way down; 0 = the steps of the schedule."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, paths: int = 2, width: int = 5, start: float = 0.11, forward: float = 0.78, backward: float = 0.81,
        leg_steps: int = 0,
    ) -> io.NodeOutput:  # fmt: skip
        if backward <= forward:
            raise search.SearchError(
                f"Search: Paths: got forward={forward:g} and backward={backward:g}; expected backward larger than "
                "forward, or the paths would never reach an image"
            )
        settings = {"paths": paths, "width": width, "start": start, "forward": forward, "backward": backward}
        return io.NodeOutput(search.algorithm("paths", **settings, leg_steps=leg_steps))


class TrustRegionSearch(io.ComfyNode):
    """Local search whose step adapts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "TrustRegion", "Trust Region",
            "Walks like Zero-Order, with steps that grow while they succeed and shrink when they fail; starts afresh "
            "when they have become too small.",
            [
                io.Int.Input("starts", default=8, min=1, max=1024,
                             tooltip="Fresh noises before each walk; it begins at the best of them."),
                io.Int.Input("neighbours", default=4, min=1, max=256, tooltip="Neighbours per round."),
                io.Float.Input("cosine", default=0.8, min=0.0, max=0.99, step=0.01,
                               tooltip="How close the first neighbours are to the centre: 1 = the same noise."),
                io.Float.Input("grow", default=1.3, min=1.0, max=10.0, step=0.1,
                               tooltip="What the angle is multiplied by after a round that found a better noise."),
                io.Float.Input("shrink", default=0.7, min=0.1, max=0.99, step=0.01,
                               tooltip="What the angle is multiplied by after a round that found none."),
                io.Float.Input("smallest", default=0.99, min=0.5, max=0.9999, step=0.001,
                               tooltip="The cosine at which the region has collapsed and a new walk begins."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, starts: int = 8, neighbours: int = 4, cosine: float = 0.8, grow: float = 1.3, shrink: float = 0.7,
        smallest: float = 0.99,
    ) -> io.NodeOutput:  # fmt: skip
        settings = {"starts": starts, "neighbours": neighbours, "cosine": cosine, "grow": grow, "shrink": shrink}
        return io.NodeOutput(search.algorithm("trust_region", **settings, smallest=smallest))


class AxesSearch(io.ComfyNode):
    """Random search over more than the noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Axes", "Axes",
            "Best of N over more than the noise: the conditioning, cfg and step noise differ too. For models whose "
            "seeds all give nearly the same image; Seed Probe says whether yours is one.",
            [
                io.Boolean.Input("noise", default=True,
                                 tooltip="A fresh start noise for every candidate. Off = that of your own seed."),
                io.Float.Input("conditioning", default=2.0, min=0.0, max=10.0, step=0.05,
                               tooltip="Noise on the text embeddings of the positive, from 0 to this, in their own "
                               "standard deviations: more = more different, and further from the prompt. 0 = off."),
                io.Float.Input("cfg", default=0.0, min=0.0, max=4.0, step=0.05,
                               tooltip="How far cfg, or guidance where that is what steers the model, goes from yours: "
                               "0.5 = from two thirds to one and a half times. 0 = off."),
                io.Boolean.Input("step_noise", default=False,
                                 tooltip="Other random steps of an ancestral or SDE sampler, for when noise is off."),
                io.Float.Input("refine", default=0.0, min=0.0, max=1.0, step=0.05,
                               tooltip="Share of the candidates that are the best so far, changed on one axis."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, noise: bool = True, conditioning: float = 2.0, cfg: float = 0.0, step_noise: bool = False,
        refine: float = 0.0,
    ) -> io.NodeOutput:  # fmt: skip
        settings = {"noise": noise, "conditioning": conditioning, "cfg": cfg, "step_noise": step_noise}
        return io.NodeOutput(search.algorithm("axes", **settings, refine=refine))


class PCNSearch(io.ComfyNode):
    """Preconditioned Crank-Nicolson."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "PCN", "pCN",
            "Markov chains over noises that prefer high scores and never drift into noise that is unlikely: Zero-Order "
            "with a rule for when to move.",
            [
                io.Int.Input("starts", default=8, min=2, max=1024,
                             tooltip="Fresh noises first: they set the scale of scores, and the chains begin there."),
                io.Int.Input("chains", default=4, min=1, max=256, tooltip="Chains that walk side by side."),
                io.Float.Input("cosine", default=0.9, min=0.0, max=0.999, step=0.01,
                               tooltip="How much of its noise a chain keeps in a step: 1 = all, 0 = nothing."),
                io.Float.Input("temperature", default=0.2, min=0.01, max=100.0, step=0.01,
                               tooltip="Lower = steps to worse noises are rarer. In standard deviations of the scores "
                                       "of fresh noises."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, starts: int = 8, chains: int = 4, cosine: float = 0.9, temperature: float = 0.2
    ) -> io.NodeOutput:
        settings = {"starts": starts, "chains": chains, "cosine": cosine, "temperature": temperature}
        return io.NodeOutput(search.algorithm("pcn", **settings))


class SpectralSearch(io.ComfyNode):
    """Cross-entropy search of low frequencies."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Spectral", "Spectral",
            "Searches only the low frequencies of one noise, which decide the layout, and keeps its details.",
            [
                io.Int.Input("starts", default=8, min=1, max=1024,
                             tooltip="Fresh noises first; the best lends its high frequencies to all others."),
                io.Float.Input("band", default=0.25, min=0.01, max=1.0, step=0.01,
                               tooltip="Share of the frequencies along each axis that is searched: 1 = all."),
                io.Int.Input("population", default=8, min=1, max=1024, tooltip="Samples per round."),
                io.Int.Input("elites", default=3, min=2, max=256,
                             tooltip="The best so far whose mean the next samples are drawn around."),
                io.Float.Input("rate", default=1.0, min=0.05, max=1.0, step=0.05,
                               tooltip="How far the mean moves to that of the elites in a round."),
                io.Float.Input("smallest", default=0.2, min=0.01, max=0.99, step=0.01,
                               tooltip="The spread of the samples (1 = fresh) below which it starts afresh."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, starts: int = 8, band: float = 0.25, population: int = 8, elites: int = 3, rate: float = 1.0,
        smallest: float = 0.2,
    ) -> io.NodeOutput:  # fmt: skip
        settings = {"starts": starts, "band": band, "population": population, "elites": elites, "rate": rate}
        return io.NodeOutput(search.algorithm("spectral", **settings, smallest=smallest))


class EvolutionarySearch(io.ComfyNode):
    """EvoSearch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        share = "as a share of noise: sigma of a flow model, sigma / (1 + sigma) of others."
        return _schema(
            "Evolution", "Evolution",
            "Generations: fresh noises, then mutations of the best noises, then of the best half-made images, which "
            "cost less. Needs a sampler without memory, such as euler.",
            [
                io.Float.Input("fresh", default=0.4, min=0.05, max=0.95, step=0.05,
                               tooltip="Share of the budget for fresh noises; the generations share the rest."),
                io.Int.Input("elites", default=3, min=1, max=256, tooltip="Parents of each generation."),
                io.Float.Input("mutation", default=0.4, min=0.01, max=1.0, step=0.01,
                               tooltip="How much of a start noise is replaced by a fresh one: 0 = nothing, 1 = all."),
                io.Int.Input("levels", default=3, min=0, max=32,
                             tooltip="Generations that mutate half-made images; 0 = start noises only."),
                io.Float.Input("lowest", default=0.4, min=0.05, max=0.95, step=0.01,
                               tooltip=f"Where the last of them does, {share}"),
                io.Float.Input("strength", default=0.2, min=0.01, max=0.9, step=0.01,
                               tooltip=f"How much noise a half-made image loses and gets again, {share}"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, fresh: float = 0.4, elites: int = 3, mutation: float = 0.4, levels: int = 3, lowest: float = 0.4,
        strength: float = 0.2,
    ) -> io.NodeOutput:  # fmt: skip
        settings = {"fresh": fresh, "elites": elites, "mutation": mutation, "levels": levels, "lowest": lowest}
        return io.NodeOutput(search.algorithm("evolution", **settings, strength=strength))


class ParticleSearch(io.ComfyNode):
    """Sequential Monte Carlo."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        options = [io.DynamicCombo.Option(name, []) for name in PRESETS]
        return _schema(
            "SMC", "SMC",
            "Several images go down together; on the way the promising ones are copied, the others end, and copies "
            "part by fresh noise. Needs a sampler without memory, such as euler.",
            [
                io.DynamicCombo.Input(
                    "preset", options=[*options, io.DynamicCombo.Option("custom", cls._widgets())],
                    tooltip="tuned: this pack's own settings. guided: its own for verifiers with a gradient. FK, BFS, "
                    "DAS, SVDD, TreeG: those of the papers, on raw scores. custom: your own.",
                ),
            ],
        )  # fmt: skip

    @staticmethod
    def _widgets() -> list[io.Input]:
        share = "as a share of the steps."
        return [
            io.Int.Input("particles", default=4, min=0, max=1024,
                         tooltip="Images that go down together. 0 = as many as the NFE budget holds."),
            io.Combo.Input("potential", options=list(POTENTIALS), default="diff",
                           tooltip="What counts of the scores on the way: the best, the last gain, the sum, the last."),
            io.Float.Input("temperature", default=100.0, min=0.0, max=100000.0, step=0.1,
                           tooltip="How much better scores multiply: 0 = not at all, 100 = nearly only the best."),
            io.Boolean.Input("increase", default=True,
                             tooltip="Rise to the temperature from 0, because early x0 predictions say little."),
            io.Boolean.Input("raw", default=False,
                             tooltip="Off: scores in standard deviations, whatever the verifier. On: as they are."),
            io.Combo.Input("resampling", options=list(METHODS), default="ssp",
                           tooltip="systematic and ssp keep most variety. top: the best share goes on."),
            io.Float.Input("survivors", default=0.4, min=0.0, max=1.0, step=0.05,
                           tooltip="With top: the share that goes on. 0 = the best alone."),
            io.Float.Input("ess", default=0.5, min=0.0, max=1.0, step=0.05,
                           tooltip="Copy only when the effective share of particles is below this. 1 = always."),
            io.Float.Input("start", default=0.2, min=0.0, max=1.0, step=0.01,
                           tooltip=f"Where judging starts, {share}"),
            io.Float.Input("end", default=0.95, min=0.0, max=1.0, step=0.01, tooltip=f"Where it ends, {share}"),
            io.Float.Input("every", default=0.0, min=0.0, max=1.0, step=0.01,
                           tooltip=f"How far judgements are apart, {share} 0 = at every step. Each costs decoding and "
                           "scoring."),
            io.Combo.Input("transition", options=list(TRANSITIONS), default="ddim",
                           tooltip="How copies part: ancestral, ddim, glass (for flow models), renoise. ode: not at "
                           "all."),
            io.Float.Input("eta", default=1.0, min=0.0, max=1.0, step=0.05,
                           tooltip="Randomness of ancestral, ddim and renoise."),
            io.Float.Input("rho", default=0.4, min=0.0, max=1.0, step=0.05,
                           tooltip="With glass: how alike copies stay. 1 = the same."),
            io.Int.Input("inner", default=5, min=1, max=100,
                         tooltip="With glass: steps of each transition. Few make images that vary too little, 1 worst; "
                         "many leave fewer places where copies part."),
            io.Float.Input("guidance", default=0.0, min=0.0, max=10.0, step=0.01,
                           tooltip="How far images also move along the gradient of their score, as in Search: Guided. "
                           "0 = not at all. Needs a verifier with a gradient, and memory for the VAE's."),
        ]  # fmt: skip

    @classmethod
    def execute(cls, preset: dict[str, Any] | None = None) -> io.NodeOutput:
        settings = dict(preset or {})
        name = settings.pop("preset", None)  # the host drops one that it does not know
        if name not in (*PRESETS, "custom"):
            got = "none that is known" if name is None else repr(name)
            known = ", ".join((*PRESETS, "custom"))
            raise search.SearchError(f"preset: got {got}; expected one of {known}: choose it in the drop-down")
        return io.NodeOutput(search.algorithm("smc", **PRESETS.get(name, settings)))


class GradientSearch(io.ComfyNode):
    """ReNO and first-order search."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Gradient", "Gradient",
            "Follows the gradient of the score back through VAE and model to the start noise. Made for one-step models "
            "such as turbo and schnell; needs a verifier with a gradient and much memory.",
            [
                io.Float.Input("lr", default=10.0, min=0.001, max=10000.0, step=0.1,
                               tooltip="Length of a step, times clip. Higher = further per image; too high = it jumps "
                               "past what is good. ReNO uses 5 to 10."),
                io.Float.Input("momentum", default=0.9, min=0.0, max=0.99, step=0.01,
                               tooltip="How much of the last step goes on in the next: 0 = nothing."),
                io.Float.Input("clip", default=0.1, min=0.0001, max=1000.0, step=0.01, round=0.0001,
                               tooltip="Every gradient is brought to this length before lr."),
                io.Boolean.Input("raw", default=False,
                                 tooltip="Off: short gradients are made longer too, whatever the verifier's units. "
                                 "On: long ones are cut and no more, as ReNO does."),
                io.Combo.Input("norm", options=list(NORMS), default="sphere",
                               tooltip="sphere: the noise keeps its norm. penalty: it is pulled to that of Gaussian "
                               "noise, as ReNO does. free: it may leave what the model knows."),
                io.Float.Input("penalty", default=0.01, min=0.0, max=100.0, step=0.001, round=0.0001,
                               tooltip="With penalty: how hard it is pulled."),
                io.Int.Input("patience", default=10, min=0, max=10000,
                             tooltip="Images without a better one before it begins again at a fresh noise. 0 = it "
                             "never climbs: Random."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, lr: float = 10.0, momentum: float = 0.9, clip: float = 0.1, raw: bool = False, norm: str = "sphere",
        penalty: float = 0.01, patience: int = 10,
    ) -> io.NodeOutput:  # fmt: skip
        settings = {"lr": lr, "momentum": momentum, "clip": clip, "raw": raw, "norm": norm, "penalty": penalty}
        return io.NodeOutput(search.algorithm("gradient", **settings, patience=patience))


class GuidedSearch(io.ComfyNode):
    """Manifold-preserving guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        share = "as a share of the steps."
        return _schema(
            "Guided", "Guided",
            "Moves every half-made image a little along the gradient of its score, through VAE and verifier and not "
            "through the model. Needs a verifier with a gradient, and memory for the VAE's.",
            [
                io.Int.Input("images", default=4, min=1, max=1024, tooltip="Images that go down together."),
                io.Float.Input("strength", default=0.2, min=0.0, max=10.0, step=0.01,
                               tooltip="How far: as a share of the predicted image, less as noise goes. 0 = not at "
                               "all; too high = images fall apart."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip=f"Where guidance starts, {share}"),
                io.Float.Input("end", default=0.95, min=0.0, max=1.0, step=0.01,
                               tooltip=f"Where it ends, {share}"),
                io.Combo.Input("transition", options=list(FRESH), default="ancestral",
                               tooltip="The kind of step: ancestral, ddim and renoise take fresh noise, ode takes "
                               "none."),
                io.Float.Input("eta", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="Randomness of ancestral, ddim and renoise."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, images: int = 4, strength: float = 0.2, start: float = 0.0, end: float = 0.95,
        transition: str = "ancestral", eta: float = 1.0,
    ) -> io.NodeOutput:  # fmt: skip
        settings = {"images": images, "strength": strength, "start": start, "end": end, "transition": transition}
        return io.NodeOutput(search.algorithm("guided", **settings, eta=eta))


class LookaheadSearch(io.ComfyNode):
    """LiDAR."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "LiDAR", "LiDAR",
            "Renders many noises in a few steps, scores them, and lets the good ones pull your own sampler towards "
            "them on other noises. Works with every sampler.",
            [
                io.Int.Input("steps", default=5, min=1, max=100,
                             tooltip="Steps of a lookahead. Few: it must only show roughly what the verifier sees."),
                io.Float.Input("share", default=0.4, min=0.05, max=0.95, step=0.05,
                               tooltip="Share of the budget for lookaheads; guided images get the rest."),
                io.Float.Input("scale", default=12.5, min=0.0, max=100.0, step=0.1,
                               tooltip="How hard images are pulled: 0 = not at all."),
                io.Float.Input("strength", default=0.3, min=0.0, max=1000.0, step=0.01,
                               tooltip="How much a better score counts against being near: 0 = nothing."),
                io.Float.Input("until", default=0.3, min=0.0, max=0.95, step=0.01,
                               tooltip="Images are pulled while their share of noise is above this: sigma of a flow "
                               "model, sigma / (1 + sigma) of others."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, steps: int = 5, share: float = 0.4, scale: float = 12.5, strength: float = 0.3, until: float = 0.3
    ) -> io.NodeOutput:
        settings = {"steps": steps, "share": share, "scale": scale, "strength": strength, "until": until}
        return io.NodeOutput(search.algorithm("lidar", **settings))


class TwoFidelitySearch(io.ComfyNode):
    """Cheap scouts, full renders."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "TwoFidelity", "Two-Fidelity",
            "Renders many noises cheaply, in fewer steps or pixels, and only the best of them in full. Works with "
            "every sampler, and the winner has a plain seed.",
            [
                io.Float.Input("effort", default=0.2, min=0.05, max=1.0, step=0.05,
                               tooltip="Share of the steps that a scout takes; 1 only with a shrink of 2 or more."),
                io.Int.Input("shrink", default=1, min=1, max=8,
                             tooltip="A scout has so many times fewer pixels along each side. 1 = the same size. Saves "
                             "time, not model calls: set max_seconds."),
                io.Float.Input("agreement", default=0.5, min=0.0, max=1.0, step=0.05,
                               tooltip="How alike scouts and full renders rank (1 = the same): the lower, the more are "
                               "rendered. The report measures it among those that were."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, effort: float = 0.2, shrink: int = 1, agreement: float = 0.5) -> io.NodeOutput:
        return io.NodeOutput(search.algorithm("two_fidelity", effort=effort, shrink=shrink, agreement=agreement))


def _random_steps(start: float) -> list[io.Input]:
    """The widgets of a search that takes random steps of its own from `start` on."""
    return [
        io.Float.Input("start", default=start, min=0.0, max=1.0, step=0.01,
                       tooltip="Where random steps and judging start, as a share of the steps; your own sampler until "
                       "then."),
        io.Float.Input("end", default=0.95, min=0.0, max=1.0, step=0.01,
                       tooltip="Where they end, as a share of the steps; your own sampler from there."),
        io.Combo.Input("transition", options=list(TRANSITIONS), default="ancestral",
                       tooltip="How children part: ancestral, ddim, glass (flow models), renoise. ode: not at all."),
        io.Float.Input("eta", default=1.0, min=0.0, max=1.0, step=0.05,
                       tooltip="Randomness of ancestral, ddim and renoise."),
        io.Float.Input("rho", default=0.4, min=0.0, max=1.0, step=0.05,
                       tooltip="With glass: how alike children are. 1 = the same."),
        io.Int.Input("inner", default=5, min=1, max=100,
                     tooltip="With glass: steps of each transition. Few make images that vary too little, 1 worst; "
                     "many leave fewer places where children part."),
    ]  # fmt: skip


class BeamSearch(io.ComfyNode):
    """SVDD and DSearch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Beam", "Beam",
            "At every step each image tries several random continuations and keeps the best. Judges very often: for "
            "verifiers that are fast beside the model. Give it max_nfe to plan for. Needs a sampler without memory, "
            "such as euler.",
            [
                io.Int.Input("beams", default=1, min=1, max=256, tooltip="Images that are finished in a round."),
                io.Int.Input("width", default=3, min=1, max=256,
                             tooltip="Continuations (children) that each tries at a step. With max_nfe it is scaled so "
                             "that rounds fit the budget."),
                io.Int.Input("oversample", default=4, min=1, max=64,
                             tooltip="So many times more images begin; the worst end on the way. 1 = none does."),
                io.Combo.Input("shrinking", options=list(SHRINKING), default="exponential",
                               tooltip="How their number falls: exponential early, linear evenly, sigmoid half-way, "
                               "constant only at the end."),
                io.Combo.Input("expansion", options=list(EXPANSION), default="never",
                               tooltip="Which steps have more children: none, all, the first half (early), or more and "
                               "more often (linear, exponential)."),
                io.Float.Input("wide", default=2.0, min=1.0, max=64.0, step=0.5,
                               tooltip="How many times more such a step has."),
                io.Float.Input("replace", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the images whose worst are replaced by copies of better ones at each "
                               "step (DSearch-R), rounded down."),
                *_random_steps(0.2),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, beams: int = 1, width: int = 3, oversample: int = 4, shrinking: str = "exponential",
        expansion: str = "never", wide: float = 2.0, replace: float = 0.0, start: float = 0.2, end: float = 0.95,
        transition: str = "ancestral", eta: float = 1.0, rho: float = 0.4, inner: int = 5,
    ) -> io.NodeOutput:  # fmt: skip
        settings = {"beams": beams, "width": width, "oversample": oversample, "shrinking": shrinking}
        settings |= {"expansion": expansion, "wide": wide, "replace": replace, "start": start, "end": end}
        return io.NodeOutput(search.algorithm("beam", **settings, transition=transition, eta=eta, rho=rho, inner=inner))


class RolloverSearch(io.ComfyNode):
    """Rollover Budget Forcing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Rollover", "Rollover",
            "At every step an image tries random continuations until one looks better than all before; tries that were "
            "not needed are kept for later steps. Judges very often and in small batches. Give it max_nfe to plan for. "
            "Needs a sampler without memory, such as euler.",
            [
                io.Int.Input("chains", default=2, min=1, max=256, tooltip="Images that go down side by side."),
                io.Int.Input("starts", default=8, min=1, max=1024,
                             tooltip="Fresh noises that each chain chooses its own from."),
                io.Float.Input("quota", default=4.0, min=1.0, max=256.0, step=0.5,
                               tooltip="Tries per step, unused ones roll over. With max_nfe it is scaled so that "
                               "rounds fit the budget."),
                *_random_steps(0.0),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, chains: int = 2, starts: int = 8, quota: float = 4.0, start: float = 0.0, end: float = 0.95,
        transition: str = "ancestral", eta: float = 1.0, rho: float = 0.4, inner: int = 5,
    ) -> io.NodeOutput:  # fmt: skip
        settings = {"chains": chains, "starts": starts, "quota": quota, "start": start, "end": end}
        settings |= {"transition": transition, "eta": eta, "rho": rho, "inner": inner}
        return io.NodeOutput(search.algorithm("rollover", **settings))


class DepthFirstSearch(io.ComfyNode):
    """DFS with a threshold."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "DepthFirst", "Depth-First",
            "Looks at half-made images on the way; one that is below a threshold is noised again and goes on from "
            "there. Needs a sampler without memory, such as euler.",
            [
                io.Int.Input("particles", default=4, min=1, max=256,
                             tooltip="Images that go down side by side. 1 = the paper's; more are faster on a GPU."),
                io.Combo.Input("threshold", options=list(THRESHOLDS), default="quantile",
                               tooltip="quantile: relative to the scores seen so far, for any verifier. absolute: a "
                               "score of your verifier."),
                io.Float.Input("quantile", default=0.3, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the scores seen at a step that an image must reach: 0.3 = the worst "
                               "30 % turn back."),
                io.Float.Input("lowest", default=0.0, min=-1000000.0, max=1000000.0, step=0.01,
                               tooltip="With absolute: the score to reach at the first look."),
                io.Float.Input("highest", default=0.0, min=-1000000.0, max=1000000.0, step=0.01,
                               tooltip="With absolute: the score to reach at the last look."),
                io.Float.Input("start", default=0.4, min=0.0, max=1.0, step=0.01,
                               tooltip="Where the first look is, as a share of the steps."),
                io.Float.Input("end", default=0.8, min=0.0, max=1.0, step=0.01,
                               tooltip="Where looking ends, as a share of the steps."),
                io.Float.Input("every", default=0.2, min=0.0, max=1.0, step=0.01,
                               tooltip="How far looks are apart, as a share of the steps. 0 = after every step."),
                io.Float.Input("back", default=0.4, min=0.0, max=1.0, step=0.01,
                               tooltip="How far an image is noised again, as a share of the steps: little keeps its "
                               "layout, 1 = a fresh noise."),
                io.Int.Input("backtracks", default=4, min=0, max=1000,
                             tooltip="How often an image may turn back. 0 = never: Random."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, particles: int = 4, threshold: str = "quantile", quantile: float = 0.3, lowest: float = 0.0,
        highest: float = 0.0, start: float = 0.4, end: float = 0.8, every: float = 0.2, back: float = 0.4,
        backtracks: int = 4,
    ) -> io.NodeOutput:  # fmt: skip
        settings = {"particles": particles, "threshold": threshold, "quantile": quantile, "lowest": lowest}
        settings |= {"highest": highest, "start": start, "end": end, "every": every, "back": back}
        return io.NodeOutput(search.algorithm("depth_first", **settings, backtracks=backtracks))
