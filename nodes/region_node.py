"""Region Verifier: a verifier that sees what a mask covers."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..verifiers.region import RegionVerifier
from . import sockets


class RegionVerifierNode(io.ComfyNode):
    """One verifier on one region."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchRegionVerifier",
            display_name="Region Verifier",
            category=sockets.CATEGORY,
            description="A verifier that is shown a region of every picture instead of the whole: what was painted in, "
            "a face, a hand. The prompt should say what is in the region.",
            inputs=[
                sockets.Verifier.Input("verifier", tooltip="A Verifier. An ensemble takes regions of its members."),
                io.Mask.Input("mask", tooltip="Its bounding box is the region, whatever its size: the mask of an "
                              "inpainting, or any other."),
                io.Float.Input("margin", default=0.25, min=0.0, max=4.0, step=0.05, optional=True,
                               tooltip="How much of the surroundings belongs to it, on every side: a share of the "
                               "box's longer side. The region is as square as the picture allows."),
            ],
            outputs=[sockets.verifier_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, verifier: Any = None, mask: Any = None, margin: float = 0.25) -> io.NodeOutput:
        sockets.check_verifier("verifier", verifier)
        return io.NodeOutput(RegionVerifier(verifier, mask, margin))
