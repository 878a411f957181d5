"""Ask a verifier, check what it answers, and combine its parts into one score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from .errors import SearchError
from .types import NAN, Verifier

Parts = dict[str, float]


class VerifierFailed(SearchError):
    """A verifier raised; `__cause__` is what it raised."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"verifier {name} failed: {type(error).__name__}: {error}")
        self.name = name


@contextmanager
def named(name: str) -> Iterator[None]:
    """What fails in here failed in the verifier of that name: raises VerifierFailed."""
    try:
        yield
    except VerifierFailed:
        raise
    except Exception as error:
        raise VerifierFailed(name, error) from error


def is_pooled(verifier: Verifier) -> bool:
    """Whether a candidate's score depends on the other candidates (rank ensembles)."""
    return bool(getattr(verifier, "pooled", False))


def deciding(verifier: Verifier) -> list[tuple[str, Verifier]]:
    """The verifier, or the members of an ensemble that count, by the names that they have in it."""
    members: Sequence[Verifier] = getattr(verifier, "members", ()) or [verifier]
    counted = [member for member in members if getattr(member, "weight", 1) > 0]
    return [(member.name, getattr(member, "verifier", member)) for member in counted]


def scale_of(verifier: object) -> tuple[float, float] | None:
    """Mean and standard deviation (above 0) of the scores that a verifier ships with as its `scale`, or None.

    Anything else under that name is a plug-in's own and means nothing here.
    """
    match getattr(verifier, "scale", None):
        case [int() | float() as mean, int() | float() as sd] if math.isfinite(mean) and 0 < sd < math.inf:
            return float(mean), float(sd)
    return None


def scales(verifier: Verifier) -> dict[str, float]:
    """The standard deviations that a verifier, or the members of an ensemble that count, ship with, if any."""
    known = {name: scale_of(each) for name, each in deciding(verifier)}
    return {name: scale[1] for name, scale in known.items() if scale}


def shared(verifier: Verifier, held_out: Verifier | None) -> list[str]:
    """The names of what decides in both: the very same verifier, wired twice."""
    other = {id(each) for _, each in deciding(held_out)} if held_out is not None else set()
    return [name for name, each in deciding(verifier) if id(each) in other]


def early_times(verifier: Verifier | None) -> set[float]:
    """The noise shares at which a verifier, or a member of an ensemble, wants to see the x0 predictions."""
    members: Sequence[Verifier] = getattr(verifier, "members", ())
    return set(getattr(verifier, "early", ())).union(*map(early_times, members))


def ask(verifier: Verifier, images: Tensor, prompt: str, early: Mapping[float, Tensor] | None = None) -> list[Parts]:
    """What a verifier, or every member of an ensemble, says of each of images [B, H, W, 3].

    `early` has the images of x0 predictions by noise share, if there are any. Infinite scores become NaN: they judge
    nothing. Raises VerifierFailed with the member's name.
    """
    members: Sequence[Verifier] = getattr(verifier, "members", ())
    if members:
        answers = [ask(member, images, prompt, early) for member in members]
        return [{name: score for answer in answers for name, score in answer[i].items()} for i in range(len(images))]
    times: Sequence[float] = getattr(verifier, "early", ())
    more = {"early": tuple(early[time] for time in times) if early else None} if times else {}
    with named(verifier.name):
        scores = verifier.score(images.clone(), prompt, **more)  # one that writes into it spoils no picture
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        if got != (len(images),):
            raise SearchError(f"got {got} for {len(images)} images; expected a tensor of one score per image")
    values = scores.detach().to("cpu").double().tolist()
    return [{verifier.name: value if math.isfinite(value) else NAN} for value in values]


def differentiable_score(verifier: Verifier, images: Tensor, prompt: str) -> Tensor:
    """The mean score of images [B, H, W, 3], which their gradient passes.

    Raises SearchError when none passes, and VerifierFailed as `ask` does.
    """
    if is_pooled(verifier):
        raise no_gradient(verifier)
    with named(verifier.name):
        scores = verifier.score(images, prompt)
    if not scores.requires_grad:
        raise no_gradient(verifier)
    return scores.mean()


def no_gradient(verifier: Verifier) -> SearchError:
    """What to say of a verifier that a gradient search cannot use."""
    why = "it compares candidates with each other" if is_pooled(verifier) else "it, or a member of it, passes none"
    return SearchError(
        f"verifier: a gradient search follows the gradient of the score, and {verifier.name} has none ({why}): choose "
        "a differentiable one (CLIPScore, ImageReward, Aesthetic, an ensemble of them by z-score or weighted sum), or "
        "another search algorithm"
    )


def mean(parts: Sequence[Parts]) -> Parts:
    """The mean of each part over the images of one candidate (a latent batch, or the frames of a video)."""
    return {name: sum(p[name] for p in parts) / len(parts) for name in parts[0]}


def combine(verifier: Verifier, pool: Sequence[Parts]) -> list[float]:
    """One score per member of a pool of candidates."""
    if getattr(verifier, "members", ()):
        scores: list[float] = verifier.combine(pool)  # type: ignore[attr-defined]
        return scores
    return [parts[verifier.name] for parts in pool]
