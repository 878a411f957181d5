"""Plain seeds for fresh candidates and for the search's own draws.

Neighbouring user seeds must share nothing, so candidate i is not seed + i but a hash of (seed, i). The
results stay below 2**50: every digit survives a browser's numbers, and a stock seed widget takes them.
"""

from __future__ import annotations

MASK = (1 << 64) - 1
SEED_BITS = 50


def splitmix64(value: int) -> int:
    """One output of SplitMix64 for the state `value` (Steele, Lea and Flood 2014): a bijection on 64 bits."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def child_seed(seed: int, stream: str, index: int) -> int:
    """The `index`-th seed of a named stream under `seed`, in [0, 2**50)."""
    state = splitmix64(seed & MASK)
    for byte in stream.encode():
        state = splitmix64(state ^ byte)
    return splitmix64(state ^ (index & MASK)) >> (64 - SEED_BITS)


def candidate_seed(seed: int, index: int) -> int:
    """The plain seed of fresh candidate `index`: the user's own for candidate 0, in [0, 2**50) after that."""
    return seed if index == 0 else child_seed(seed, "candidate", index)
