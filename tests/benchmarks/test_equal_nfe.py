"""Equal NFE: which prompts and methods take part, what a result counts for, and what the tables make of results."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from pack import search
from pack.benchmarks import equal_nfe
from pack.benchmarks.equal_nfe import (
    BLOCK,
    BUDGETS,
    CANDIDATES,
    STEPS,
    TUNED_ON,
    Clock,
    Found,
    Method,
    Task,
    Timed,
    details,
    methods,
    panels,
    record_key,
    tasks,
    text_of,
    unseen_prompts,
    yardsticks,
)
from pack.demo import scenes
from pack.demo.measure import frozen_prompts
from pack.search.smc import PRESETS

PLAIN = Method("zero_order", "zero_order")


def record(method: Method, prompt: str, budget: int, score: float, held_out: float, **more: Any) -> dict[str, Any]:
    return {
        "prompt": prompt, "method": method.name, "budget": budget, "nfe": budget, "score": score, "held_out": held_out,
        "candidates": budget // STEPS, "diversity": 2.0, "seconds": [1.0, 0.5, 0.25, 0.25],
        "made_with": method.made_with, **more,
    }  # fmt: skip


def yardstick(prompts: list[str]) -> list[dict[str, Any]]:
    """Pools of candidates whose held-out score is the searched score itself; the second sampler's are 1 better."""
    made = []
    for number, method in enumerate(yardsticks().values()):
        for i, prompt in enumerate(prompts):
            scores = np.random.default_rng(i).normal(size=CANDIDATES) + number
            pool = [scores.tolist(), scores.tolist()]
            made.append(record(method, prompt, STEPS * CANDIDATES, float(scores.max()), 0.0, pool=pool))
    return made


def test_no_prompt_was_tuned_on_and_no_scene_comes_twice() -> None:
    prompts = unseen_prompts(230)
    assert len(prompts) == 230 and not TUNED_ON & set(prompts)
    listed = [scenes.parse(prompt).canonical() for prompt in prompts]
    assert len(set(listed)) == 230
    tuned = {scenes.parse(prompt).canonical() for prompt in TUNED_ON}
    assert not tuned & set(listed)
    assert len(set(prompts) & set(frozen_prompts())) == len(frozen_prompts()) - len(TUNED_ON)


def test_a_shorter_list_of_prompts_is_the_beginning_of_a_longer_one() -> None:
    assert unseen_prompts(230)[:200] == unseen_prompts(200)


def test_every_algorithm_and_every_smc_preset_takes_part() -> None:
    named = methods()
    algorithms = {method.algorithm for method in named.values()}
    assert algorithms | {"random"} == set(search.ALGORITHMS)
    assert {f"smc {preset}" for preset in PRESETS} <= set(named)
    both = methods(("euler", "euler_ancestral"))
    assert len(both) == 2 * len(named) and both["pcn, euler_ancestral"].sampler == "euler_ancestral"


def test_work_goes_by_some_prompts_at_a_time_with_like_searches_together_and_best_of_n_first() -> None:
    prompts = [str(i) for i in range(BLOCK + 2)]
    wanted = tasks(["flow", "eps"], prompts, [PLAIN], [80, 160])
    first, last = wanted[: 8 * BLOCK], wanted[8 * BLOCK :]
    assert {task.prompt for task in first} == set(prompts[:BLOCK])
    assert [task.prompt for task in last] == prompts[BLOCK:] * 8
    assert [task.budget for task in last[:8:2]] == [STEPS * CANDIDATES] * 2 + [80, 160]
    assert [task.family for task in last] == ["flow"] * 8 + ["eps"] * 8
    assert len({(task.family, *task.key) for task in wanted}) == len(wanted)


def test_inner_steps_count_for_glass_alone() -> None:
    plain, more = Method("smc", "smc"), Method("smc", "smc", given=(("inner", 9),))
    assert plain.settings["transition"] != "glass" and plain.made_with == more.made_with
    glass = [Method("g", "smc", given=(("transition", "glass"), ("inner", inner))).made_with for inner in (1, 9)]
    assert len({plain.made_with, *glass}) == 3


def test_a_result_counts_for_the_settings_it_was_made_with() -> None:
    other = Method("zero_order", "zero_order", given=(("cosine", 0.5),))
    kept = record(PLAIN, "a", 80, 0.0, 0.0)
    assert record_key(kept) == Task("flow", "a", PLAIN, 80).key != Task("flow", "a", PLAIN, 160).key
    assert record_key(kept) != Task("flow", "a", other, 80).key
    assert Method("zero_order", "zero_order", "euler_ancestral").made_with != PLAIN.made_with
    assert Method("another name", "zero_order").made_with == PLAIN.made_with


def test_a_result_counts_for_the_model_files_it_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal_nfe, "shared", lambda: ["other files"])
    assert Method("zero_order", "zero_order").made_with != PLAIN.made_with


def test_settings_hold_defaults_and_what_is_given() -> None:
    preset = methods()["smc FK"]
    assert preset.settings["potential"] == "max" and preset.settings["eta"] == 1.0


def test_a_method_that_finds_what_twice_the_candidates_find_has_efficiency_two() -> None:
    prompts = [f"prompt {i}" for i in range(30)]
    found = Found(yardstick(prompts), [])
    records = [
        record(PLAIN, prompt, budget, float(value), float(value))
        for budget in BUDGETS
        for prompt, value in zip(prompts, found.curves["score"][1][2 * budget // STEPS - 1], strict=True)
    ]
    found = Found([*yardstick(prompts), *records], [PLAIN])
    for budgets in ([80], [640], list(BUDGETS)):
        for outcome in ("score", "held_out"):
            middle, low, high = map(float, re.findall(r"[\d.]+", found.efficiency(PLAIN, outcome, budgets)))
            assert middle == pytest.approx(2, abs=0.02) and low <= middle <= high
    assert found.of_sampler(1, "score", [80]).startswith("1.00 ")
    # 4 candidates of a sampler that is 1 sd worse: as good as one of the better sampler (the best of 4 is 1.03 sd up)
    assert float(found.of_sampler(0, "score", [80]).split()[0]) == pytest.approx(0.26, abs=0.02)
    text = text_of("flow", found)
    assert "30 prompts" in text and text.count("| zero_order |") == 2 + len(BUDGETS)
    assert text.count("| zero_order | 30 | 2.0") == 2  # both tables of efficiency


def test_a_column_leaves_out_the_prompts_that_share_a_seed() -> None:
    prompts = unseen_prompts(equal_nfe.ONE_SEED + 12)
    pools = yardstick(prompts)
    curve = Found(pools, []).curves["score"][1]
    records = [
        record(PLAIN, prompt, budget, float(curve[(2 if i >= equal_nfe.ONE_SEED else 1) * budget // STEPS - 1, i]), 0.0)
        for budget in BUDGETS
        for i, prompt in enumerate(prompts)
    ]
    found = Found([*pools, *records], [PLAIN])
    assert float(found.efficiency(PLAIN, "score", BUDGETS, own=True).split()[0]) == pytest.approx(2, abs=0.05)
    assert float(found.efficiency(PLAIN, "score", BUDGETS).split()[0]) < 1.5
    fewer = [r for r in records if r["prompt"] not in prompts[-3:]]
    assert Found([*pools, *fewer], [PLAIN]).efficiency(PLAIN, "score", BUDGETS, own=True) == "-"
    assert all(panel.title == "zero_order" for panel in panels(found, "score", "y"))


def test_looks_are_charged_to_who_takes_them_and_twice_where_they_take_a_gradient() -> None:
    prompts = [f"prompt {i}" for i in range(12)]
    pools = yardstick(prompts)
    same = Found(pools, []).curves["score"][1]
    looking, guided = Method("smc", "smc"), Method("guided", "guided")
    made = [
        record(method, prompt, budget, float(value), float(value), looks=budget // STEPS * 9)
        for method in (looking, guided)
        for budget in BUDGETS
        for prompt, value in zip(prompts, same[budget // STEPS - 1], strict=True)
    ]
    found = Found([*pools, *made], [looking, guided, PLAIN])
    assert found.pictures(looking) == pytest.approx(10 / STEPS) and found.pictures(guided) == pytest.approx(19 / STEPS)
    assert found.pictures(PLAIN) is None and found.charged(PLAIN, "score", 1.0) == "-"
    for method, pictures in ((looking, 10), (guided, 19)):
        for cost in (0.0, 1.0, 20.0):
            factor = float(found.charged(method, "score", cost).split()[0])
            assert factor == pytest.approx((STEPS + cost) / (STEPS + cost * pictures), rel=0.02)
    text = text_of("flow", found)
    assert "| guided | 95 | " in text and "| smc | 50 | " in text


def test_a_table_of_an_interrupted_run_compares_the_prompts_that_both_have() -> None:
    prompts = [f"prompt {i}" for i in range(5)]
    records = [record(PLAIN, prompt, 80, 1.0, 1.0) for prompt in (*prompts[:3], "one without best of n")]
    found = Found([*yardstick(prompts), *records], [PLAIN])
    assert len(found.at(PLAIN, 80)) == 3 and found.methods == [PLAIN]
    [line] = [line for line in details(found, 80) if line.startswith("| zero_order")]
    assert line.split(" | ")[1] == "3"
    assert found.efficiency(PLAIN, "score", list(BUDGETS)) == "-" and found.count(PLAIN) == 0
    assert found.efficiency(PLAIN, "score", [80]).endswith("[nan, nan]")  # too few prompts for an interval
    assert not [line for line in details(found, 160) if line.startswith("| zero_order")]


def test_a_clock_adds_up_only_the_methods_it_is_told_of() -> None:
    class Work:
        name = "work"

        def decode(self, rows: int) -> int:
            return sum(range(300_000)) * 0 + rows

        def other(self) -> int:
            return 7

    clock = Clock()
    timed = Timed(Work(), clock, {"decode": "decode"})
    assert timed.decode(3) == 3 and timed.other() == 7 and timed.name == "work"
    assert list(clock.seconds) == ["decode"] and clock.seconds["decode"] > 0
    assert not hasattr(timed, "members")


def test_the_thin_decoder_gives_the_same_pictures(host: Any) -> None:
    from pack.nodes.demo_world import load_demo_world

    with torch.no_grad():
        stock, thin = load_demo_world("flow"), equal_nfe.Worker().world("flow")
        latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
        assert torch.equal(stock.vae.decode(latents), thin.vae.decode(latents))
