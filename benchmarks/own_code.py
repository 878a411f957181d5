"""What the algorithms' own code costs, against one denoiser call of Stable Diffusion 1.5, in one run.

    python run.py bench own_code [--nfe 400]

Every registered algorithm searches on vectors as large as an SD1.5 latent (4 x 64 x 64). Only the time inside the
algorithm is counted: not the driver, not the sampler, not the verifier. It is given for each model call that the
algorithm asks for, and as a share of one call of SD1.5's network (its real configuration with random weights, float32,
one row without guidance). Processor seconds of one thread. The table is written to benchmarks/results/own_code.md.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from .pass_rate import RESULTS

#: The network of Stable Diffusion 1.5, as ComfyUI's model detection describes it.
SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4), "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "num_heads": 8, "num_head_channels": -1,
    "use_spatial_transformer": True, "context_dim": 768, "use_linear_in_transformer": False, "legacy": False,
    "adm_in_channels": None, "use_temporal_attention": False,
}  # fmt: skip
#: Numbers in a latent of 4 x 64 x 64, and as many more as make pixels of three.
SIZE = 4 * 64 * 64 + 2
#: The longest axis that has low-frequency bands; spectral search itself touches no latent, so this changes nothing.
LONGEST = 4095


def denoiser_seconds() -> float:
    """Processor seconds of one call of SD1.5's network on one row, the fastest of two."""
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    network = UNetModel(**SD15, dtype=torch.float32, device="cpu", operations=comfy.ops.manual_cast).eval()
    x, context = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
    taken = []
    with torch.inference_mode():
        for parameter in network.parameters():
            parameter.normal_(std=0.02)
        for _ in range(2):
            start = time.process_time()
            network(x, timesteps=torch.tensor([500.0]), context=context)
            taken.append(time.process_time() - start)
    return min(taken)


def own_seconds(name: str, nfe: int) -> tuple[float, int]:
    """Processor seconds inside an algorithm during a search of `nfe` model calls, and the calls that it made."""
    import torch

    from .. import search
    from ..search.mixture import MixtureSampler

    spent = [0.0]
    chosen = search.algorithm(name)

    def timed(space: Any, plan: Any, **settings: Any) -> Any:
        inner = chosen.search(space, plan, **settings)
        reply = None
        while True:
            start = time.process_time()
            try:
                request = inner.send(reply)
            except StopIteration:
                return
            finally:
                spent[0] += time.process_time() - start
            reply = yield request

    class Brightness:
        name = "brightness"

        def score(self, images: Any, prompt: str) -> Any:
            return images.mean(dim=(1, 2, 3))

    means = torch.randn(3, LONGEST if name == "spectral" else SIZE, generator=torch.Generator().manual_seed(1))
    flags = chosen.acts_midway, chosen.needs_gradient, chosen.guides
    report = search.run(
        search.Algorithm(name, timed, {}, *flags), MixtureSampler(means, steps=20, batch=16), Brightness(),
        search.Budget(nfe=nfe), candidates=search.Candidates.of_seed(1),
    )  # fmt: skip
    return spent[0], report.nfe


def main() -> None:
    """The command line."""
    import torch

    from ..load_pack import import_host
    from ..search import ALGORITHMS

    parser = argparse.ArgumentParser(prog="run.py bench own_code", description=__doc__)
    parser.add_argument("--nfe", type=int, default=400)
    arguments = parser.parse_args()
    import_host()
    torch.set_num_threads(1)
    call = denoiser_seconds()
    lines = [
        f"One call of SD1.5's network takes {call:.2f} s on one CPU thread; {arguments.nfe} NFE for each search.",
        "",
        "| algorithm | own code per model call, ms | share of the call |",
        "|---|---|---|",
    ]
    for name in ALGORITHMS:
        own_seconds(name, 100)  # warm up
        spent, nfe = own_seconds(name, arguments.nfe)
        lines.append(f"| {name} | {1000 * spent / nfe:.3f} | {spent / nfe / call:.4%} |")
        print(lines[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "own_code.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines[:1]))


if __name__ == "__main__":
    main()
