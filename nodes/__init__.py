"""The nodes: the only folder that imports ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .algorithms import (
    AxesSearch,
    BeamSearch,
    DepthFirstSearch,
    EvolutionarySearch,
    GradientSearch,
    GuidedSearch,
    LookaheadSearch,
    ParticleSearch,
    PCNSearch,
    PrunedSearch,
    RandomSearch,
    RolloverSearch,
    SearchOverPaths,
    SpectralSearch,
    TrustRegionSearch,
    TwoFidelitySearch,
    ZeroOrderSearch,
)
from .candidate_recipe import CandidateFromRecipe
from .candidates import NoiseCandidate, NoiseFromRecipe
from .curve_node import MeasureCurve
from .demo_models import LoadDemoTextEncoder
from .download_node import DownloadVerifierFiles
from .fid_node import SaveFIDStatistics
from .live import register_routes
from .model_files import register_folders
from .pick_node import PickFromReport
from .probe_node import SeedProbe
from .region_node import RegionVerifierNode
from .report_nodes import ContactSheet, SaveSearchReport, SearchReportPlot
from .search_sampler import SearchSampler, SearchSamplerAdvanced
from .series_node import SearchPrompts
from .verifier_nodes import ScoreImages, VerifierEnsembleNode, VerifierNode

NODES: list[type[io.ComfyNode]] = [
    NoiseCandidate, SearchSampler, SearchSamplerAdvanced, VerifierNode, VerifierEnsembleNode, ScoreImages,
    RandomSearch, ZeroOrderSearch, SearchOverPaths, SearchReportPlot, ContactSheet, SaveSearchReport,
    NoiseFromRecipe, LoadDemoTextEncoder, SearchPrompts, SaveFIDStatistics,
    DownloadVerifierFiles, PrunedSearch, TrustRegionSearch, PCNSearch, SpectralSearch, EvolutionarySearch,
    ParticleSearch, LookaheadSearch, TwoFidelitySearch, MeasureCurve,
    BeamSearch, RolloverSearch, DepthFirstSearch,
    AxesSearch, SeedProbe, CandidateFromRecipe,
    GradientSearch,
    GuidedSearch,
    PickFromReport, RegionVerifierNode,
]  # fmt: skip


class NoiseSearchExtension(ComfyExtension):
    """What ComfyUI asks for the nodes of this pack."""

    async def on_load(self) -> None:
        """Routes and model folders, once per server."""
        register_folders()
        register_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes."""
        return NODES
