"""Pictures of a search report, as IMAGE tensors [1, H, W, 3] in 0..1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..search.errors import SearchError
from ..search.recipe import describe
from ..search.report import Evaluation, Kept, SearchReport
from ..search.words import some

DOT, TRIAL, LEAD, HELD_OUT = "#6f97d2", "#9bd0a5", "#1f4e9c", "#c2571a"
LINES = 6  # of a caption's text: what Axes finds may have a recipe as long as the search


def score_plot(report: SearchReport, width: int, height: int) -> torch.Tensor:
    """Every candidate's score against NFE, the best so far, and the held-out score of that best on a second axis.

    Images that cost no model call (of Score Images) stand in the order of their batch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel="NFE (model calls)", ylabel=report.settings.get("verifier", "score"))
    if report.nfe:
        held_out = _search(axes, report)
    else:
        held_out = []
        _images(axes, report)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    if held_out:
        other = axes.twinx()
        other.step(
            *zip(*held_out, strict=True), where="post", color=HELD_OUT, linestyle="--", label="held-out of the best"
        )
        widen(other, [score for _, score in held_out])
        other.set_ylabel(report.settings.get("held_out") or "held-out", color=HELD_OUT)
        more = other.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    if not handles:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, _why_empty(report), ha="center", va="center", transform=axes.transAxes, wrap=True)
    stopped = ", ".join(f"{name} {value:g}" for name, value in report.stopped.items())
    axes.set_title(
        f"{report.settings['algorithm']['name']}: {_counted(report)}" + (f", stopped by {stopped}" if stopped else ""),
        wrap=True,
    )
    if handles:
        columns = min(len(handles), max(1, width // 160))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)[None]


def _search(axes: Any, report: SearchReport) -> list[tuple[int, float]]:
    """Draw what a search scored; returns the held-out score of the best so far, by NFE."""
    judged = [e for e in report.finished if math.isfinite(e.score)]
    trials = [e for e in report.evaluations if e.candidate is None and math.isfinite(e.score)]
    for label, marker, scout in (("x0 predictions", "x", False), ("scouts", "+", True)):
        chosen = [e for e in trials if e.scout == scout]
        _dots(axes, chosen, s=16, marker=marker, linewidths=1, color=TRIAL, label=label)
    _dots(axes, judged, s=24, color=DOT, label="candidates")
    leads = report.leads()
    if not leads:
        return []
    ends = [*[e.nfe for e in leads], max(report.nfe, leads[-1].nfe)]
    scores = [*[e.score for e in leads], leads[-1].score]
    axes.step(ends, scores, where="post", color=LEAD, label="best so far")
    widen(axes, [e.score for e in [*judged, *trials]])
    held_out = [(e.nfe, fmean(e.held_out.values())) for e in leads if e.held_out]
    return [*held_out, (ends[-1], held_out[-1][1])] if held_out else []


def _images(axes: Any, report: SearchReport) -> None:
    """Draw what images scored that nothing was spent on, by their places in the batch."""
    from matplotlib.ticker import MaxNLocator

    judged = [e for e in report.finished if math.isfinite(e.score)]
    axes.set_xlabel("place in the batch, from 0")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if judged:
        axes.scatter([e.candidate for e in judged], [e.score for e in judged], s=24, color=DOT, label="images")
        axes.set_xlim(-0.5, len(report.finished) - 0.5)
        widen(axes, [e.score for e in judged])


def _dots(axes: Any, evaluations: Sequence[Evaluation], **style: Any) -> None:
    if evaluations:
        axes.scatter([e.nfe for e in evaluations], [e.score for e in evaluations], **style)


def widen(axes: Any, scores: Sequence[float]) -> None:
    """Give an axis so much room that scores which differ by rounding alone, or not at all, look constant."""
    known = [score for score in scores if math.isfinite(score)] or [0.0]
    middle = fmean(known)
    if max(known) - min(known) <= 1e-4 * abs(middle):
        room = 0.1 * abs(middle) or 1.0
        axes.set_ylim(middle - room, middle + room)


def _why_empty(report: SearchReport) -> str:
    """Why there is no score to draw."""
    verdicts = [e.verdict for e in report.evaluations]
    if not verdicts:
        return "nothing was scored"
    return f"no score to show: {verdicts.count('not judged')} could not be judged, {verdicts.count('vetoed')} vetoed"


def _counted(report: SearchReport) -> str:
    return some(len(report.finished), "candidate" if report.nfe else "image")


def contact_sheet(report: SearchReport, columns: int, cell: int) -> torch.Tensor:
    """The kept candidates in a grid, best first, each with its rank, score and noise under it."""
    if not report.top:
        raise SearchError("report: none of its images could be judged, so there is nothing to show")
    font = ImageFont.load_default(size=max(10, cell // 18))
    line, which = max(14, cell // 13), _which(report.top)
    cells = [
        (_fitted(kept, cell), [part for text in _caption(place, kept, which) for part in wrapped(text, font, cell)])
        for place, kept in enumerate(report.top, 1)
    ]
    columns = min(columns, len(cells))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    heights = [max(picture.height + len(lines) * line for picture, lines in row) + 8 for row in rows]
    sheet = Image.new("RGB", (columns * (cell + 8) + 8, sum(heights) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = 8 + sum(heights[:number])
        for column, (picture, lines) in enumerate(row):
            left = 8 + column * (cell + 8)
            sheet.paste(picture, (left, top))
            for place, text in enumerate(lines):
                draw.text((left, top + picture.height + 2 + place * line), text, fill="black", font=font)
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255.0)[None]


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """A text in lines of at most `width` pixels, broken between words, and inside one that is too long for a line.

    What comes after LINES lines is left out, and three dots stand for it.
    """
    lines: list[str] = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > LINES:
        last = lines[LINES - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        lines = [*lines[: LINES - 1], f"{last}..."]
    return lines


def _fitted(kept: Kept, cell: int) -> Image.Image:
    picture = Image.fromarray((kept.picture.clamp(0, 1) * 255).round().byte().numpy())
    scale = cell / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # enlarging a tiny picture must not blur it away
    return picture.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)


def _which(top: Sequence[Kept]) -> str:
    """Which of a candidate's images is shown, where it has several: of all but the best only that one is left."""
    *several, frames = max((kept.images.shape[:-3] for kept in top), key=lambda shape: shape.numel())
    if not several:
        several, frames = [frames], 1
    batch = f"image 1 of {several[0]}" if several[0] > 1 else ""
    return ", ".join(filter(None, [batch, f"frame {frames // 2 + 1} of {frames}" if frames > 1 else ""]))


def _caption(place: int, kept: Kept, which: str) -> list[str]:
    evaluation = kept.evaluation
    noise = describe(evaluation.recipe) if evaluation.recipe else f"image {evaluation.candidate}"
    return [f"#{place}  score {evaluation.score:.4g}", *([which] if which else []), noise]
