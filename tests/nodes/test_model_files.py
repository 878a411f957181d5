"""The drop-down of files: what ComfyUI's model folders hold, without clutter, on every system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path, PureWindowsPath

import folder_paths
import pytest

from pack.nodes import model_files
from pack.nodes.model_files import choices, models_in, path_of, register_folders
from pack.search import SearchError

NUMBER = count()


@pytest.fixture
def models(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A model folder of ComfyUI: its name and an empty place for its files."""
    name, place = f"noise_search_models_{next(NUMBER)}", tmp_path / "models"
    place.mkdir()
    folder_paths.add_model_folder_path(name, str(place))
    yield name, place
    del folder_paths.folder_names_and_paths[name]


def put(place: Path, *names: str) -> None:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"")


def test_a_hugging_face_folder_is_one_choice(models: tuple[str, Path]) -> None:
    name, place = models
    put(place, *(f"clip/{file}" for file in (
        "model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "onnx/model.onnx", "vocab.json",
        "config.json", "tokenizer.json", "README.md", "model.safetensors.partial", ".cache/huggingface/x.safetensors",
    )))  # fmt: skip
    assert choices((name,)) == ["clip/model.safetensors"]
    put(place, "old/pytorch_model.bin", "open/open_clip_model.safetensors", "open/open_clip_pytorch_model.bin")
    assert choices((name,)) == ["clip/model.safetensors", "old/pytorch_model.bin", "open/open_clip_model.safetensors"]


def test_pieces_of_a_model_and_of_a_training_are_no_choice(models: tuple[str, Path]) -> None:
    name, place = models
    pieces = (
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "pytorch_model-00001-of-00003.bin",
        "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth",
        "random_states_0.pkl", "training_args.bin",
    )  # fmt: skip
    put(place, *(f"run/{piece}" for piece in pieces), "run/model-2-of-2.safetensors", "optimizer_of_prompts.ckpt")
    assert choices((name,)) == ["run/model-2-of-2.safetensors"]


def test_the_two_formats_of_one_model_are_one_choice_and_two_models_are_two(models: tuple[str, Path]) -> None:
    name, place = models
    put(place, "a.safetensors", "a.pth", "b.pth", "deep/a.pth", "sac+logos+ava1-l14-linearMSE.pth", "UPPER.PT")
    assert choices((name,)) == ["UPPER.PT", "a.safetensors", "b.pth", "deep/a.pth", "sac+logos+ava1-l14-linearMSE.pth"]
    assert path_of((name,), "a.pth") == str(place / "a.pth")  # a workflow that names it still runs


def test_a_setting_whose_default_is_of_another_kind_lists_that_kind(models: tuple[str, Path]) -> None:
    name, place = models
    put(place, "coco.npz", "model.safetensors")
    assert choices((name,), "statistics.npz") == ["coco.npz", "statistics.npz"]
    assert choices((name,), "model.safetensors") == choices((name,)) == ["model.safetensors"]
    assert path_of((name,), "coco.npz") == str(place / "coco.npz")


def test_links_to_files_and_folders_are_followed_and_folders_are_no_files(
    models: tuple[str, Path], tmp_path: Path
) -> None:
    name, place = models
    put(tmp_path / "other disk", "blobs/0a1b", "whole/model.safetensors")
    (place / "snapshot").mkdir()
    (place / "folder.bin").mkdir()
    (place / "snapshot/model.safetensors").symlink_to(tmp_path / "other disk/blobs/0a1b")
    (place / "whole").symlink_to(tmp_path / "other disk/whole")
    (place / "broken.safetensors").symlink_to(tmp_path / "nowhere")
    assert choices((name,)) == ["broken.safetensors", "snapshot/model.safetensors", "whole/model.safetensors"]
    for choice in choices((name,)):
        assert path_of((name,), choice) == str(place / choice)


def test_names_have_forward_slashes_on_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "Path", PureWindowsPath)
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda _: ["clip\\model.safetensors", "x.pt"])
    assert choices(("verifiers", "clip_vision")) == [
        "clip/model.safetensors", "x.pt", "clip_vision/clip/model.safetensors", "clip_vision/x.pt",
    ]  # fmt: skip


def test_thousands_of_files_are_walked_once(models: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, place = models
    for i in range(40):
        put(place, *(f"{i}/{j}.safetensors" for j in range(100)))
    walked: list[str] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda top, **more: walked.append(top) or walk(top, **more))
    for _ in range(20):  # as many settings ask for a file
        assert len(choices((name,), "model.safetensors")) == 4001
    assert walked == [str(place)]
    put(place, "7/new.safetensors")
    assert "7/new.safetensors" in choices((name,)) and len(walked) == 2


def test_folders_of_extra_model_paths_take_part_and_the_first_is_where_files_belong(
    models: tuple[str, Path], tmp_path: Path
) -> None:
    name, place = models
    extra = tmp_path / "big disk"
    put(place, "a.pt", "both.pt")
    put(extra, "b.pt", "both.pt")
    folder_paths.add_model_folder_path(name, str(extra))
    assert choices((name,)) == ["a.pt", "b.pt", "both.pt"]
    assert path_of((name,), "b.pt") == str(extra / "b.pt") and path_of((name,), "both.pt") == str(place / "both.pt")
    assert path_of((name,), "c/d.pt") == str(place / "c/d.pt")
    folder_paths.add_model_folder_path(name, str(extra), is_default=True)
    assert path_of((name,), "c/d.pt") == str(extra / "c/d.pt")


@pytest.mark.parametrize("outside", ["../x.pt", "a/../../x.pt", "/etc/x.pt", "C:\\x.pt", "..\\x.pt", "\\\\host\\x.pt"])
def test_a_name_that_leads_outside_is_refused(models: tuple[str, Path], outside: str) -> None:
    with pytest.raises(SearchError, match="expected one of"):
        path_of(models[:1], outside)


def test_the_demo_is_listed_beside_the_models_of_the_user() -> None:
    register_folders()
    assert folder_paths.get_folder_paths("verifiers")[0] == os.path.join(folder_paths.models_dir, "verifiers")
    listed = models_in(("verifiers", "clip_vision", "text_encoders"))
    assert {"noise_search_demo_clip/model.safetensors", "noise_search_demo_classifier.safetensors"} <= set(listed)
