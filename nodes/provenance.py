"""Where an image comes from, in its file: what ComfyUI's own Save nodes write there, and what a search adds to it."""

from __future__ import annotations

from typing import Any

from comfy.cli_args import args

from ..search.report import Evaluation, SearchReport

KEY = "noise_search"


def texts(hidden: Any, evaluation: Evaluation) -> dict[str, Any]:
    """What goes as JSON texts into a file of a candidate: the graph, as Save Image has it, and its evaluation.

    Empty where ComfyUI runs with --disable-metadata.
    """
    if args.disable_metadata:
        return {}
    stock = {} if hidden.prompt is None else {"prompt": hidden.prompt}
    return {**stock, **(hidden.extra_pnginfo or {}), KEY: evaluation.record()}


def announce(hidden: Any, part: str, report: SearchReport) -> None:
    """Put the winner into what all Save nodes that run after this one write; nowhere if the prompt brought no such.

    It is {node id: entry}, or {node id/part: entry} where a node makes several searches: none overwrites another.
    """
    if hidden.extra_pnginfo is not None:
        node_id = str(hidden.unique_id)
        hidden.extra_pnginfo.setdefault(KEY, {})[f"{node_id}/{part}" if part else node_id] = entry(report)


def entry(report: SearchReport) -> dict[str, Any]:
    """A finished search in a few words, JSON-ready: what won, and what it took."""
    best, settings = report.top[0].evaluation.record(), report.settings
    return {
        **{name: best[name] for name in ("recipe", "seed", "score", "held_out")},
        "verifier": settings["verifier"],
        "algorithm": settings["algorithm"]["name"],
        "budget": {name: limit for name, limit in settings["budget"].items() if limit},
        "stopped": report.stopped,
        "candidates": len(report.finished),
        "nfe": report.nfe,
    }
