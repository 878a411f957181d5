"""What every search algorithm promises; runs over the registry, so that a new one is tested on arrival."""

import ast
import inspect
import sys
from pathlib import Path

import pytest
import torch

from pack.search import (
    ACROSS,
    ALGORITHMS,
    GRADIENT,
    GUIDED,
    MIDWAY,
    Algorithm,
    Budget,
    Candidates,
    SearchError,
    Verifier,
    algorithm,
)
from pack.search.types import Advance, Finish, Gradient, Judge, Renoise
from pack.tests.search.worlds import (
    Counting,
    Pairs,
    RankMean,
    Recorded,
    columns,
    first,
    lines,
    often_nan,
    search,
    second,
)
from pack.verifiers import VerifierEnsemble

KINDS = [(flow, order) for flow in (True, False) for order in (1, 2)]
EVERY = pytest.mark.parametrize(
    "name, flow, order",
    [pytest.param(n, f, o, id=f"{n}-{'flow' if f else 'eps'}-{o}") for n in ALGORITHMS for f, o in KINDS],
)
NAMES = pytest.mark.parametrize("name", list(ALGORITHMS))
#: The rows of the largest request, where they are fewer than 8; gradients are taken one at a time.
AT_ONCE = {"zero_order": 4, "smc": 4, "depth_first": 4, "gradient": 1, "guided": 4}
#: The requests that may lie between two that finish images: rollover draws its children one after the other, and the
#: particles of depth_first turn back at different times.
UNFINISHED = {"rollover": 40, "depth_first": 60}


def test_midway_names_are_algorithms_and_the_flag_is_set_on_them() -> None:
    assert set(ALGORITHMS) >= MIDWAY
    assert {name for name in ALGORITHMS if algorithm(name).acts_midway} == MIDWAY


def test_an_unknown_algorithm_is_refused_with_the_known_names() -> None:
    with pytest.raises(SearchError, match="'rnadom'.*random, pruned, zero_order"):
        algorithm("rnadom")


@NAMES
def test_the_flag_says_truly_whether_rows_are_paused_midway(name: str) -> None:
    recorded = Recorded(name)
    search(recorded.algorithm, Counting(), Budget(nfe=400))
    paused = any(
        isinstance(request, Advance | Judge | Renoise) and not all(row.scout for row in request.rows)
        for request in recorded.requests  # scouts run whole trajectories, on schedules of their own
    )
    assert paused == (name in MIDWAY)


@NAMES
def test_every_helper_call_of_an_algorithm_is_yielded_from(name: str) -> None:
    tree = ast.parse(Path(inspect.getfile(ALGORITHMS[name])).read_text(encoding="utf-8"))
    helpers = {"advance", "finish", "gradient", "judge", "predict", "renoise", "slope"}
    helpers |= {search.__name__ for search in ALGORITHMS.values()}
    yielded = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.YieldFrom)}
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", None) in helpers]
    assert calls and inspect.isgeneratorfunction(ALGORITHMS[name])
    assert [ast.unparse(call) for call in calls if id(call) not in yielded] == []


@NAMES
def test_every_request_carries_rows_and_every_round_asks_for_finished_images(name: str) -> None:
    recorded = Recorded(name)
    report = search(recorded.algorithm, Counting(), Budget(nfe=2000))
    assert all(len(request.rows) >= 1 for request in recorded.requests)
    gaps = [i for i, request in enumerate(recorded.requests) if isinstance(request, Finish | Gradient)]
    assert gaps and max(b - a for a, b in zip([-1, *gaps], gaps, strict=False)) <= UNFINISHED.get(name, 20)
    assert len(report.finished) > 20


@EVERY
def test_the_nfe_budget_is_never_exceeded_and_is_the_count_of_rows(name: str, flow: bool, order: int) -> None:
    for nfe, batch in [(11, 1), (12, 8), (23, 3), (60, 8), (97, 5), (150, 8), (333, 0)]:
        sampler = Counting(flow, order)
        report = search(name, sampler, Budget(nfe=nfe), batch=batch)
        assert report.nfe == sampler.charged <= nfe and report.model_rows == sampler.rows
        assert report.lost_nfe == 0
        assert report.evaluations[-1].nfe <= report.nfe
        assert report.stopped == {"nfe": nfe}
        assert report.best is not None and report.best.row.sigma == 0


@EVERY
def test_the_same_seeds_give_the_identical_ledger(name: str, flow: bool, order: int, tmp_path: Path) -> None:
    one, two = (search(name, Counting(flow, order), Budget(nfe=260), folder=tmp_path / side) for side in "ab")
    assert len(one.evaluations) > 5
    assert columns(one.evaluations) == columns(two.evaluations)
    for a, b in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    # the file holds what the report holds
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in lines(tmp_path / "a")[1:]] == columns(
        one.evaluations
    )


@EVERY
def test_a_note_says_when_the_budget_ended_what_is_random_search_by_another_name(
    name: str, flow: bool, order: int
) -> None:
    for candidates in (1, 2, 5, 20):
        sampler = Counting(flow, order)
        budget = Budget(nfe=candidates * (sampler.cost(sampler.sigmas) or 0))
        random, report = (search(each, Counting(flow, order), budget) for each in ("random", name))
        shown, by_random = ([(e.recipe, e.sigma, e.score) for e in each.evaluations] for each in (report, random))
        said = [note for note in report.notes if note.startswith(f"{name}: the search ended before any step of its ")]
        assert len(said) == (name != "random" and shown == by_random[: len(shown)])
        assert all("as Random makes them; raise the budget, or lower" in note for note in said)


@NAMES
def test_neighbouring_user_seeds_share_no_seed_of_any_operation(name: str) -> None:
    seen: dict[int, int] = {}
    for seed in range(40, 50):
        report = search(name, Counting(), Budget(nfe=200), first_seed=seed, seed=seed)
        operations = [o for e in report.evaluations for o in e.recipe]
        own = {s for o in operations for s in o.get("seeds", [o["seed"]] if "seed" in o else [])}
        # gradient search draws no noise but its starts; an ascent has no seed
        assert len(own) > (0 if name in GRADIENT else 10)
        for drawn in own:
            assert seen.setdefault(drawn, seed) == seed


@NAMES
def test_the_searchs_own_seed_leaves_the_fresh_candidates_as_they_are(name: str) -> None:
    one, two = (search(name, Counting(), Budget(nfe=200), seed=seed) for seed in (1, 2))
    # each once: how often a candidate is judged on its way may be up to the search
    fresh = [[*dict.fromkeys(e.seed for e in report.evaluations if e.seed is not None)] for report in (one, two)]
    shared = min(map(len, fresh))
    assert shared >= 1 and fresh[0][:shared] == fresh[1][:shared]


@EVERY
def test_the_micro_batch_changes_nothing(name: str, flow: bool, order: int) -> None:
    reports = {}
    for batch in (1, 3, 8, 0):
        sampler = Counting(flow, order, batch=5)
        reports[batch] = search(name, sampler, Budget(nfe=400, patience=25), batch=batch, top_k=3)
        automatic = 1 if name in GUIDED else 5
        assert sampler.largest == min(batch or automatic, AT_ONCE.get(name, 8))
    expected = reports[1]
    assert not any(e.after_stop for e in expected.evaluations) and expected.best is not None
    for report in reports.values():
        before_stop = [e for e in report.evaluations if not e.after_stop]
        assert columns(before_stop) == columns(expected.evaluations)
        assert [e.id for e in report.evaluations] == list(range(len(report.evaluations)))
        assert report.evaluations[: len(before_stop)] == before_stop  # later ones come behind
        assert report.stopped == expected.stopped and report.curve() == expected.curve()
        for kept, alone in zip(report.top, expected.top, strict=True):
            assert kept.evaluation.id == alone.evaluation.id
            assert kept.row.x is not None and alone.row.x is not None
            assert torch.equal(kept.row.x, alone.row.x) and torch.equal(kept.images, alone.images)


@EVERY
def test_candidate_0_is_the_users_own_seed_and_takes_part(name: str, flow: bool, order: int) -> None:
    for nfe in (11, 40, 200):
        report = search(name, Counting(flow, order), Budget(nfe=nfe), first_seed=2**53 + 1)
        own = [e for e in report.evaluations if e.seed == 2**53 + 1]
        assert report.evaluations[0] == own[0]
        if name == "pruned" and own[0].candidate is None:  # it runs with the others, and may be dropped like them
            assert len(own) <= 3 and all(e.candidate is None or e.can_win for e in own)  # at two cuts, and finished
        else:
            assert len(own) == 1 and own[0].candidate == 0 and own[0].can_win


@EVERY
def test_a_budget_of_one_candidate_renders_the_users_own_whole(name: str, flow: bool, order: int) -> None:
    sampler, stock = Counting(flow, order), Counting(flow, order)
    report = search(name, sampler, Budget(candidates=1), batch=8)
    from pack.search import Row

    class Free:
        def forward(self, rows: int) -> None: ...
        def model_rows(self, rows: int) -> None: ...

    [alone] = stock.advance([Row(Candidates.of_seed(7).first, stock.sigmas[0])], stock.sigmas, Free())
    assert report.best is not None and report.best.row.x is not None and alone.x is not None
    assert torch.equal(report.best.row.x, alone.x)
    assert [e.seed for e in report.evaluations] == [7]
    assert sampler.rows == stock.rows == report.nfe
    assert report.stopped == {"candidates": 1}


@EVERY
def test_nan_never_wins(name: str, flow: bool, order: int) -> None:
    report = search(name, Counting(flow, order), Budget(nfe=500), often_nan(), top_k=4)
    verdicts = [e.verdict for e in report.evaluations]
    assert "not judged" in verdicts and "judged" in verdicts
    judged = [e.score for e in report.finished if e.verdict == "judged"]
    assert report.best is not None and report.best.evaluation.score == max(judged)
    assert all(kept.evaluation.verdict == "judged" for kept in report.top)


@pytest.mark.parametrize("name, flow, order", [(n, f, o) for n in ("random", "zero_order") for f, o in KINDS])
def test_more_nfe_never_lowers_the_best_where_smaller_runs_are_prefixes(name: str, flow: bool, order: int) -> None:
    previous: list[dict[str, object]] = []
    best = float("-inf")
    for nfe in range(11, 240, 19):
        report = search(name, Counting(flow, order), Budget(nfe=nfe), batch=4)
        assert report.best is not None and report.best.evaluation.score >= best
        best = report.best.evaluation.score
        now = columns(report.evaluations)
        assert now[: len(previous)] == previous
        previous = now


@NAMES
def test_each_limit_is_reported_with_its_value(name: str) -> None:
    assert search(name, Counting(), Budget(nfe=120)).stopped == {"nfe": 120}
    by_candidates = search(name, Counting(), Budget(candidates=9))
    assert by_candidates.stopped == {"candidates": 9} and len(by_candidates.finished) == 9
    by_patience = search(name, Counting(), Budget(patience=4), batch=1)
    assert by_patience.stopped == {"patience": 4}
    scores = [e.score for e in by_patience.finished]
    leads = [i for i, s in enumerate(scores) if s > max(scores[:i], default=float("-inf"))]
    assert leads[-1] == len(scores) - 5  # the last four brought no new best
    assert all(b - a <= 4 for a, b in zip(leads, leads[1:], strict=False))
    [target] = sorted(e.score for e in by_candidates.finished)[-1:]
    by_target = search(name, Counting(), Budget(candidates=50, target=target))
    assert by_target.stopped == {"target": target}
    assert by_target.best is not None and by_target.best.evaluation.score == target


@NAMES
def test_the_generator_is_closed_and_asked_for_nothing_more(name: str) -> None:
    recorded = Recorded(name)
    search(recorded.algorithm, Counting(), Budget(nfe=130))
    assert recorded.closed
    assert len(recorded.requests) == len(recorded.replies) + 1  # the last request met the limit


@NAMES
def test_a_request_is_answered_row_by_row_in_order(name: str) -> None:
    recorded = Recorded(name)
    search(recorded.algorithm, Counting(batch=3), Budget(nfe=500))
    for request, reply in zip(recorded.requests, recorded.replies, strict=False):
        assert len(reply) == len(request.rows)
        for row, answer in zip(request.rows, reply, strict=True):
            count = len(row.recipe.operations)
            assert answer.recipe.operations[:count] == row.recipe.operations
            if isinstance(request, Finish | Gradient):
                assert answer.sigma == 0 and answer.x is None and answer.id is not None
            if isinstance(request, Judge):
                assert answer.id is not None and answer.score == answer.score
                assert answer.x is row.x or row.x is None  # a row at pure noise gets its state


@NAMES
def test_parents_are_earlier_evaluations_and_grow_the_recipe(name: str) -> None:
    report = search(name, Counting(), Budget(nfe=700))
    recipes = [e.recipe for e in report.evaluations]
    # a particle that goes on by its own random steps is seen at several sigmas under one recipe
    # and a scout's noise is rendered again
    assert len({(e.sigma, e.scout, str(e.recipe)) for e in report.evaluations}) >= 0.9 * len(recipes)
    children = [e for e in report.evaluations if e.parent is not None]
    # a guide comes from all lookaheads, not from one; axes has children only where it refines
    assert bool(children) == (name not in ("random", "lidar", "axes"))
    for e in children:
        assert e.parent is not None and e.parent < e.id
        parent = recipes[e.parent]
        assert e.recipe[: len(parent)] == parent and len(e.recipe) - len(parent) in (0, 1)


@NAMES
@pytest.mark.parametrize("cosine", [0.9, 0.0])
def test_candidates_around_a_given_noise_take_part_in_every_algorithm(name: str, cosine: float) -> None:
    candidates = Candidates(Candidates.of_seed(7).first, 7, cosine)
    report = search(name, Counting(), Budget(nfe=200), candidates=candidates)
    assert report.evaluations[0].recipe == ({"op": "seed", "seed": 7},)
    assert all(e.recipe[0] == {"op": "seed", "seed": 7} for e in report.evaluations)
    assert {e.seed for e in report.evaluations if e.seed is not None} == {7}


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n not in GRADIENT | GUIDED | ACROSS])
@pytest.mark.parametrize("flow", [True, False])
def test_a_pooled_ensemble_gives_the_same_result_in_any_micro_batch(name: str, flow: bool) -> None:
    reports = []
    for batch in (1, 3, 8):
        reports.append(search(name, Counting(flow), Budget(nfe=300), RankMean(first(), second()), batch=batch, top_k=3))
    for report in reports[1:]:
        assert columns(report.evaluations) == columns(reports[0].evaluations)
        assert [k.evaluation.id for k in report.top] == [k.evaluation.id for k in reports[0].top]


@pytest.mark.parametrize("name", ["random", "pruned", "two_fidelity", "paths", "beam", "evolution"])
def test_ranks_of_one_verifier_find_what_the_verifier_finds(name: str) -> None:
    alone = search(name, Counting(steps=20), Budget(nfe=320))
    for pooled in (VerifierEnsemble([first()], "rank_mean"), VerifierEnsemble([first()], scale="pool")):
        report = search(name, Counting(steps=20), Budget(nfe=320), pooled)
        assert [(e.recipe, e.parts) for e in report.evaluations] == [(e.recipe, e.parts) for e in alone.evaluations]
        assert alone.best is not None and report.best is not None
        assert report.best.evaluation.id == alone.best.evaluation.id


def test_smc_by_ranks_of_one_verifier_finds_as_much_as_by_the_verifier() -> None:
    def found(verifier: Verifier) -> float:
        reports = [
            search("smc", Counting(steps=20), Budget(nfe=320), verifier, first_seed=i, seed=i) for i in range(6)
        ]
        return sum(report.best.evaluation.parts["first"] for report in reports if report.best) / 6

    plain, ranks = found(first()), found(VerifierEnsemble([first()], "rank_mean"))
    assert ranks > plain - 0.03


@pytest.mark.parametrize("across", [algorithm("smc", potential="max"), *map(algorithm, sorted(ACROSS))])
def test_ranks_are_refused_where_scores_of_different_steps_are_compared(across: Algorithm) -> None:
    for pooled in (VerifierEnsemble([first()], "rank_mean"), VerifierEnsemble([first()], scale="pool")):
        sampler = Counting()
        with pytest.raises(SearchError, match="set method to z_score and scale to fixed in Verifier Ensemble"):
            search(across, sampler, Budget(nfe=300), pooled)
        assert sampler.rows == 0
        assert len(search(across, Counting(), Budget(candidates=1), pooled).finished) == 1
    assert search(across, Counting(), Budget(nfe=300), VerifierEnsemble([first()])).best


@EVERY
def test_a_latent_that_is_a_batch_counts_rows(name: str, flow: bool, order: int) -> None:
    for nfe in (22, 25, 130, 401):
        sampler = Pairs(flow, order)
        report = search(name, sampler, Budget(nfe=nfe), batch=3)
        assert report.nfe == sampler.charged <= nfe and report.nfe % 2 == 0
        assert report.best is not None and report.best.images.shape == (2, 1, 4, 3)
    with pytest.raises(SearchError, match="one candidate takes"):
        search(name, Pairs(flow, order), Budget(nfe=2 * (6 if order == 1 else 11) - 1))


def test_the_core_imports_without_comfyui_in_a_fresh_process() -> None:
    import subprocess

    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys\n"
        "for name in ('comfy', 'comfy_api', 'folder_paths', 'nodes', 'numpy', 'transformers', 'PIL'): "
        "sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        "import search\n"
        "from search import mixture\n"
        "print(len(search.ALGORITHMS))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(ALGORITHMS)


@EVERY
def test_faults_of_memory_at_random_calls_change_nothing(name: str, flow: bool, order: int) -> None:
    generator = torch.Generator().manual_seed(5)
    budget = Budget(nfe=1600 if name in GRADIENT else 400)  # for as many images
    expected = search(name, Counting(flow, order), budget, batch=8)
    for phase in ("denoise", "decode", "verifier"):
        sampler, verifier = Counting(flow, order), first()
        # one in each stretch of calls, far enough apart for a retry to succeed: three failures in a row are an error
        stretch = {"denoise": 24, "decode": 4, "verifier": 4}[phase]
        jitter = torch.randint(stretch // 2, (10,), generator=generator).tolist()
        places = [1 + stretch * i + int(shift) for i, shift in enumerate(jitter)]
        faults: dict[int, BaseException] = {i: torch.OutOfMemoryError("no memory left") for i in places}
        planned = len(faults)
        where = verifier.break_at if phase == "verifier" else sampler.break_at[phase]
        where.update(faults)
        report = search(name, sampler, budget, verifier, batch=8)
        hit = planned - len(where)
        assert hit >= 5 and sampler.freed == hit
        assert columns(report.evaluations) == columns(expected.evaluations)
        assert report.best is not None and expected.best is not None
        assert report.best.evaluation.id == expected.best.evaluation.id
        assert report.nfe == expected.nfe
        assert (report.lost_nfe > 0) == (phase == "denoise")
        assert sampler.charged == report.nfe + report.lost_nfe
        assert report.model_rows <= sampler.rows
        label = {"denoise": "model", "decode": "VAE", "verifier": "verifier"}[phase]
        smaller = "on one candidate" if AT_ONCE.get(name) == 1 else "->"
        assert any(f"{label}: out of memory" in note and smaller in note for note in report.notes)
