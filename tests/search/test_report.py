"""The report and the ledger: strict JSON, a readable CSV, one line per evaluation."""

import csv
import io
import json
from pathlib import Path

import pytest

from pack.search import Budget, Candidates, Evaluation, Recipe, SearchReport
from pack.search.report import Ledger
from pack.tests.search.worlds import Counting, Veto, columns, first, lines, often_nan, search, second


def evaluation(id: int, score: float, candidate: int | None = 0, after_stop: bool = False) -> Evaluation:
    recipe = Recipe.of_seed(id).operations
    return Evaluation(id, candidate, None, 0.0, score, {"a": score}, {}, 10 * id, 0, 0.1, id, recipe, after_stop)


@pytest.fixture
def report() -> SearchReport:
    return search("paths", Counting(), Budget(nfe=300), often_nan(), held_out=second(), top_k=3, prompt='a, b\n"c"')


def strict(text: str) -> dict[str, object]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    loaded: dict[str, object] = json.loads(text, parse_constant=refuse)
    return loaded


def test_only_finished_judged_candidates_from_before_the_stop_can_win() -> None:
    nan, inf = float("nan"), float("inf")
    assert evaluation(1, 0.5).can_win and evaluation(1, -3.0).can_win
    for out in (evaluation(1, nan), evaluation(1, -inf), evaluation(1, inf), evaluation(1, 1.0, None)):
        assert not out.can_win
    assert not evaluation(1, 1.0, after_stop=True).can_win
    assert [evaluation(1, s).verdict for s in (0.0, nan, -inf, inf)] == ["judged", "not judged", "vetoed", "not judged"]


def test_the_json_is_strict_and_holds_every_evaluation(report: SearchReport) -> None:
    loaded = strict(report.to_json())
    assert isinstance(loaded["evaluations"], list) and len(loaded["evaluations"]) == len(report.evaluations) > 10
    assert any(e["score"] is None for e in loaded["evaluations"])
    assert report.best is not None
    assert loaded["best"] == strict(json.dumps(report.best.evaluation.record()))
    assert loaded["top"] == [kept.evaluation.id for kept in report.top]
    assert loaded["nfe"] == report.nfe and loaded["stopped"] == {"nfe": 300}
    assert loaded["settings"]["budget"]["nfe"] == 300  # type: ignore[index]
    assert loaded["settings"]["prompt"] == 'a, b\n"c"'  # type: ignore[index]


def test_every_recipe_in_the_json_can_be_read_back(report: SearchReport) -> None:
    loaded = strict(report.to_json())
    for record, e in zip(loaded["evaluations"], report.evaluations, strict=True):  # type: ignore[call-overload]
        assert Recipe.from_json(json.dumps(record["recipe"])).operations == e.recipe


def test_the_csv_has_one_line_an_evaluation_and_a_column_a_verifier(report: SearchReport) -> None:
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(rows) == len(report.evaluations)
    for row, e in zip(rows, report.evaluations, strict=True):
        assert int(row["id"]) == e.id and int(row["nfe"]) == e.nfe
        assert row["score"] == ("" if e.verdict != "judged" else repr(e.score))
        assert row["held-out second"] == ("" if e.candidate is None else repr(e.held_out["second"]))
        assert Recipe.from_json(row["recipe"]).operations == e.recipe
        assert row["verdict"] == e.verdict
    assert SearchReport({}).to_csv() == "recipe\n"


def test_the_curve_rises_and_ends_at_the_winner(report: SearchReport) -> None:
    curve = report.curve()
    assert report.best is not None and curve[-1] == (report.best.evaluation.nfe, report.best.evaluation.score)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(curve, curve[1:], strict=False))


def test_the_top_is_the_best_first_with_its_images_and_latents(report: SearchReport) -> None:
    winners = sorted((e for e in report.evaluations if e.can_win), key=lambda e: (-e.score, e.id))
    assert [kept.evaluation for kept in report.top] == winners[:3]
    for kept in report.top:
        assert kept.row.x is not None and kept.row.sigma == 0 and kept.row.id == kept.evaluation.id
        [again] = Counting().decode([kept.row])
        assert bool((again == kept.images).all())


def test_equal_scores_go_to_the_earliest() -> None:
    flat = first()
    flat.function = lambda clean: clean[:, 0] * 0
    report = search("random", Counting(), Budget(candidates=9), flat, top_k=4)
    assert [kept.evaluation.id for kept in report.top] == [0, 1, 2, 3]


def test_the_ledger_has_a_line_of_settings_then_one_an_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    settings = {"model": "m", "x": float("inf")}
    report = search("paths", Counting(), Budget(nfe=200), often_nan(), folder=folder, settings=settings)
    head, *rest = lines(folder)
    assert head == {"settings": strict(report.to_json())["settings"]}
    assert head["settings"]["model"] == "m" and head["settings"]["x"] is None
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in rest] == columns(report.evaluations)


def test_a_ledger_is_on_disk_after_every_evaluation_and_starts_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for _ in range(2):
        ledger.open({"a": 1})
        for i in range(3):
            ledger.append(evaluation(i, float("nan")))
            assert len(lines(tmp_path)) == i + 2


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    search("random", Counting(), Budget(candidates=3))
    assert list(tmp_path.iterdir()) == []


def test_the_settings_of_a_report_are_its_own() -> None:
    budget = Budget(candidates=3)
    report = search("random", Counting(), budget)
    report.settings["budget"]["candidates"] = 99
    assert budget.candidates == 3


def test_a_veto_is_told_apart_from_a_missing_judgement() -> None:
    report = search("random", Counting(), Budget(candidates=40), Veto(0.0))
    vetoed = [e for e in report.finished if e.verdict == "vetoed"]
    assert 0 < len(vetoed) < 40 and all(e.parts["second"] < 0 for e in vetoed)
    assert all(e.record()["score"] is None and e.record()["verdict"] == "vetoed" for e in vetoed)


def test_the_report_says_what_was_searched() -> None:
    candidates = Candidates(Recipe.of_seed(7), 7, 0.9)
    report = search("zero_order", Counting(), Budget(nfe=99), held_out=second(), candidates=candidates, seed=5)
    assert report.settings["algorithm"] == {"name": "zero_order"}
    assert (report.settings["verifier"], report.settings["held_out"]) == ("first", "second")
    assert (report.settings["seed"], report.settings["cosine"]) == (5, 0.9)
    assert report.settings["first"] == [{"op": "seed", "seed": 7}]
