"""Cancel and errors: what was found is on disk, and the model, the guider and the process are as before."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import folder_paths
import pytest
import torch
from PIL import Image

from pack import search
from pack.nodes.live import FINISH
from pack.search import SearchError
from pack.tests.nodes import tiny

Interrupt = comfy.model_management.InterruptProcessingException
SETTINGS: dict[str, Any] = {"max_candidates": 8, "batch_size": 3, "latent_image": tiny.latent()}


def folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "noise_search" / "no-prompt-7"


def at_call(number: int, action: Callable[[], None]) -> Callable[[], None]:
    calls = 0

    def hook() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            action()

    return hook


def cancel() -> None:
    """What the Cancel button does; the model's next layer raises."""
    comfy.model_management.interrupt_current_processing(True)


def interrupt() -> None:
    raise Interrupt


def advanced(model: Any, guider: Any, algorithm: str, verifier: Any = None) -> Any:
    return tiny.search_custom(
        3, guider, comfy.samplers.sampler_object("euler_ancestral"), tiny.sigmas(model, 4), **SETTINGS,
        algorithm=search.algorithm(algorithm), verifier=verifier or tiny.Mean(),
    )  # fmt: skip


def columns(report: search.SearchReport) -> list[Any]:
    return [{k: v for k, v in e.record().items() if k != "seconds"} for e in report.evaluations]


def state(model: Any, guider: Any) -> Any:
    wrappers = {kind: {key: len(each) for key, each in keyed.items()} for kind, keyed in model.wrappers.items()}
    return (
        wrappers, set(guider.__dict__), len(model.patches), str(sorted(model.model_options)),
        str(guider.model_options["transformer_options"]), model.hook_mode,
        {k: [sorted(c) for c in v] for k, v in guider.original_conds.items()}, guider.model_patcher is model,
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", ["random", "paths"])
def test_cancel_at_any_point_keeps_what_was_found_and_leaves_no_trace(algorithm: str) -> None:
    counted = tiny.Counted(tiny.sd3())
    model, guider = counted.model, tiny.guider(counted.model)
    guider.original_conds = {k: [dict(c) for c in v] for k, v in guider.original_conds.items()}
    fresh = columns(advanced(model, guider, algorithm).args[5])
    total = len(counted.sizes)
    euler, sigmas = comfy.samplers.sampler_object("euler"), tiny.sigmas(model, 3)
    expected = tiny.stock_custom(3, guider, euler, sigmas, tiny.latent())
    before, threads = state(model, guider), threading.active_count()
    points = sorted({1 + i * total // 10 for i in range(10)})
    for number, point in enumerate(points):
        shutil.rmtree(folder(), ignore_errors=True)
        counted.before = at_call(point, cancel if number % 2 else interrupt)
        with pytest.raises(Interrupt):
            advanced(model, guider, algorithm)
        counted.before = None
        comfy.model_management.interrupt_current_processing(False)
        assert threading.active_count() == threads and state(model, guider) == before
        lines = [json.loads(line) for line in (folder() / "ledger.jsonl").read_text().splitlines()]
        assert "settings" in lines[0] and [line["id"] for line in lines[1:]] == list(range(len(lines) - 1))
        assert [{k: v for k, v in x.items() if k != "seconds"} for x in lines[1:]] == json.loads(
            json.dumps(fresh[: len(lines) - 1])
        )
        finished = [line for line in lines[1:] if line["candidate"] is not None]
        assert (folder() / "best.png").exists() == bool(finished)
        if finished:
            with Image.open(folder() / "best.png") as picture:
                picture.load()
                best = json.loads(picture.text["noise_search"])
            assert best["score"] == max(line["score"] for line in finished)
        assert FINISH.ask(None) == []
    assert tiny.difference(tiny.stock_custom(3, guider, euler, sigmas, tiny.latent()), expected) == 0.0
    assert columns(advanced(model, guider, algorithm).args[5]) == fresh


def test_an_interrupt_in_the_verifier_or_the_vae_passes_through() -> None:
    class VAE(tiny.PictureVAE):
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            raise Interrupt

    with pytest.raises(Interrupt):
        tiny.search(tiny.sd3(), verifier=tiny.Mean(before=at_call(2, interrupt)), batch_size=1)
    with pytest.raises(Interrupt):
        tiny.search(tiny.sd3(), vae=VAE())


def test_an_error_in_the_model_leaves_it_usable_and_controls_clean() -> None:
    def broken() -> None:
        counted.before = broken  # from then on: an error of a shared forward alone is tried again one by one
        raise ZeroDivisionError("in the model")

    counted = tiny.Counted(tiny.sd3())
    expected = tiny.stock(counted.model, 5)
    threads = threading.active_count()
    for point in (1, 4, 7):
        counted.before = at_call(point, broken)
        with pytest.raises(ZeroDivisionError):
            tiny.search(counted.model, **SETTINGS)
        counted.before = None
        assert tiny.difference(tiny.stock(counted.model, 5), expected) == 0.0
    assert threading.active_count() == threads


def test_a_failing_verifier_is_named_and_what_was_found_stays() -> None:
    def broken() -> None:
        raise KeyError("weights")

    shutil.rmtree(folder(), ignore_errors=True)
    with pytest.raises(SearchError, match="verifier mean failed: KeyError.*candidate 2"):
        tiny.search(tiny.sd3(), verifier=tiny.Mean(before=at_call(3, broken)), batch_size=1)
    assert len((folder() / "ledger.jsonl").read_text().splitlines()) == 3
    assert (folder() / "best.png").exists() and FINISH.ask(None) == []


def test_finish_now_ends_with_the_best_so_far_and_is_not_cached() -> None:
    counted = tiny.Counted(tiny.sd3())
    counted.before = at_call(9, lambda: FINISH.ask("7"))
    early = FINISH.ended_early("7")
    out = tiny.search(counted.model, max_candidates=50, batch_size=2)
    assert out.args[5].stopped == {"finish now": 1} and 1 <= len(out.args[5].finished) < 50
    assert FINISH.ended_early("7") == early + 1
    assert len(tiny.search(counted.model, max_candidates=2).args[5].finished) == 2


def test_a_search_changes_none_of_its_inputs() -> None:
    model, latent = tiny.model_of("eps"), {"samples": torch.ones(1, 16, 8, 8), "noise_mask": torch.ones(1, 8, 8)}
    guider, sigmas = tiny.guider(model), tiny.sigmas(model, 4)
    kept = copy.deepcopy(latent), sigmas.clone(), state(model, guider)
    tiny.search_custom(
        1, guider, comfy.samplers.sampler_object("uni_pc"), sigmas, latent_image=latent, max_candidates=3
    )
    assert latent.keys() == kept[0].keys() and all(torch.equal(latent[k], kept[0][k]) for k in latent)
    assert torch.equal(sigmas, kept[1]) and state(model, guider) == kept[2]
