"""Facts about a user's conditioning and model patches that decide how candidates may go through the model."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from comfy.clip_vision import Output

#: Conditioning that the host mixes with noise of the sampler's own seed, so it differs between candidates.
SEEDED = frozenset({"noise_augmentation", "unclip_conditioning", "minimax_refs", "minimax_keyframes"})
#: Conditioning that speaks of places in the picture.
PLACED = frozenset({"control", "area", "mask", "gligen"})
#: Modules of guiders whose rows do not see each other; a server knows the second one by its path.
GUIDERS = ("comfy.samplers", "nodes_custom_sampler")
#: What a guider may do its own way.
GUIDER_METHODS = ("__call__", "outer_predict_noise", "predict_noise", "inner_sample", "outer_sample", "sample")
#: Packages whose objects guidance functions hold to read from them.
READ_ONLY = frozenset({"builtins", "comfy", "logging", "torch"})
#: What a function writes to in order to remember.
KEEPERS = (list, dict, set, bytearray, torch.Tensor)
#: Instructions and methods that write to what a function holds.
WRITING = frozenset({"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"})
WRITERS = frozenset({
    "add", "add_", "append", "appendleft", "clear", "copy_", "extend", "insert", "lerp_", "mul_", "pop", "popleft",
    "popitem", "setdefault", "update",
})  # fmt: skip


def keeps_memory(function: Any) -> bool:
    """Whether a patch function assigns to variables outside itself, so that one call changes the next."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    return any(i.opname == "STORE_DEREF" and i.argval in code.co_freevars for i in dis.get_instructions(code))


def may_keep_memory(function: Any) -> bool:
    """Whether one call of a patch function may change the next; so too of what cannot be looked into."""
    seen, waiting, writes, keeps = set(), [function], False, False
    while waiting:
        held = waiting.pop()
        if id(held) in seen:
            continue
        seen.add(id(held))
        if _changes(held):
            return True
        # whoever writes may have been handed what another holds
        writes = writes or (isinstance(held, FunctionType) and not is_of_host(held) and _writes(held.__code__))
        keeps = keeps or isinstance(held, KEEPERS)
        waiting += _reached(held)
    return writes and keeps


def _changes(held: Any) -> bool:
    """Whether something changes itself, as far as can be known."""
    if isinstance(held, FunctionType):
        return keeps_memory(held) if is_of_host(held) else _assigns(held.__code__)
    if isinstance(held, (*KEEPERS, partial, MethodType, type, ModuleType, BuiltinFunctionType)):
        return False
    return _package(type(held)) not in READ_ONLY


def _reached(held: Any) -> list[Any]:
    """What something holds."""
    if isinstance(held, partial):
        return [held.func, *held.args, *held.keywords.values()]
    if isinstance(held, MethodType):
        return [held.__self__, held.__func__]
    return _held(held) if isinstance(held, FunctionType) else []


def is_of_host(thing: Any) -> bool:
    """Whether a function or class is one of ComfyUI's own; a server knows those of its nodes by their path."""
    return _package(thing) in ("comfy", "comfy_api") or "comfy_extras" in str(thing.__module__)


def _held(function: FunctionType) -> list[Any]:
    """What a function reaches beside its arguments: what it closes over, its defaults, what its module holds."""
    closed = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    of_module = [function.__globals__[name] for name in sorted(names) if name in function.__globals__]
    mine = [each for each in of_module if not isinstance(each, FunctionType) or _package(each) == _package(function)]
    return [*closed, *defaults, *mine]


def _package(thing: Any) -> str:
    """The package that a function or class is from; of the nodes of a pack, a server knows it by its path."""
    return str(thing.__module__).partition(".")[0]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that has no value yet
        return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions inside it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _assigns(code: CodeType) -> bool:
    """Whether a function assigns to variables outside itself or to attributes."""
    return any(
        i.opname in ("STORE_GLOBAL", "STORE_ATTR") or (i.opname == "STORE_DEREF" and i.argval in code.co_freevars)
        for each in _codes(code)
        for i in dis.get_instructions(each)
    )


def _writes(code: CodeType) -> bool:
    return any(
        not WRITERS.isdisjoint(each.co_names) or any(i.opname in WRITING for i in dis.get_instructions(each))
        for each in _codes(code)
    )


def shares_a_variable(function: Any, patches: Any) -> bool:
    """Whether a guidance function has a variable in common with a patch inside the model, which may write to it."""
    mine = {id(cell) for cell in _cells(function)}
    return any(id(cell) in mine for each in _functions(patches) for cell in _cells(each))


def _cells(function: Any) -> tuple[Any, ...]:
    return getattr(function, "__closure__", None) or ()


def _functions(patches: Any) -> Iterator[Any]:
    if isinstance(patches, dict | list | tuple):
        for each in patches.values() if isinstance(patches, dict) else patches:
            yield from _functions(each)
    elif callable(patches):
        yield patches


def is_known(guider: Any) -> bool:
    """Whether a guider goes through the model as one of the host's own whose rows do not see each other."""
    return all(str(getattr(guider, name).__module__).endswith(GUIDERS) for name in GUIDER_METHODS)


def has_a_place(cond: dict[str, Any]) -> bool:
    """Whether a cond speaks of places in the picture: texts are vectors, pictures and latents have height and width."""
    if any(cond.get(name) is not None for name in PLACED):
        return True
    tensors = [each for value in cond.values() for each in (value if isinstance(value, list | tuple) else [value])]
    return any(isinstance(each, torch.Tensor) and each.ndim > 3 for each in tensors)


def repeats_alike(cond: dict[str, Any], rows: int) -> bool:
    """Whether a cond gives every candidate of `rows` rows the same when it is tiled over several candidates."""
    if any(cond.get(name) for name in SEEDED):
        return False
    # these the host stretches over all rows instead: 1, 1, 2, 2 and not 1, 2, 1, 2
    if any(each.shape[0] > 1 for name in cond if name.startswith("concat_") for each in _tensors(cond[name])):
        return False
    values = [*cond.values()]
    control = cond.get("control")
    while control is not None:
        values += [getattr(control, "cond_hint_original", None), getattr(control, "extra_concat_orig", None)]
        control = getattr(control, "previous_controlnet", None)
    return all(rows % each.shape[0] == 0 for each in _tensors(values))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors with rows in a cond's value: in lists, dicts and what CLIP Vision made of pictures too."""
    if isinstance(value, torch.Tensor) and value.ndim > 1:
        yield value
    held = vars(value) if isinstance(value, Output) else value
    if isinstance(held, list | tuple | dict):
        for each in held.values() if isinstance(held, dict) else held:
            yield from _tensors(each)
