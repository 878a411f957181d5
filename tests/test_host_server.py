"""The test server is a real ComfyUI that has this pack, and says clearly what went wrong in it."""

from pathlib import Path

import pytest

from pack.tests.host_server import HostError, HostServer, failure

STOCK = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "stock"}},
}


def test_the_server_loads_this_pack_and_no_other(server: HostServer) -> None:
    log = server.log()
    assert "IMPORT FAILED" not in log
    loaded = [line for line in log.splitlines() if " seconds: " in line]
    assert len(loaded) == 1 and Path(loaded[0].split(" seconds: ")[1]).samefile(Path(__file__).parents[1])
    assert any(name.startswith("NoiseSearch") for name in server.object_info())


def test_a_stock_prompt_runs_and_its_image_can_be_viewed(server: HostServer) -> None:
    entry = server.run(STOCK)
    image = entry["outputs"]["2"]["images"][0]
    assert server.view(image).startswith(b"\x89PNG")
    assert (server.output_dir / image["filename"]).is_file()


def test_a_listener_hears_the_end_of_its_own_prompt(server: HostServer) -> None:
    with server.listen() as listener:
        prompt_id = server.queue(STOCK, listener.client_id)
        end = listener.wait_for("executing", lambda data: data["node"] is None)
    assert end["prompt_id"] == prompt_id
    assert listener.of_type("execution_start")[0]["prompt_id"] == prompt_id


def test_a_refused_prompt_says_which_node_is_wrong(server: HostServer) -> None:
    with pytest.raises(HostError, match="NoSuchNode"):
        server.queue({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_prompt_that_fails_names_node_and_error(server: HostServer) -> None:
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    (server.input_dir / "x.png").write_bytes(b"no image")
    with pytest.raises(HostError, match=r"an error in node 1 \(LoadImage\)"):
        server.run(prompt)
    assert failure(server.wait(server.queue(STOCK))) is None


def test_a_server_that_cannot_start_shows_its_log(host: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="unrecognized arguments: --no-such-option"):
        HostServer(host, tmp_path, arguments=["--no-such-option"]).start()
