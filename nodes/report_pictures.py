"""Pictures of a search report, as IMAGE tensors [1, H, W, 3] in 0..1."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..search.errors import SearchError
from ..search.recipe import describe
from ..search.report import Kept, SearchReport

DOT, LEAD, HELD_OUT = "#9db4d6", "#1f4e9c", "#c2571a"


def score_plot(report: SearchReport, width: int, height: int) -> torch.Tensor:
    """Every candidate's score against NFE, the best so far, and the held-out score of that best on a second axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    judged = [e for e in report.finished if math.isfinite(e.score)]
    leads = report.leads()
    axes.scatter([e.nfe for e in judged], [e.score for e in judged], s=18, color=DOT, label="candidates")
    trials = [e for e in report.evaluations if e.candidate is None and math.isfinite(e.score)]
    for label, marker, scout in (("x0 predictions", "x", False), ("scouts", "+", True)):
        chosen = [e for e in trials if e.scout == scout]
        if chosen:
            axes.scatter(
                [e.nfe for e in chosen], [e.score for e in chosen], s=10, marker=marker, color=DOT, label=label
            )
    if leads:
        ends = [*[e.nfe for e in leads], max(report.nfe, leads[-1].nfe)]
        axes.step(ends, [*[e.score for e in leads], leads[-1].score], where="post", color=LEAD, label="best so far")
    axes.set(xlabel="NFE (model calls)", ylabel=report.settings.get("verifier", "score"))
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    held_out = [(e.nfe, fmean(e.held_out.values())) for e in leads if e.held_out]
    if held_out:
        other = axes.twinx()
        held_out.append((ends[-1], held_out[-1][1]))
        other.step(
            *zip(*held_out, strict=True), where="post", color=HELD_OUT, linestyle="--", label="held-out of the best"
        )
        other.set_ylabel(report.settings.get("held_out") or "held-out", color=HELD_OUT)
        more = other.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    stopped = ", ".join(f"{name} {value:g}" for name, value in report.stopped.items())
    axes.set_title(
        f"{report.settings['algorithm']['name']}: {len(report.finished)} candidates"
        + (f", stopped by {stopped}" if stopped else ""),
        wrap=True,
    )
    if handles:
        columns = min(len(handles), max(1, width // 160))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)[None]


def contact_sheet(report: SearchReport, columns: int, cell: int) -> torch.Tensor:
    """The kept candidates in a grid, best first, each with its rank, score and noise under it."""
    if not report.top:
        raise SearchError("report: none of its images could be judged, so there is nothing to show")
    pictures = [(_fitted(kept, cell), _caption(place, kept)) for place, kept in enumerate(report.top, 1)]
    columns = min(columns, len(pictures))
    font = ImageFont.load_default(size=max(10, cell // 18))
    line = max(14, cell // 13)
    cell_height = max(p.height for p, _ in pictures) + 2 * line + 8
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (cell + 8) + 8, rows * cell_height + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(pictures):
        left, top = 8 + (i % columns) * (cell + 8), 8 + (i // columns) * cell_height
        sheet.paste(picture, (left, top))
        for number, text in enumerate(caption):
            draw.text((left, top + picture.height + 2 + number * line), text, fill="black", font=font)
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255.0)[None]


def _fitted(kept: Kept, cell: int) -> Image.Image:
    picture = Image.fromarray((kept.picture.clamp(0, 1) * 255).round().byte().numpy())
    scale = cell / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # enlarging a tiny picture must not blur it away
    return picture.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)


def _caption(place: int, kept: Kept) -> tuple[str, str]:
    evaluation = kept.evaluation
    noise = describe(evaluation.recipe) if evaluation.recipe else f"image {evaluation.candidate}"
    return f"#{place}  score {evaluation.score:.4g}", noise
