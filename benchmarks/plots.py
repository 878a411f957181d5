"""Small multiples of curves with their 95 % bands, as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .statistics import Estimate

#: x, and an estimate there.
Point = tuple[float, Estimate]
COLOURS = ("#1f4e9c", "#c2571a", "#2e8b57", "#8e44ad", "#7f6000", "#c0392b", "#16808a", "#555555", "#d08cb6")


@dataclass(frozen=True)
class Panel:
    """One small plot: named curves over a logarithmic x."""

    title: str
    y: str
    lines: Mapping[str, Sequence[Point]]


def save_panels(path: Path, panels: Sequence[Panel], x: str, columns: int = 3, band: bool = True) -> None:
    """Write panels as one PNG. Panels of the same lines have one legend together, others one each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(panels) / columns)
    shared = len({tuple(panel.lines) for panel in panels}) == 1
    figure = Figure(figsize=(3.3 * columns, 2.6 * rows + 0.5 * shared), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    handles: dict[str, Any] = {}
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        for (name, line), colour in zip(panel.lines.items(), COLOURS, strict=False):
            at = [point for point, _ in line]
            [handles[name]] = axes.plot(at, [e[0] for _, e in line], "o-", ms=2.5, lw=1.2, color=colour, label=name)
            if band:
                axes.fill_between(at, [e[1] for _, e in line], [e[2] for _, e in line], color=colour, alpha=0.13, lw=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel(x, fontsize=8)
        axes.set_ylabel(panel.y, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if not shared:
            axes.legend(fontsize=6)
    if shared:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
