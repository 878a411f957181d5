"""One small node per search algorithm."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .. import search
from ..search.curves import CURVES
from ..search.smc import METHODS, POTENTIALS, PRESETS, TRANSITIONS
from . import sockets


def _schema(name: str, title: str, description: str, inputs: list[io.Input]) -> io.Schema:
    return io.Schema(
        node_id=f"NoiseSearchAlgorithm{name}",
        display_name=f"Search: {title}",
        category=f"{sockets.CATEGORY}/algorithms",
        description=description,
        inputs=inputs,
        outputs=[sockets.SearchAlgorithm.Output(display_name="algorithm")],
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
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, curve: str = "cautious", judge_cost: float = 0.0) -> io.NodeOutput:
        return io.NodeOutput(search.algorithm("pruned", curve=curve, judge_cost=judge_cost))


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
                    tooltip="tuned: this pack's own settings. FK, BFS, DAS, SVDD, TreeG: those of the papers, on raw "
                    "scores. custom: your own.",
                ),
            ],
        )  # fmt: skip

    @staticmethod
    def _widgets() -> list[io.Input]:
        share = "as a share of the steps."
        return [
            io.Int.Input("particles", default=0, min=0, max=1024,
                         tooltip="Images that go down together. 0 = as many as the NFE budget holds."),
            io.Combo.Input("potential", options=list(POTENTIALS), default="current",
                           tooltip="What counts of the scores on the way: the best, the last gain, the sum, the last."),
            io.Float.Input("temperature", default=10.0, min=0.0, max=100000.0, step=0.1,
                           tooltip="How much better scores multiply: 0 = not at all, 10 = nearly only the best."),
            io.Boolean.Input("increase", default=True,
                             tooltip="Rise to the temperature from 0, because early x0 predictions say little."),
            io.Boolean.Input("raw", default=False,
                             tooltip="Off: scores in standard deviations, whatever the verifier. On: as they are."),
            io.Combo.Input("resampling", options=list(METHODS), default="top",
                           tooltip="systematic and ssp keep most variety. top: the best share goes on."),
            io.Float.Input("survivors", default=0.4, min=0.0, max=1.0, step=0.05,
                           tooltip="With top: the share that goes on. 0 = the best alone."),
            io.Float.Input("ess", default=1.0, min=0.0, max=1.0, step=0.05,
                           tooltip="Copy only when the effective share of particles is below this. 1 = always."),
            io.Float.Input("start", default=0.3, min=0.0, max=1.0, step=0.01,
                           tooltip=f"Where judging starts, {share}"),
            io.Float.Input("end", default=0.95, min=0.0, max=1.0, step=0.01, tooltip=f"Where it ends, {share}"),
            io.Float.Input("every", default=0.15, min=0.0, max=1.0, step=0.01,
                           tooltip=f"How far judgements are apart, {share} 0 = at every step. Each costs decoding and "
                           "scoring."),
            io.Combo.Input("transition", options=list(TRANSITIONS), default="ancestral",
                           tooltip="How copies part: ancestral, ddim, glass (for flow models), renoise. ode: not at "
                           "all."),
            io.Float.Input("eta", default=1.0, min=0.0, max=1.0, step=0.05,
                           tooltip="Randomness of ancestral, ddim and renoise."),
            io.Float.Input("rho", default=0.4, min=0.0, max=1.0, step=0.05,
                           tooltip="With glass: how alike copies stay. 1 = the same."),
            io.Int.Input("inner", default=1, min=1, max=100, tooltip="With glass: steps of each transition."),
        ]  # fmt: skip

    @classmethod
    def execute(cls, preset: dict[str, Any] | None = None) -> io.NodeOutput:
        settings = dict(preset or {})
        name = settings.pop("preset", "tuned")
        if name not in (*PRESETS, "custom"):
            raise search.SearchError(
                f"Search: SMC: got preset {name!r}; expected one of {', '.join(PRESETS)}, custom"
            )
        return io.NodeOutput(search.algorithm("smc", **PRESETS.get(name, settings)))
