"""Sequential Monte Carlo: what its rounds ask for, who survives, and the law that it samples."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from pack.search import Budget, Recipe, Row, SearchError, SearchReport, algorithm
from pack.search.recipe import describe
from pack.search.smc import METHODS, POTENTIALS, PRESETS, TRANSITIONS, Lineage, Spread, rounds, stages, weighed
from pack.search.types import Advance, Finish, Judge, Plan, Predict, Slope
from pack.tests.search.worlds import Counting, RankMean, Recorded, Scorer, columns, first, often_nan, search, second
from pack.verifiers import VerifierEnsemble

NAN = float("nan")
KINDS = pytest.mark.parametrize("flow", [True, False], ids=["flow", "eps"])
PLAIN = {
    "particles": 4, "potential": "max", "temperature": 10.0, "resampling": "systematic", "ess": 1.0, "start": 0.2,
    "end": 0.8, "every": 0.2, "transition": "ancestral",
}  # fmt: skip


def plan_of(steps: int, nfe: int = 0) -> Plan:
    sampler = Counting(steps=steps)
    return Plan(sampler.sigmas, sampler.time, sampler.sigma, sampler.coefficients, steps, nfe)


def judgements(report: SearchReport) -> list[list[int]]:
    """Ids of the x0 predictions that were judged together, in order."""
    groups: list[list[int]] = []
    for before, now in zip([None, *report.evaluations], report.evaluations, strict=False):
        if now.candidate is not None:
            continue
        if before is None or before.candidate is not None or before.sigma != now.sigma:
            groups.append([])
        groups[-1].append(now.id)
    return groups


# what it asks for


@KINDS
@pytest.mark.parametrize("inner", [1, 2, 5])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_a_round_costs_what_its_particles_cost_alone(flow: bool, transition: str, inner: int) -> None:
    """Own steps, GLASS's inner ones included, take the place of the sampler's: K particles cost K images."""
    sampler = Counting(flow, steps=12)
    chosen = algorithm("smc", **{**PLAIN, "particles": 3, "transition": transition}, inner=inner)
    report = search(chosen, sampler, Budget(candidates=1 + 3 + 3))
    assert report.nfe == sampler.rows == 12 * 7
    assert len(report.finished) == 7


def test_a_round_goes_by_the_sampler_then_at_random_steps_then_by_the_sampler() -> None:
    recorded, sampler = Recorded("smc", **PLAIN), Counting(steps=10)
    search(recorded.algorithm, sampler, Budget(candidates=5))
    kinds = [type(request) for request in recorded.requests]
    assert kinds[:2] == [Finish, Advance] and kinds[-1] == Finish
    assert kinds[2:-1] == [Predict, Judge, Predict] * 3  # judged at steps 2, 4 and 6 of the random steps 2 to 8
    assert [len(request.rows) for request in recorded.requests] == [1] + [4] * 11
    [prefix] = [request for request in recorded.requests if isinstance(request, Advance)]
    assert prefix.sigmas == sampler.sigmas[:3]
    sigmas = [request.rows[0].sigma for request in recorded.requests if isinstance(request, Predict)]
    assert sigmas == list(sampler.sigmas[2:8])
    assert [r.fresh for r in recorded.requests if isinstance(r, Judge)] == [False] * 3
    assert recorded.requests[-1].rows[0].sigma == sampler.sigmas[8]


def test_stages_are_shares_of_the_steps_and_leave_the_last_one_to_the_sampler() -> None:
    plan = plan_of(20)
    assert stages(plan, 0.2, 0.8, 0.2, 1) == ([*range(4, 17)], {4, 8, 12})
    assert stages(plan, 0.2, 0.85, 0.2, 1)[1] == {4, 8, 12, 16}  # FK: 20, 40, 60 and 80 %
    assert stages(plan, 0.0, 1.0, 0.0, 1) == ([*range(20)], {*range(19)})
    assert stages(plan, 0.2, 0.8, 0.0, 5) == ([4, 9, 14, 16], {4, 9, 14})
    assert stages(plan, 0.5, 0.5, 0.1, 1) == ([10], set())
    assert stages(plan_of(1), 0.2, 0.8, 0.2, 1) == ([0], set())
    assert stages(plan_of(7), 0.1, 0.9, 0.3, 1)[1] == {1, 3, 5}
    assert stages(plan_of(20), 0.2, 0.85, 0.2, 3) == ([4, 7, 10, 13, 16, 17], {4, 10, 13, 16})


@pytest.mark.parametrize("preset", ["FK", "BFS"])
def test_the_papers_look_at_a_fifth_two_three_and_four_of_the_steps_however_many_there_are(preset: str) -> None:
    start, end, every = (PRESETS[preset][name] for name in ("start", "end", "every"))
    for steps in range(4, 51):
        stops, judged = stages(plan_of(steps), start, end, every, 1)
        expected = {(2 * fifths * steps + 5) // 10 for fifths in (1, 2, 3, 4)}  # a half goes up
        assert judged == {step for step in expected if step < steps - 1}
        assert max(judged) < stops[-1] < steps  # so that copies part after the last look
    assert stages(plan_of(20), start, end, every, 1) == ([*range(4, 18)], {4, 8, 12, 16})


@pytest.mark.parametrize("inner, spread", [(1, 0.775), (5, 0.91)])
def test_images_by_glass_vary_too_little_in_few_inner_steps(inner: int, spread: float) -> None:
    """Data N(0, 1) at 20 steps, as the docstring says; ddim makes 0.89 of it."""
    sampler = Counting(steps=20, means=torch.zeros(1, 12), spread=1.0)
    chosen = algorithm("smc", particles=150, temperature=0.0, transition="glass", inner=inner)
    report = search(chosen, sampler, Budget(candidates=151), top_k=151, batch=64)
    clean = torch.cat([kept.row.x for kept in report.top if kept.evaluation.id > 0])  # type: ignore[misc]
    assert float(clean.std()) == pytest.approx(spread, abs=0.04)  # two standard errors of 1,800 numbers


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_schedules_of_a_few_steps_work(steps: int) -> None:
    for preset in PRESETS.values():
        sampler = Counting(steps=steps)
        report = search(algorithm("smc", **preset), sampler, Budget(nfe=6 * steps))
        assert report.nfe <= 6 * steps and len(report.finished) == 6 and report.evaluations[0].seed == 7


def test_the_nfe_budget_is_dealt_out_to_rounds_of_equal_size() -> None:
    def sizes(nfe: int, particles: int) -> list[int]:
        dealt, found = rounds(plan_of(10, nfe), particles, 2, 9), []
        while sum(found) < nfe // 10 - 1:
            found.append(next(dealt))
        return found

    assert sizes(80, 4) == [4, 3] and sizes(80, 0) == [7] and sizes(80, 100) == [7]
    assert sizes(320, 8) == [8, 8, 8, 7] and sizes(20, 4) == [1]
    assert [next(rounds(plan_of(10), 5, 2, 9)) for _ in range(3)] == [5, 5, 5]
    assert next(rounds(plan_of(10), 0, 2, 9)) == 8
    for nfe in (80, 130, 320):
        report = search("smc", Counting(steps=10), Budget(nfe=nfe))
        assert report.nfe == nfe and len(report.finished) == nfe // 10


# who survives


@KINDS
@pytest.mark.parametrize("resampling", METHODS)
def test_every_child_comes_from_the_judgement_before_and_copies_part(flow: bool, resampling: str) -> None:
    chosen = algorithm("smc", **{**PLAIN, "resampling": resampling}, survivors=0.5)
    report = search(chosen, Counting(flow, steps=10), Budget(nfe=210))
    groups, evaluations = judgements(report), report.evaluations
    assert len(groups) == 3 * 5
    for before, after in zip(groups, groups[1:], strict=False):
        if evaluations[after[0]].sigma > evaluations[before[0]].sigma:
            continue  # a new round
        children = Counter(evaluations[i].parent for i in after)
        assert set(children) <= set(before)
        assert len({str(evaluations[i].recipe) for i in after}) == len(after)  # nobody is anybody's twin
        assert len({evaluations[i].score for i in after}) == len(after)
        for i in after:
            e = evaluations[i]
            assert e.parent is not None
            grown = e.recipe[len(evaluations[e.parent].recipe) :]
            assert all(o["op"] == "step" for o in grown)
    scores = [e.score for e in report.finished]
    assert len(set(scores)) == len(scores)


def test_the_first_copy_of_a_particle_goes_on_under_its_own_recipe() -> None:
    report = search(algorithm("smc", **PLAIN), Counting(steps=10), Budget(nfe=210))
    grown = Counter()
    for e in report.evaluations:
        if e.parent is not None and report.evaluations[e.parent].recipe[1:]:
            grown[e.parent, len(e.recipe) - len(report.evaluations[e.parent].recipe)] += 1
    assert grown and all(count == 1 for (_, more), count in grown.items() if more == 0)
    assert any(more == 1 for _, more in grown)


def test_recipes_say_where_the_random_steps_begin_and_keep_the_start_noise() -> None:
    sampler = Counting(steps=10)
    report = search(algorithm("smc", **PLAIN), sampler, Budget(candidates=5))
    assert Recipe(report.evaluations[0].recipe).replayable
    for e in report.finished[1:]:
        recipe = Recipe(e.recipe)
        starts = [o["from"] for o in e.recipe[1:]]
        assert starts[0] == sampler.sigmas[2] and starts == sorted(starts, reverse=True)
        assert not recipe.replayable and recipe.seed is None and recipe.step_seed == e.recipe[-1]["seed"]
        assert Recipe.from_json(recipe.to_json()) == recipe
        plain = Recipe(e.recipe[:1])
        draw = lambda seed: torch.full((1,), float(seed), dtype=torch.float64)  # noqa: E731
        assert torch.equal(recipe.noise(draw), plain.noise(draw))
        branches = len(e.recipe) - 1
        assert describe(e.recipe) == f"seed {plain.seed}, {branches} branch{'es' * (branches > 1)}"
    with pytest.raises(SearchError, match="operation 1 .step.: got from=None"):
        Recipe.from_json('[{"op": "seed", "seed": 1}, {"op": "step", "seed": 2}]')


def test_the_best_alone_is_the_parent_of_all() -> None:
    chosen = algorithm("smc", **{**PLAIN, "resampling": "top", "potential": "current"}, survivors=0.0)
    report = search(chosen, Counting(steps=10), Budget(candidates=5))
    generations = [*judgements(report), [e.id for e in report.finished[1:]]]
    for before, after in zip(generations, generations[1:], strict=False):
        best = max(before, key=lambda i: report.evaluations[i].score)
        assert {report.evaluations[i].parent for i in after} == {best}


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 10.0])
def test_top_keeps_the_best_whatever_the_temperature(temperature: float) -> None:
    settings = {**PLAIN, "resampling": "top", "potential": "current", "particles": 8, "temperature": temperature}
    report = search(algorithm("smc", **settings, survivors=0.25), Counting(steps=10), Budget(candidates=9))
    generations = [*judgements(report), [e.id for e in report.finished[1:]]]
    for before, after in zip(generations, generations[1:], strict=False):
        best = sorted(before, key=lambda i: report.evaluations[i].score)[-2:]
        assert {report.evaluations[i].parent for i in after} == {*best}


@pytest.mark.parametrize("resampling", METHODS)
@pytest.mark.parametrize("potential", POTENTIALS)
def test_what_could_not_be_judged_leaves_no_children(resampling: str, potential: str) -> None:
    settings = {**PLAIN, "every": 0.0, "resampling": resampling, "potential": potential}
    chosen = algorithm("smc", **settings, survivors=0.5)
    report = search(chosen, Counting(steps=10), Budget(nfe=410), often_nan())
    groups, childless = judgements(report), 0
    parents = {e.parent for e in report.evaluations}
    for group in groups:
        verdicts = {i: report.evaluations[i].verdict for i in group}
        if set(verdicts.values()) == {"judged", "not judged"}:
            assert all(i not in parents for i, verdict in verdicts.items() if verdict == "not judged")
            childless += 1
    assert childless > 5
    assert report.best is not None and report.best.evaluation.verdict == "judged"


class Dim(Counting):
    """Knows the sigma of what its verifier sees."""

    shown = 1.0

    def predict(self, rows: Any, meter: Any) -> list[Row]:
        self.shown = rows[0].sigma
        return super().predict(rows, meter)

    def advance(self, rows: Any, sigmas: Any, meter: Any, *more: Any, **named: Any) -> list[Row]:
        self.shown = sigmas[-1]
        return super().advance(rows, sigmas, meter, *more, **named)


def blind(sampler: Dim, above: float, vetoed: bool) -> Any:
    """Cannot judge, or vetoes, whatever is noisier than that."""

    def clear(clean: Tensor) -> Tensor:
        return torch.full_like(clean[:, 0], float(sampler.shown <= above))

    if vetoed:
        scored = first()
        scored.differentiable = True  # type: ignore[attr-defined]
        return VerifierEnsemble([scored, Scorer("clear", clear)], weights=[1.0, 0.0], vetoes={"clear": 0.5})
    return Scorer("first", lambda clean: torch.where(clear(clean) > 0, clean[:, 0], NAN))


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("vetoed", [False, True], ids=["unjudged", "vetoed"])
def test_a_look_that_cannot_be_judged_is_as_if_it_had_not_been(preset: str, vetoed: bool) -> None:
    sampler = Dim(steps=20)
    first_look = sampler.sigmas[round(20 * PRESETS[preset].get("start", 0.2))]
    verifier = blind(sampler, first_look - 0.01, vetoed)
    recorded = Recorded("smc", **PRESETS[preset])
    report = search(recorded.algorithm, sampler, Budget(nfe=20 * 21), verifier)
    assert report.nfe == sampler.rows <= 20 * 21
    groups = judgements(report)
    opening = [group for group in groups if report.evaluations[group[0]].sigma == first_look]
    assert opening and all(report.evaluations[i].verdict != "judged" for group in opening for i in group)
    copied = [len(e.recipe) for e in report.finished[1:]]
    assert sum(copied) / len(copied) > (3.0 if "guidance" in PRESETS[preset] else 2.2)  # a seed and a step are 2
    # nobody was copied or lost at the look that told nothing
    for group, after in zip(groups, groups[1:], strict=False):
        if group in opening:
            assert [report.evaluations[i].parent for i in after] == group


def test_a_look_that_leaves_nobody_any_weight_weighs_those_that_it_could_judge() -> None:
    lineages = [Lineage(log_weight=-math.inf), Lineage(log_weight=-math.inf), Lineage(log_weight=1.0)]
    after = weighed(lineages, "current", [2.0, NAN, NAN], 3.0)
    assert [one.log_weight for one in after] == [6.0, -math.inf, -math.inf]
    after = weighed(lineages, "current", [2.0, NAN, 0.5], 3.0)
    assert [one.log_weight for one in after] == [-math.inf, -math.inf, 2.5]


def test_no_temperature_is_plain_ancestral_sampling() -> None:
    one, two = (
        search(algorithm("smc", **{**PLAIN, "temperature": 0.0}), Counting(steps=10), Budget(candidates=9), verifier)
        for verifier in (first(), Scorer("first", lambda clean: -clean[:, 0]))
    )
    assert {str(e.recipe) for e in one.evaluations} == {str(e.recipe) for e in two.evaluations}
    assert all(len(e.recipe) == 2 for e in one.finished[1:])  # nobody was copied, nobody was lost


@pytest.mark.parametrize("potential", POTENTIALS)
def test_the_scale_of_a_verifier_changes_nothing_unless_scores_are_raw(potential: str) -> None:
    def found(factor: float, raw: bool) -> list[object]:
        verifier = Scorer("first", lambda clean: factor * clean[:, 0] + 8 * (factor - 1))
        chosen = algorithm("smc", **{**PLAIN, "potential": potential, "raw": raw, "temperature": 2.0})
        return [e.recipe for e in search(chosen, Counting(steps=10), Budget(nfe=210), verifier).evaluations]

    assert found(1.0, False) == found(1024.0, False)
    assert found(1.0, True) != found(1024.0, True)


def test_resampling_waits_for_the_effective_size() -> None:
    def branches(ess: float) -> int:
        chosen = algorithm("smc", **{**PLAIN, "particles": 8, "every": 0.0, "temperature": 3.0, "ess": ess})
        report = search(chosen, Counting(steps=10), Budget(nfe=410))
        return sum(len(e.recipe) - 2 for e in report.finished if len(e.recipe) > 1)

    assert branches(0.0) == 0 < branches(0.6) < branches(1.0)


# the arithmetic of weights


def test_potentials_are_those_of_the_papers() -> None:
    scores, strength = [0.5, 2.0, 1.0], 3.0
    expected = {  # summed logs of the weights of FK steering, section 3
        "current": 3 * (0.5 + 2.0 + 1.0),
        "max": 3 * (0.5 + 2.0 + 2.0),
        "add": 3 * (0.5 + 2.5 + 3.5),
        "diff": 3 * 1.0,  # the differences telescope
    }
    for potential in POTENTIALS:
        lineage = Lineage()
        for score in scores:
            lineage = lineage.weighed(potential, score, strength)
        assert lineage.log_weight == pytest.approx(expected[potential])
        assert lineage.weighed(potential, NAN, strength).log_weight == -math.inf
        assert lineage.weighed(potential, -math.inf, strength).log_weight == -math.inf
        assert lineage.weighed(potential, NAN, strength).best == 2.0


def test_differences_telescope_under_a_rising_temperature_too() -> None:
    lineage = Lineage()
    for score, strength in [(0.5, 1.0), (-2.0, 2.0), (1.5, 3.0)]:
        lineage = lineage.weighed("diff", score, strength)
    assert lineage.log_weight == pytest.approx(3.0 * 1.5)


def test_the_spread_is_pooled_within_judgements() -> None:
    spread = Spread()
    assert all(Spread().after([score] * 3) == 1.0 for score in (0.1, 0.7, -2.1, 1 / 3))  # whatever rounding makes of it
    assert spread.after([1.0, 1.0]) == 1.0 and spread.after([NAN, NAN]) == 1.0
    assert spread.after([100.0, 104.0, NAN]) == pytest.approx(math.sqrt(8 / 2))
    assert spread.after([-50.0, -52.0, -54.0]) == pytest.approx(math.sqrt(16 / 4))


@KINDS
@pytest.mark.parametrize("potential, resampling, ess", [("diff", "systematic", 1.0), ("diff", "ssp", 0.5)])
def test_it_samples_the_tilted_law(flow: bool, potential: str, resampling: str, ess: float) -> None:
    """Data N(0, 1), reward the first number: exp(reward) tilts it to N(1, 1), and the other numbers stay."""
    count = 500
    sampler = Counting(flow, steps=45, means=torch.zeros(1, 12), spread=1.0)
    if not flow:  # its own schedule spends nearly all steps on pure noise
        sampler.sigmas = tuple(sampler.sigma(15 / 16 * (1 - i / 45)) for i in range(46))
    settings = {"potential": potential, "resampling": resampling, "ess": ess, "temperature": 1.0}
    chosen = algorithm("smc", **settings, raw=True, increase=False, particles=count, start=0.0, end=0.95, every=0.1)
    report = search(chosen, sampler, Budget(candidates=count + 1), top_k=count + 1, batch=64)
    clean = torch.cat([kept.row.x for kept in report.top if kept.evaluation.id > 0])  # type: ignore[misc]
    assert float(clean[:, 0].mean()) == pytest.approx(1.0, abs=0.25)  # a bias of 0.1 by 45 steps, 0.07 by lineages
    assert float(clean[:, 0].std()) == pytest.approx(1.0, abs=0.2)
    assert float(clean[:, 1:].mean(0).abs().max()) < 0.25


# guidance


@KINDS
def test_guided_particles_are_judged_at_every_random_step_and_cost_no_more(flow: bool) -> None:
    recorded = Recorded("smc", **PLAIN, guidance=0.2)
    search(recorded.algorithm, Counting(flow, steps=10), Budget(candidates=5))
    assert [type(request) for request in recorded.requests[2:-1]] == [Predict, Slope] * 6
    sampler = Counting(flow, steps=10)
    report = search(algorithm("smc", **PLAIN, guidance=0.2), sampler, Budget(candidates=9))
    assert report.nfe == sampler.rows == 90 and sampler.backward_rows == 0
    for e in report.finished[1:]:
        assert e.recipe[1]["op"] == "uphill" and e.recipe[1]["from"] == sampler.sigmas[2]


@KINDS
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_guidance_lifts_the_scores_of_all_particles(flow: bool, transition: str) -> None:
    def mean(guidance: float) -> float:
        sampler = Counting(flow, steps=12, means=torch.zeros(1, 12), spread=1.0)
        settings = {**PLAIN, "temperature": 0.0, "transition": transition, "guidance": guidance}
        chosen = algorithm("smc", **settings)
        found = [e.score for e in search(chosen, sampler, Budget(candidates=41)).finished[1:]]
        return sum(found) / len(found)

    assert mean(0.2) > mean(0.0) + (0.2 if flow else 0.02)


def test_guided_particles_need_a_verifier_with_a_gradient() -> None:
    sampler = Counting()
    with pytest.raises(SearchError, match="has none"):
        search(algorithm("smc", **PRESETS["guided"]), sampler, Budget(nfe=100), RankMean(first(), second()))
    assert sampler.rows == 0


# presets and refusals


@pytest.mark.parametrize("preset", list(PRESETS))
@KINDS
def test_every_preset_runs_within_its_budget(preset: str, flow: bool) -> None:
    sampler = Counting(flow, steps=10)
    chosen = algorithm("smc", **PRESETS[preset])
    one, two = (search(chosen, sampler, Budget(nfe=215)) for _ in range(2))
    assert one.nfe <= 215 and len(one.finished) >= 20
    assert columns(one.evaluations) == columns(two.evaluations)
    assert any(len(e.recipe) > 2 for e in one.finished)  # something was copied


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"potential": "maximum"}, "potential='maximum'.*max, diff, add, current"),
        ({"resampling": "stratified"}, "resampling='stratified'.*systematic"),
        ({"transition": "sde"}, "transition='sde'.*glass"),
        ({"start": 0.9, "end": 0.2}, "start <= end"),
        ({"start": NAN}, "start <= end"),
        ({"eta": 1.5}, "eta=1.5"),
        ({"ess": NAN}, "ess=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"particles": -1}, "particles=-1"),
        ({"inner": 0}, "inner=0"),
        ({"guidance": -0.1}, "guidance=-0.1"),
        ({"guidance": NAN}, "guidance=nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_forward(settings: dict[str, object], said: str) -> None:
    sampler = Counting()
    with pytest.raises(SearchError, match=said):
        search(algorithm("smc", **settings), sampler, Budget(nfe=100))
    assert sampler.rows == 0


def test_it_gains_over_best_of_n_on_a_landscape_that_it_can_climb() -> None:
    gains = []
    for seed in range(12):
        found = []
        for name in ("smc", "random"):
            sampler = Counting(steps=20, means=torch.zeros(1, 12), spread=1.0)
            report = search(name, sampler, Budget(nfe=320), first_seed=seed, seed=seed)
            assert report.best is not None
            found.append(report.best.evaluation.score)
        gains.append(found[0] - found[1])
    assert sum(gains) / len(gains) > 0.3  # in standard deviations of the data
