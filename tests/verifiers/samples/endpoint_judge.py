"""A judge behind a server on this machine, whose answer is how bright the image is."""

from functools import cache
from pathlib import Path
from typing import Any

from pack.tests.verifiers import chat_server


@cache
def server() -> chat_server.Server:
    def answer(body: dict[str, Any]) -> chat_server.Answer:
        bright = chat_server.brightness(body)
        return chat_server.words({"Yes": 0.1 + 0.8 * bright, "No": 0.9 - 0.8 * bright})

    return chat_server.Server(answer)


def settings(folder: Path) -> dict[str, Any]:
    return {"base_url": server().base_url, "model": "brightness", "api_key_variable": ""}
