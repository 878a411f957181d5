"""Checks a whole prompt against what a running ComfyUI says of its nodes at /object_info."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Spec = tuple[Any, dict[str, Any], bool]


def problems(prompt: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """One line for every unknown node or input, missing input, link that does not fit and value that is not legal.

    `known` is the answer of /object_info. Every input that a node declares must be given or be optional, the children
    of a drop-down and the sockets of a growing list included.
    """
    return [
        f"{key} ({node['class_type']}): {what}" for key, node in prompt.items() for what in _node(node, prompt, known)
    ]


def _node(node: dict[str, Any], prompt: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    if node["class_type"] not in known:
        yield "no such node"
        return
    given = node["inputs"]
    declared = dict(_declared(known[node["class_type"]]["input"], given))
    yield from (f"no input {name}" for name in given.keys() - declared.keys())
    for name, (kind, options, required) in declared.items():
        if name not in given:
            if required:
                yield f"{name} is missing"
        elif isinstance(given[name], list):
            yield from _link(name, given[name], kind, prompt, known)
        else:
            yield from _value(name, given[name], kind, options)


def _declared(inputs: dict[str, Any], given: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Spec]]:
    for group in ("required", "optional"):
        for name, (kind, *more) in inputs.get(group, {}).items():
            options = more[0] if more else {}
            if kind == "COMFY_AUTOGROW_V3":
                template = options["template"]
                [[inner, *_]] = template["input"]["required"].values()
                for i in range(template["max"]):
                    yield f"{prefix}{name}.{template['prefix']}{i}", (inner, {}, i < template["min"])
            elif kind == "COMFY_DYNAMICCOMBO_V3":
                children = {choice["key"]: choice["inputs"] for choice in options["options"]}
                yield prefix + name, ("COMBO", {"options": list(children)}, group == "required")
                yield from _declared(children.get(given.get(prefix + name), {}), given, f"{prefix}{name}.")
            else:
                options = {"options": kind, **options} if isinstance(kind, list) else options
                yield prefix + name, ("COMBO" if isinstance(kind, list) else kind, options, group == "required")


def _link(name: str, link: list[Any], kind: str, prompt: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    source, slot = link
    if source not in prompt:
        yield f"{name} comes from node {source}, which is not there"
        return
    outputs = known.get(prompt[source]["class_type"], {}).get("output", [])
    found = outputs[slot] if slot < len(outputs) else "nothing"
    if found != kind:
        yield f"{name} is {kind}, and output {slot} of node {source} is {found}"


def _value(name: str, value: Any, kind: str, options: dict[str, Any]) -> Iterator[str]:
    types: dict[str, Any] = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str}
    if kind not in types:
        yield f"{name} is a socket for {kind} and has the value {value!r}"
    elif not isinstance(value, types[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
        yield f"{name} is {kind} and has the value {value!r}"
    elif kind == "COMBO" and value not in options["options"]:
        yield f"{name} has the value {value!r}, which is not in its list"
    elif kind in ("INT", "FLOAT") and not options.get("min", value) <= value <= options.get("max", value):
        yield f"{name} is {value}, outside {options.get('min')} to {options.get('max')}"
