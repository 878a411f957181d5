"""ComfyUI-NoiseSearch: search over noise inside ComfyUI. Nothing of the host is imported before it asks."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls to get the nodes."""
    from .nodes import NoiseSearchExtension

    return NoiseSearchExtension()
