"""Seed Probe: whether seeds differ enough for a search over noises to pay."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..search.probe import COUNTS, probe
from . import sockets


class SeedProbe(io.ComfyNode):
    """A verdict on a finished search."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchSeedProbe",
            display_name="Seed Probe",
            category=sockets.CATEGORY,
            description="Says from a finished search of a few candidates whether seeds differ enough for a search over "
            "noises to pay, and what the best of more would gain. Renders nothing.",
            inputs=[
                sockets.SearchReport.Input(
                    "report", tooltip="Of a Search Sampler with Search: Random and at least 4 candidates (8 say more), "
                    "or of Score Images on images of that many seeds."
                ),
                io.Int.Input("candidates", default=COUNTS[1], min=1, max=100000, optional=True,
                             tooltip="How many candidates the search would have, for gain."),
            ],
            outputs=[
                io.String.Output(display_name="verdict", tooltip="What to do, and the numbers behind it."),
                io.Float.Output(
                    display_name="gain",
                    tooltip="How much higher the best of so many is expected to score than a single one.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, report: Any = None, candidates: int = COUNTS[1]) -> io.NodeOutput:
        found = probe(report)
        return io.NodeOutput(found.text, found.gain(candidates))
