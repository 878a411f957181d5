"""Search Report Plot, Contact Sheet and Save Search Report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..search.report import SearchReport
from . import sockets
from .report_pictures import contact_sheet, score_plot


def _report_input() -> io.Input:
    return sockets.SearchReport.Input("report", tooltip="From a Search Sampler or Score Images.")


class SearchReportPlot(io.ComfyNode):
    """Score against NFE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchReportPlot",
            display_name="Search Report Plot",
            category=sockets.CATEGORY,
            description="Score against model calls: every candidate, the best so far, and the held-out verifier.",
            inputs=[
                _report_input(),
                io.Int.Input("width", default=960, min=320, max=4096, optional=True, tooltip="Pixels."),
                io.Int.Input("height", default=540, min=240, max=4096, optional=True, tooltip="Pixels."),
            ],
            outputs=[io.Image.Output(tooltip="The picture, for Preview or Save Image.")],
        )

    @classmethod
    def execute(cls, report: Any = None, width: int = 960, height: int = 540) -> io.NodeOutput:
        return io.NodeOutput(score_plot(report, width, height))


class ContactSheet(io.ComfyNode):
    """The best candidates side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchContactSheet",
            display_name="Contact Sheet",
            category=sockets.CATEGORY,
            description="The best candidates of a search in one picture, with their ranks, scores and noises.",
            inputs=[
                _report_input(),
                io.Int.Input("columns", default=4, min=1, max=64, optional=True, tooltip="Pictures per row."),
                io.Int.Input(
                    "cell",
                    default=256,
                    min=64,
                    max=1024,
                    optional=True,
                    tooltip="Pixels of the longer side of a picture.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The picture, for Preview or Save Image.")],
        )

    @classmethod
    def execute(cls, report: Any = None, columns: int = 4, cell: int = 256) -> io.NodeOutput:
        return io.NodeOutput(contact_sheet(report, columns, cell))


class SaveSearchReport(io.ComfyNode):
    """A report as files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoiseSearchSaveReport",
            display_name="Save Search Report",
            category=sockets.CATEGORY,
            description="Writes a search report to the output folder: everything as JSON, the evaluations as CSV.",
            inputs=[
                _report_input(),
                io.String.Input(
                    "filename_prefix", default="noise_search/report", optional=True,
                    tooltip="Name in the output folder; a number is added, and nothing is overwritten.",
                ),
            ],
            outputs=[io.String.Output(display_name="json_path", tooltip="Where the JSON file is.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, report: Any = None, filename_prefix: str = "noise_search/report") -> io.NodeOutput:
        root = Path(folder_paths.get_output_directory()).absolute()
        folder, name, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, str(root))
        paths = save_report(report, Path(folder), f"{name}_{_next_number(Path(folder), name, counter):05}_")
        return io.NodeOutput(str(paths[0]), ui={"text": [path.relative_to(root).as_posix() for path in paths]})


def save_report(report: SearchReport, folder: Path, name: str) -> list[Path]:
    """Write `name`.json and `name`.csv into `folder` and return their paths."""
    texts = {".json": report.to_json(), ".csv": report.to_csv()}
    paths = [folder / (name + ending) for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def _next_number(folder: Path, name: str, counter: int) -> int:
    """The host counts pictures only; a report must not overwrite the one before it."""
    while (folder / f"{name}_{counter:05}_.json").exists():
        counter += 1
    return counter


__all__ = ["ContactSheet", "SaveSearchReport", "SearchReportPlot", "save_report"]
