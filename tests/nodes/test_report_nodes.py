"""Pictures and files of a report: always there, never blank, never in the way of the host."""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import ImageDraw, ImageFont

from pack import search
from pack.nodes.report_nodes import ContactSheet, SaveSearchReport, SearchReportPlot
from pack.nodes.report_pictures import DOT, HELD_OUT, LEAD, LINES, TRIAL, widen, wrapped
from pack.nodes.verifier_nodes import scored
from pack.search.recipe import describe
from pack.tests.nodes import tiny


class Picky(tiny.Mean):
    """Cannot judge every second image."""

    def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
        scores = super().score(images, prompt)
        scores[(self.seen + torch.arange(len(images))) % 2 == 0] = float("nan")
        return scores


GRAYS = torch.linspace(0.1, 0.9, 6).view(-1, 1, 1, 1).expand(-1, 8, 8, 3)


def reports() -> dict[str, Any]:
    model = tiny.sd3()
    paths = search.algorithm("paths", paths=1, width=2)
    return {
        "one candidate": tiny.search(model, max_candidates=1),
        "many": tiny.search(model, max_candidates=6, batch_size=3, top_k=6),
        "paths": tiny.search(model, max_candidates=4, algorithm=paths),
        "held-out": tiny.search(model, max_candidates=4, held_out=tiny.Mean("other")),
        "not judged": tiny.search(model, max_candidates=4, verifier=Picky(), batch_size=1),
        "stopped by target": tiny.search(model, max_candidates=9, target_score=0.01, batch_size=4),
        "video": tiny.search(tiny.wan(), max_candidates=2, latent_image=tiny.video_latent()),
        "images": scored(torch.rand(3, 8, 8, 3), tiny.Mean(), ""),
    }


REPORTS = {name: out if isinstance(out, search.SearchReport) else out.args[5] for name, out in reports().items()}


def is_picture(image: torch.Tensor, height: int | None = None, width: int | None = None) -> bool:
    assert image.dtype == torch.float32 and image.ndim == 4 and image.shape[0] == 1 and image.shape[-1] == 3
    assert height is None or image.shape[1:3] == (height, width)
    assert 0 <= float(image.min()) and float(image.max()) <= 1
    return float(image.std()) > 0.01


@pytest.mark.parametrize("kind", REPORTS)
def test_a_plot_of_any_report(kind: str) -> None:
    assert is_picture(tiny.execute(SearchReportPlot, report=REPORTS[kind], width=480, height=320).args[0], 320, 480)


@pytest.mark.parametrize("width", [320, 480, 960])
@pytest.mark.parametrize("kind", REPORTS)
def test_nothing_of_a_plot_sticks_out_at_its_sides(kind: str, width: int) -> None:
    image = tiny.execute(SearchReportPlot, report=REPORTS[kind], width=width, height=320).args[0]
    assert image[:, :, 0].min() == image[:, :, -1].min() == 1.0


def test_the_held_out_score_of_the_best_is_drawn_to_the_end() -> None:
    image = tiny.execute(SearchReportPlot, report=REPORTS["held-out"], width=960, height=540).args[0]
    drawn = (image[0] - torch.tensor(to_rgb(HELD_OUT))).abs().amax(dim=-1) < 0.05
    late = drawn[50:450, 780:860]  # inside the axes, before the label of the same colour
    assert late.any(dim=0).float().mean() > 0.5  # of a dashed line


def columns_of(colour: str, report: search.SearchReport) -> set[int]:
    """Where a plot of 480 x 320 has a colour, by columns of ten pixels; not in its legend."""
    image = tiny.execute(SearchReportPlot, report=report, width=480, height=320).args[0][0]
    found = (image[:240] - torch.tensor(to_rgb(colour))).abs().amax(dim=-1) < 0.02
    return {int(x) // 10 for x in found.any(dim=0).nonzero()}


def test_images_that_cost_nothing_stand_side_by_side() -> None:
    assert len(columns_of(DOT, scored(GRAYS, tiny.Mean(), ""))) >= 4
    assert columns_of(LEAD, scored(GRAYS, tiny.Mean(), "")) == set()  # no image came after another


def test_what_was_seen_on_the_way_has_a_colour_of_its_own() -> None:
    assert columns_of(TRIAL, REPORTS["paths"]) and columns_of(DOT, REPORTS["paths"])
    assert not columns_of(TRIAL, REPORTS["many"])


@pytest.mark.parametrize(
    "kind, title", [("one candidate", ": 1 candidate,"), ("many", ": 6 candidates,"), ("images", ": 3 images")]
)
def test_the_title_counts_what_is_drawn(kind: str, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_title", lambda axes, text, **_: titles.append(text))
    tiny.execute(SearchReportPlot, report=REPORTS[kind])
    assert title in titles[0]


def test_scores_that_differ_by_rounding_alone_look_constant() -> None:
    for constant in ([0.25] * 3, [21.3, 21.3 + 2e-6], [0.0, 0.0], [float("nan"), -4.0]):
        axes = Figure().add_subplot()
        axes.plot(constant)
        widen(axes, constant)
        low, high = axes.get_ylim()
        assert high - low >= 0.2 * max(abs(c) for c in constant if c == c) * 0.99 and low < constant[-1] < high
    axes.plot([21.0, 21.5])
    axes.set_ylim(20.9, 21.6)
    widen(axes, [21.0, 21.5])
    assert axes.get_ylim() == (20.9, 21.6)


@pytest.mark.parametrize("kind", REPORTS)
def test_a_contact_sheet_of_any_report(kind: str) -> None:
    for columns in (1, 4):
        sheet = tiny.execute(ContactSheet, report=REPORTS[kind], columns=columns, cell=64).args[0]
        assert is_picture(sheet) and sheet.shape[2] == min(columns, len(REPORTS[kind].top)) * 72 + 8


LONG = (
    search.Recipe.of_seed(2**64 - 1)
    .then(op="near", seed=3, cosine=0.9)
    .then(op="cfg", scale=4.25)
    .then(op="conditioning", seed=11, strength=1.2345)
    .then(op="step_noise", seed=2**50 - 1)
)


@pytest.mark.parametrize("cell", [64, 128, 192, 256])
def test_a_long_caption_stays_under_its_own_picture(cell: int) -> None:
    report = copy.copy(REPORTS["many"])
    report.top = [replace(k, evaluation=replace(k.evaluation, recipe=LONG.operations)) for k in report.top]
    sheet = ContactSheet.execute(report, columns=3, cell=cell).args[0][0]
    gaps = [i * (cell + 8) for i in range(4)]  # left of every cell, and right of the last
    assert all(sheet[:, gap : gap + 7].min() == 1.0 for gap in gaps)  # letters are smoothed by a pixel to the left
    assert sheet[-8:].min() == 1.0 and sheet[-40:].min() < 0.5  # the last line is there, whole


def test_a_caption_is_broken_between_words_and_what_is_left_out_is_shown() -> None:
    font = ImageFont.load_default(size=10)
    text = describe(LONG.operations)
    assert " ".join(wrapped(text, font, 192)) == text
    assert "".join(wrapped("x" * 40, font, 64)) == "x" * 40
    cut = wrapped(text * 9, font, 64)
    assert len(cut) == LINES and cut[-1].endswith("...")
    assert all(font.getlength(line) <= 64 for line in [*cut, *wrapped(text, font, 64)])


def captions(report: search.SearchReport) -> list[str]:
    """The texts of a contact sheet, as they are drawn."""
    drawn: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        whole = ImageDraw.ImageDraw.text
        patch.setattr(ImageDraw.ImageDraw, "text", lambda *a, **k: (drawn.append(a[2]), whole(*a, **k)))
        ContactSheet.execute(report, cell=256)
    return drawn


def test_the_caption_says_which_of_several_images_is_shown() -> None:
    batch = tiny.search(tiny.sd3(), max_candidates=2, latent_image=tiny.latent(batch=4)).args[5]
    assert captions(batch).count("image 1 of 4") == 2
    assert captions(REPORTS["video"]).count("frame 2 of 3") == 2
    assert not any(" of " in text for text in captions(REPORTS["many"]))


def test_a_report_of_images_that_nobody_can_judge_still_has_pictures() -> None:
    class Blind(tiny.Mean):
        def score(self, images: torch.Tensor, prompt: str) -> torch.Tensor:
            return torch.full((len(images),), float("nan"))

    report = scored(torch.rand(2, 8, 8, 3), Blind(), "")
    assert report.top == []
    image = tiny.execute(SearchReportPlot, report=report, width=320, height=240).args[0]
    assert is_picture(image, 240, 320)
    assert image[0, 70:150, 100:220].min() < 0.5  # a sentence stands in the frame
    assert image[:, :, 0].min() == image[:, :, -1].min() == 1.0
    with pytest.raises(search.SearchError, match="report: "):
        tiny.execute(ContactSheet, report=report, columns=2, cell=64)


@pytest.mark.parametrize("kind", REPORTS)
def test_saving_writes_strict_json_and_a_line_per_evaluation(kind: str) -> None:
    out = tiny.execute(SaveSearchReport, report=REPORTS[kind], filename_prefix="tests/saved")
    path = Path(out.args[0])

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    rows = list(csv.DictReader(path.with_suffix(".csv").open(newline="", encoding="utf-8")))
    assert len(rows) == len(read["evaluations"]) == len(REPORTS[kind].evaluations)
    assert all(json.loads(row["recipe"]) is not None for row in rows)
    assert json.dumps(out.ui, allow_nan=False) and isinstance(out.ui["text"], list)


def test_the_second_save_does_not_overwrite_the_first() -> None:
    inputs = {"report": REPORTS["many"], "filename_prefix": "tests/twice"}
    paths = [tiny.execute(SaveSearchReport, **inputs).args[0] for _ in range(3)]
    assert len(set(paths)) == 3 and all(Path(p).exists() for p in paths)


def test_saving_stays_inside_the_output_folder() -> None:
    with pytest.raises(Exception, match="(?i)output"):
        tiny.execute(SaveSearchReport, report=REPORTS["many"], filename_prefix="../../outside")
    assert not list(Path(folder_paths.get_output_directory()).parents[1].glob("outside*"))


SHOWN: dict[str, dict[str, Any]] = {
    "plain": {},
    "held-out": {"held_out": tiny.Mean("other")},
    "not judged": {"verifier": Picky()},
    "paths": {"algorithm": search.algorithm("paths", paths=1, width=2)},
}


@pytest.mark.parametrize("case", SHOWN)
def test_what_the_sampler_shows_is_json(case: str) -> None:
    out = tiny.search(tiny.sd3(), max_candidates=3, batch_size=1, **SHOWN[case])
    assert isinstance(out.ui["noise_search"], list)
    shown = json.loads(json.dumps(out.ui, allow_nan=False))["noise_search"][0]
    assert shown["candidates"] == 3 and shown["best"]["verdict"] == "judged"
    folder = Path(folder_paths.get_output_directory()) / "noise_search" / "no-prompt-7"
    assert json.loads((folder / "report.json").read_text())["best"] == shown["best"]


def test_the_images_are_the_top_k_best_first() -> None:
    report, images = REPORTS["many"], tiny.search(tiny.sd3(), max_candidates=6, batch_size=3, top_k=6).args[1]
    scores = [float(image.double().mean()) for image in images]
    assert scores == sorted(scores, reverse=True) and len(images) == len(report.top) == 6


@pytest.mark.parametrize("frames, shown", [(1, 3), (2, 2)])
def test_a_model_of_videos_that_makes_one_frame_gives_the_top_k_too(frames: int, shown: int) -> None:
    settings = {"latent_image": tiny.video_latent(frames), "max_candidates": 4, "top_k": 3, "batch_size": 1}
    _, images, *_, report = tiny.search(tiny.wan(), **settings).args
    assert len(report.top) == 3 and report.top[0].images.shape == (1, frames, 8, 8, 3)
    latent = settings["latent_image"]
    latents = [tiny.stock(tiny.wan(), kept.evaluation.seed, latent_image=latent)["samples"] for kept in report.top]
    assert torch.equal(images, torch.cat([tiny.PictureVAE().decode(each)[0] for each in latents])[:shown])
    assert ContactSheet.execute(report, cell=64).args[0].shape[2] == 3 * (64 + 8) + 8
