"""The judge behind a server as a node: nothing is sent until it scores, and Cancel lets go of requests at once."""

from __future__ import annotations

import threading
import time
from typing import Any

import comfy.model_management
import pytest
import torch

from pack.nodes.verifier_nodes import ScoreImages, VerifierNode
from pack.search.judging import VerifierFailed
from pack.tests.nodes import tiny
from pack.tests.verifiers.chat_server import Answer, Server, brightness, words

PICTURES = torch.linspace(0.9, 0.1, 3)[:, None, None, None].expand(3, 16, 16, 3)


def bright(body: dict[str, Any]) -> Answer:
    return words({"Yes": brightness(body), "No": 1 - brightness(body)})


def node(server: Server, **widgets: Any) -> Any:
    given = {"base_url": server.base_url, "model": "m", "api_key_variable": "", **widgets}
    return tiny.execute(VerifierNode, verifier={"verifier": "Endpoint Judge", **given}).args[0]


def test_images_with_alpha_are_scored_and_sorted_by_the_node() -> None:
    server = Server(bright)
    made = node(server)
    assert server.asked == []
    images = torch.cat([PICTURES.flip(0), torch.ones(3, 16, 16, 1)], dim=-1)
    out = tiny.execute(ScoreImages, images=images, verifier=made, prompt="a cat")
    assert out.args[1] == pytest.approx([0.9, 0.5, 0.1], abs=0.01)
    assert torch.equal(out.args[0], images.flip(0))
    server.shutdown()


def test_cancel_in_comfyui_lets_go_of_requests_at_once() -> None:
    release = threading.Event()

    def never(body: dict[str, Any]) -> Answer:
        comfy.model_management.interrupt_current_processing(True)
        release.wait(20)
        return bright(body)

    server = Server(never)
    start = time.monotonic()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.execute(ScoreImages, images=PICTURES, verifier=node(server, concurrency=1, timeout=30.0), prompt="a cat")
    assert time.monotonic() - start < 5 and len(server.asked) == 1
    release.set()
    server.shutdown()


def test_a_server_that_is_gone_names_the_verifier_and_the_widget() -> None:
    server = Server(bright)
    made = node(server, retries=0)
    server.shutdown()
    server.server_close()
    with pytest.raises(VerifierFailed, match="Endpoint Judge failed: .*base_url: 127.0.0.1 could not be reached"):
        tiny.execute(ScoreImages, images=PICTURES, verifier=made, prompt="a cat")
