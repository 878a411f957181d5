"""The text that feeds a sampler, read from the graph that is being run."""

from __future__ import annotations

import re
from typing import Any

from comfy.sd1_clip import escape_important, token_weights, unescape_important

import nodes as host_nodes

from ..search.errors import SearchError

#: Where the host's tokenizer sees an embedding: at the start of a piece, or after a space.
_EMBEDDING = re.compile(r"(?:^|(?<=\s))embedding:[^\s<\[]*\s*")


def prompt_of(graph: Any, node_id: str, inputs: tuple[str, ...] = ("positive",)) -> str:
    """The prompt behind a node's conditioning: `graph` is the host's dynamic prompt of the running workflow.

    Follows the wires from the node's `inputs` to the one node that encodes text, and reads it as `plain` does. Raises
    SearchError when there is none, or several with different texts.
    """
    texts: list[str] = []
    _collect(graph, graph.get_node(node_id), inputs, texts, set())
    found = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(found) == 1:
        return found[0]
    got = "no text" if not found else f"{len(found)} different texts ({', '.join(repr(t[:40]) for t in found)})"
    raise SearchError(
        f"prompt: the widget is empty and {got} was found behind {inputs[0]}; the verifier needs one prompt: "
        "type it into the prompt widget"
    )


def plain(text: str) -> str:
    """What a text says without ComfyUI's syntax: no brackets and weights, no embeddings, \\( as (.

    It is cut up as the host's tokenizer does it. No verifier was taught that syntax.
    """
    said = ""
    for marked, _ in token_weights(escape_important(text), 1.0):
        piece = _EMBEDDING.sub("", unescape_important(marked))
        said += " " * (said[-1:].isalnum() and piece[:1].isalnum()) + piece  # the host never joins words of two pieces
    return re.sub(r",\s*(?=,)", "", said).strip(", \n")


def _collect(graph: Any, node: dict[str, Any], names: Any, texts: list[str], seen: set[tuple[str, str]]) -> None:
    for name in names:
        link = node["inputs"].get(name)
        if not _is_link(link) or (str(link[0]), name) in seen:
            continue
        seen.add((str(link[0]), name))
        source = graph.get_node(link[0])
        strings = _texts(graph, source)
        if strings:
            texts.append(max(strings, key=len))  # encoders with one text per tower: the longest says most
        else:
            _collect(graph, source, _upstream(source, link[1]), texts, seen)


def _upstream(node: dict[str, Any], slot: int) -> list[str]:
    """The inputs of a pass-through node that lead on to the text of one of its outputs."""
    links = [name for name, value in node["inputs"].items() if _is_link(value)]
    if "positive" in links:  # ControlNet and the like: the second output is the negative
        return ["negative" if slot == 1 and "negative" in links else "positive"]
    types = _input_types(node)
    return [name for name in links if types.get(name) in ("CONDITIONING", "GUIDER")]


def _texts(graph: Any, node: dict[str, Any]) -> list[str]:
    """The texts of a node that encodes text; typed in, or wired from a node that holds one."""
    types = _input_types(node)
    if "CLIP" not in types.values():
        return []
    found = []
    for name, kind in types.items():
        value = node["inputs"].get(name)
        if kind == "STRING" and _is_link(value):
            source = graph.get_node(value[0])
            kinds = _input_types(source)
            held = [v for n, v in source["inputs"].items() if isinstance(v, str) and kinds.get(n) == "STRING"]
            value = held[0] if len(held) == 1 else None  # a node that joins texts is not re-enacted here
        if kind == "STRING" and isinstance(value, str):
            found.append(plain(value))
    return found


def _input_types(node: dict[str, Any]) -> dict[str, str]:
    kinds = host_nodes.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()
    declared = {**kinds.get("required", {}), **kinds.get("optional", {})}
    return {name: spec[0] if isinstance(spec[0], str) else "COMBO" for name, spec in declared.items()}


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)
