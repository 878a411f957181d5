"""Put the tensors of a weights file into a network, or say which do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..search.errors import SearchError
from .files import Source


def filled(
    network: nn.Module, tensors: Mapping[str, Tensor], path: Path, what: str, source: Source, needs: str = ""
) -> None:
    """Give a network, made on the meta device, its weights in float32 on the CPU, ready to score and never to train.

    Batch counters are left out: only training reads them. Raises SearchError, naming the file, `what` was expected in
    it and the first tensor that is missing, too much or of another shape.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if wrong:
        first = wrong[0]
        raise SearchError(
            f"file: {path.name} is no {what}: {len(wrong)} of its tensors do not fit, first {first}: got "
            f"{got.get(first, 'nothing')}; expected {expected.get(first, 'nothing')}{needs}; {source}"
        )
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    network.eval().requires_grad_(False)
