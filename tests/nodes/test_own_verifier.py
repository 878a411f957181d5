"""The README's verifier in 15 lines, as a node pack of its own in a running ComfyUI."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pack.load_pack import ROOT
from pack.tests.host_server import PACK, HostServer
from pack.tests.workflows.graphs import add, pictures, search_graph, search_id


def code() -> str:
    """The Python block below the heading of own verifiers."""
    readme = (Path(ROOT) / "README.md").read_text(encoding="utf-8")
    section = readme.split("### A verifier in 15 lines")[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def with_another_pack(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """A ComfyUI with this pack and the README's."""
    other = tmp_path_factory.mktemp("packs") / "my_verifier"
    other.mkdir()
    (other / "__init__.py").write_text(code(), encoding="utf-8")
    with HostServer(host, tmp_path_factory.mktemp("server"), packs=(PACK, other)) as running:
        yield running


def test_it_has_no_more_than_15_lines_and_imports_nothing_of_this_pack() -> None:
    assert len([line for line in code().splitlines() if line.strip()]) <= 15
    assert "import" not in code()


def test_a_search_is_led_by_the_verifier_of_another_pack(with_another_pack: HostServer) -> None:
    prompt = search_graph(save=False, seed=3, max_candidates=6, top_k=6)
    node = search_id(prompt)
    own = add(prompt, "MyBrightness")
    prompt[node]["inputs"]["verifier"] = [own, 0]
    view = add(prompt, "PreviewImage", images=[node, 1])
    entry = with_another_pack.run(prompt)
    [summary] = entry["outputs"][node]["noise_search"]
    assert set(summary["best"]["parts"]) == {"Brightness"}
    brightness = [np.asarray(picture).mean() for picture in pictures(with_another_pack, entry, view)]
    assert brightness == sorted(brightness, reverse=True) and len(brightness) == 6
