"""Runs a search: checks what it is given, plans, and lets the driver serve the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import judging
from .budget import Budget
from .distinct import likeness_of
from .driver import Driver
from .errors import SearchError
from .random_search import random_search
from .report import Ledger, SearchReport
from .space import Candidates, Space
from .spending import Stop
from .types import Algorithm, Plan, Sampler, Search, Verifier
from .watcher import Watcher
from .words import some


def run(
    algorithm: Algorithm,
    sampler: Sampler,
    verifier: Verifier,
    budget: Budget,
    *,
    candidates: Candidates,
    prompt: str = "",
    seed: int = 0,
    held_out: Verifier | None = None,
    distinct: float = 1.0,
    distinct_by: Verifier | None = None,
    top_k: int = 1,
    batch: int = 0,
    folder: Path | None = None,
    watcher: Watcher | None = None,
    settings: dict[str, Any] | None = None,
    clock: Callable[[], float] | None = None,
) -> SearchReport:
    """Search noises of `sampler` for the image that `verifier` likes best, within `budget`.

    `candidates` says where fresh noises come from; `seed` drives the search's own draws. `held_out` is scored
    and never optimised. Of the `top_k` no two have a cosine of `distinct` or more (1 = off) in the features of
    `distinct_by`, or else of the verifier, or else of thumbnails; there may be fewer then. `batch` is the micro-batch
    (0 = the sampler's own estimate; it never changes the result, except that rounding grows along the gradients of
    `guides`, so there 0 is 1, which no other program's memory changes). `folder` receives ledger.jsonl as it grows.
    `settings` is copied into the report. `clock` tells the seconds; the computer's own if not given.

    Raises SearchError when the budget cannot hold one candidate, when a verifier fails (naming it and the
    candidate) or when nothing could be judged; whatever was found by then is in the ledger. An interrupt of
    the host passes through.
    """
    if top_k < 1 or batch < 0:
        raise SearchError(f"got top_k={top_k}, batch_size={batch}; expected top_k >= 1 and batch_size 0 (auto) or more")
    early = judging.early_times(verifier)
    if early and algorithm.acts_midway:
        raise SearchError(
            f"verifier: {verifier.name} judges finished images only (it compares them with their x0 predictions), and "
            f"{algorithm.name} judges on the way: choose Random or Zero-Order, or wire the verifier to held_out"
        )
    if judging.is_pooled(verifier) and algorithm.compares_across and budget.candidates != 1:
        raise SearchError(
            f"verifier: {verifier.name} compares candidates with each other, and {algorithm.name}, with these "
            "settings, compares scores of different steps, where that says nothing: set method to z_score and scale "
            "to fixed in Verifier Ensemble, or choose another search algorithm (of Search: SMC, another preset than FK "
            "and BFS, or custom with another potential than max)"
        )
    if (early or judging.early_times(held_out)) and sampler.cost(sampler.sigmas) is None:
        raise SearchError(
            "verifier: one of them wants to see x0 predictions at given noise shares, and this sampler chooses its "
            "steps itself: choose a sampler with a fixed number of steps"
        )
    if (algorithm.needs_gradient or algorithm.guides) and budget.candidates != 1:
        _check_gradient(algorithm, sampler, verifier)
    if budget.candidates == 1:  # nothing to search among: render the user's own candidate, whole
        algorithm = Algorithm("random", random_search)

    def cost(sigmas: Sequence[float]) -> int | None:
        """NFE of one candidate along sigmas."""
        forwards = sampler.cost(sigmas)
        return None if forwards is None else forwards * sampler.rows_per_candidate

    candidate_nfe = cost(sampler.sigmas)
    if budget.nfe and candidate_nfe and budget.nfe < candidate_nfe:
        raise SearchError(
            f"budget: got max_nfe={budget.nfe}; one candidate takes {candidate_nfe}: raise max_nfe or lower the steps"
        )
    plan = Plan(
        sampler.sigmas, sampler.time, sampler.sigma, sampler.coefficients,
        candidate_nfe, budget.nfe, budget.candidates, budget.seconds, sampler.exact_pauses and not early,
        sampler.small_refusal, sampler.axes, sampler.family,
        tuple(each.name for _, each in judging.deciding(verifier)), cost, sampler.rows_per_candidate,
    )  # fmt: skip
    why = {}
    if algorithm.choose:
        algorithm, why["because"] = algorithm.choose(plan)
    likeness = likeness_of(distinct, distinct_by, verifier)
    report = SearchReport(
        {
            **(settings or {}),
            "algorithm": {"name": algorithm.name, **algorithm.settings, **why},
            "budget": dict(vars(budget)),
            "verifier": verifier.name,
            "scales": judging.scales(verifier),
            "pooled": judging.is_pooled(verifier),
            "held_out": held_out.name if held_out else None,
            "prompt": prompt,
            "seed": seed,
            "first": list(candidates.first.operations),
            "cosine": candidates.cosine,
            **({"distinct": {"cosine": distinct, "by": likeness.name}} if likeness else {}),
        }
    )
    for name in judging.shared(verifier, held_out):
        report.note(f"held out: {name} leads the search too, so it does not show what the search did not see")
    ledger = Ledger(folder)
    try:
        ledger.open(report.settings)
    except OSError as error:  # a folder that cannot be written must not keep the user from searching
        report.note(f"the ledger could not be written: {error}")
    driver = Driver(
        sampler, verifier, held_out, likeness, budget, prompt, plan, report, top_k, batch or int(algorithm.guides),
        ledger, watcher or Watcher(), clock,
    )  # fmt: skip
    space = Space(candidates, seed, sampler.sigmas[0])
    _drive(driver, algorithm.search(space, driver.plan, **algorithm.settings))
    driver.finish_open_rows()
    if driver.has_time():
        _drive(driver, random_search(space, driver.plan))
    if algorithm.search is not random_search and _all_fresh(report, candidates):
        report.note(
            f"{algorithm.name}: the search ended before any step of its own: {some(len(report.finished), 'image')} of "
            "fresh noises, as Random makes them; raise the budget, or lower what the settings spend on fresh noises"
        )
    return driver.result()


def _drive(driver: Driver, search: Search) -> None:
    """Serve what an algorithm asks for until it ends or a limit is reached."""
    report = driver.report
    try:
        request = next(search, None)
        while request is not None:
            reply = driver.serve(request)
            try:
                request = search.send(reply)
            except StopIteration:
                request = None
        report.stopped = {"algorithm finished": 1}
    except Stop as stop:
        report.stopped = stop.reason
    finally:
        search.close()
        report.seconds = driver.spending.seconds


def _all_fresh(report: SearchReport, candidates: Candidates) -> bool:
    """Whether every evaluation is what random search makes: the image of the next fresh noise."""
    return all(
        e.candidate is not None and e.recipe == candidates.recipe(e.candidate).operations for e in report.evaluations
    )


def _check_gradient(algorithm: Algorithm, sampler: Sampler, verifier: Verifier) -> None:
    """Refuse at once what is known to pass no gradient."""
    if algorithm.needs_gradient and sampler.cost(sampler.sigmas) is None:
        raise SearchError(
            "sampler: it chooses its steps itself, so a gradient would miss how they depend on the noise: choose a "
            "sampler with a fixed number of steps, such as euler"
        )
    if judging.is_pooled(verifier) or not getattr(verifier, "differentiable", True):
        raise judging.no_gradient(verifier)
