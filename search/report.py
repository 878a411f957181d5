"""SearchReport: every evaluation in order, what it cost, and why the search ended."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .agreement import Agreement, Gain, Scouting, agreements, gains, scouting, warnings
from .recipe import Operation, Recipe
from .types import Row

VETOED = float("-inf")
CLOCK_COLUMNS = ("seconds",)


@dataclass(frozen=True)
class Evaluation:
    """One scored image: a finished candidate, or an x0 prediction on the way (candidate is None)."""

    id: int
    candidate: int | None  # counts finished images from 0; 0 is the user's own noise, unless it was pruned
    parent: int | None
    sigma: float
    score: float  # bigger is better; NaN = could not be judged, -inf = vetoed; neither ever wins
    parts: dict[str, float]  # what every verifier said
    held_out: dict[str, float]  # of finished images: scored and reported, never optimised
    nfe: int  # rows that entered the denoiser up to and with this one
    model_rows: int  # rows that entered the network itself
    seconds: float  # since the first denoiser call
    seed: int | None  # the plain seed, where there is one
    recipe: tuple[Operation, ...]
    after_stop: bool = False  # came out of the last micro-batch behind the stop: kept, cannot win
    scout: bool = False  # a cheap trial, in fewer steps or pixels: never a candidate

    @property
    def verdict(self) -> str:
        """'judged', 'not judged' or 'vetoed'."""
        if math.isfinite(self.score):
            return "judged"
        return "vetoed" if self.score == VETOED else "not judged"

    @property
    def takes_part(self) -> bool:
        """Whether this is a finished candidate from before the stop."""
        return self.candidate is not None and not self.after_stop

    @property
    def can_win(self) -> bool:
        """Whether this is a finished, judged candidate from before the stop."""
        return self.takes_part and math.isfinite(self.score)

    def record(self) -> dict[str, Any]:
        """JSON-ready columns: numbers that are not finite become null."""
        return {**_finite(asdict(self)), "verdict": self.verdict}


@dataclass(frozen=True)
class Kept:
    """A candidate that the driver held on to: its row (with the latent) and its images [b, (T,) H, W, 3].

    Of several images (a video, a latent that is a batch) those of the best candidate alone are `whole`: of the others
    one is left, and their latents.
    """

    evaluation: Evaluation
    row: Row
    images: Tensor
    whole: bool = True

    @property
    def picture(self) -> Tensor:
        """The one image [H, W, 3] that stands for all: the first of a batch, the middle one of a video."""
        first = self.images[0]
        return first[len(first) // 2] if first.ndim == 4 else first

    @property
    def cut(self) -> Kept:
        """The same with one image, in memory of its own."""
        if self.images.shape[:-3].numel() <= 1:
            return self
        return replace(self, images=self.picture.clone().expand(*[1] * (self.images.ndim - 3), -1, -1, -1), whole=False)


@dataclass
class SearchReport:
    """What one search did. `top` is best first; `best` is its head."""

    settings: dict[str, Any]
    evaluations: list[Evaluation] = field(default_factory=list)
    top: list[Kept] = field(default_factory=list)
    stopped: dict[str, float] = field(default_factory=dict)  # the limit that ended the search and its value
    nfe: int = 0
    model_rows: int = 0
    lost_nfe: int = 0  # forwards whose result was lost when memory ran out; not in `nfe`
    seconds: float = 0.0  # since the first denoiser call
    load_seconds: float = 0.0  # before it
    notes: list[str] = field(default_factory=list)
    #: What makes outputs of a kept candidate again, where a host has set it: of its own kind, no model, never saved.
    origin: Any = field(default=None, repr=False, compare=False)

    @property
    def best(self) -> Kept | None:
        """The winner: the best score, the earliest among equals."""
        return self.top[0] if self.top else None

    @property
    def finished(self) -> list[Evaluation]:
        """The candidates, without x0 predictions made on the way."""
        return [e for e in self.evaluations if e.candidate is not None]

    @property
    def judged(self) -> list[Evaluation]:
        """The candidates that could have won."""
        return [e for e in self.evaluations if e.can_win]

    @property
    def why_none_wins(self) -> str:
        """What became of the candidates where none of them can win."""
        verdicts = [e.verdict for e in self.finished]
        return (
            f"of {len(verdicts)}, verifier {self.settings['verifier']} could not judge "
            f"{verdicts.count('not judged')} (NaN) and vetoed {verdicts.count('vetoed')}"
        )

    @property
    def agreements(self) -> list[Agreement]:
        """How alike the verifiers rank the candidates."""
        return agreements(self.judged)

    @property
    def gains(self) -> list[Gain]:
        """What is left of the winner's gain on every held-out verifier."""
        return gains(self.best.evaluation, self.judged) if self.best else []

    @property
    def scouting(self) -> Scouting | None:
        """How well scouts told their candidates' scores; None where none was rendered in full."""
        return scouting(self.evaluations)

    @property
    def warnings(self) -> list[str]:
        """Sentences for the user when the search seems to please its own verifier only."""
        return warnings(self.leads(), self.judged)

    def note(self, text: str) -> None:
        """Add to the notes what is not there yet."""
        if text not in self.notes:
            self.notes.append(text)

    def leads(self) -> list[Evaluation]:
        """The candidates that were the best when they came, in order."""
        leads: list[Evaluation] = []
        for evaluation in self.evaluations:
            if evaluation.can_win and (not leads or evaluation.score > leads[-1].score):
                leads.append(evaluation)
        return leads

    def curve(self) -> list[tuple[int, float]]:
        """Best score so far against NFE: one point per improvement, in order."""
        return [(lead.nfe, lead.score) for lead in self.leads()]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        best = self.best.evaluation if self.best else None
        totals = {name: getattr(self, name) for name in ("nfe", "model_rows", "lost_nfe", "seconds", "load_seconds")}
        return {
            "settings": _finite(self.settings),
            "stopped": _finite(self.stopped),
            **totals,
            "candidates": len(self.finished),
            "best": best.record() if best else None,
            "top": [kept.evaluation.id for kept in self.top],
            "agreements": [_finite(asdict(a)) for a in self.agreements],
            "gains": [_finite({**asdict(g), "ratio": g.ratio}) for g in self.gains],
            "scouting": _finite(asdict(self.scouting)) if self.scouting else None,
            "warnings": self.warnings,
            "notes": list(self.notes),
            "evaluations": [e.record() for e in self.evaluations],
        }

    def to_json(self) -> str:
        """The whole report as strict JSON (no NaN)."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_csv(self) -> str:
        """One line per evaluation; every verifier has a column of its own."""
        parts = _names(e.parts for e in self.evaluations)
        held_out = _names(e.held_out for e in self.evaluations)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        plain = [c for c in (self.evaluations[0].record() if self.evaluations else {}) if c not in _NESTED]
        writer.writerow([*plain, *parts, *(f"held-out {n}" for n in held_out), "recipe"])
        for evaluation in self.evaluations:
            record = evaluation.record()
            writer.writerow(
                [record[c] for c in plain]
                + [record["parts"].get(n) for n in parts]
                + [record["held_out"].get(n) for n in held_out]
                + [Recipe(evaluation.recipe).to_json()]
            )
        return out.getvalue()


_NESTED = ("parts", "held_out", "recipe")


def _names(records: Iterable[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class Ledger:
    """Evaluations on disk, one JSON line each, written as they come so that nothing found is ever lost."""

    def __init__(self, folder: Path | None) -> None:
        self.path = folder / "ledger.jsonl" if folder else None

    def open(self, settings: dict[str, Any]) -> None:
        """Start the file with a line of settings."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"settings": _finite(settings)}, allow_nan=False) + "\n", encoding="utf-8")

    def append(self, evaluation: Evaluation) -> None:
        """Add one line."""
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(evaluation.record(), allow_nan=False) + "\n")


def ranked(kept: Sequence[Kept]) -> list[Kept]:
    """Best first; the earliest among equals."""
    return sorted(kept, key=lambda k: (-k.evaluation.score, k.evaluation.id))
