"""The demo world's exact judge as a verifier: it measures the picture, so it is never fooled and never unsure."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..search.errors import SearchError
from .kinds import VerifierKind


class ExactJudge:
    """The share of the prompt's clauses (counts, places, nothing else) that a picture meets: 0..1, 1 is a pass."""

    name = "Exact Judge"
    differentiable = False
    needs_prompt = True
    scale: tuple[float, float] | None = (0.72, 0.35)  # pictures of prompts and near misses; a test measures it again

    def __init__(self, judge: Callable[[Tensor, str], Tensor]) -> None:
        self.module: nn.Module | None = None
        self.notes: list[str] = []
        self._judge = judge

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B]. Raises SearchError for a prompt outside the demo world."""
        try:
            return self._judge(images, prompt)
        except ValueError as error:
            raise SearchError(f"{error} Write such a prompt, or choose another verifier") from error


def load_exact_judge() -> ExactJudge:
    """The exact judge. It has no weights and no settings."""
    from ..demo.judge import judge

    return ExactJudge(judge)


KIND = VerifierKind(
    key="exact_judge",
    name="Exact Judge",
    description="The share of the prompt's clauses that a picture of the demo world meets, measured, not guessed.",
    load=load_exact_judge,
    use_for="Judging the search itself, in the demo world only: wire it to held_out.",
    fooled_by="Nothing in the demo world.",
)
