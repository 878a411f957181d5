"""Makes one of the demo's files again: `python -m demo.train STAGE`.

Run from the repository's root. The stages are to be run in the order of STAGES: each may read what earlier ones left.
All have fixed seeds, run on one CPU thread, and leave their files under demo/models (`latents`: in the scratch folder).
"""

from __future__ import annotations

import argparse
import importlib
import logging

import torch

from . import frozen, paths, tokens

STAGES = (
    "prompts", "tokenizer", "text", "vae", "latents", "clip", "clip_decoded", "classifier", "flow", "flow_further",
    "flow_large", "eps", "hashes",
)


def run(stage: str, steps: int | None = None) -> None:
    """Runs one of STAGES; `steps` replaces a training stage's own number of steps."""
    if stage == "prompts":
        frozen.write_prompts()
    elif stage == "tokenizer":
        tokens.write(paths.CLIP)
    elif stage == "hashes":
        frozen.write_hashes()
    else:
        options = {} if steps is None else {"steps": steps}
        if stage.startswith(("flow", "eps")):
            importlib.import_module(".fit_diffusion", __package__).fit(stage, **options)
        elif stage == "clip_decoded":
            importlib.import_module(".fit_clip", __package__).fit_decoded(**options)
        else:
            importlib.import_module(f".fit_{stage}", __package__).fit(**options)


def main() -> None:
    """Reads the stage from the command line and runs it."""
    parser = argparse.ArgumentParser(description="Makes one of the demo's files again.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--steps", type=int, default=None, help="fewer or more steps than the published weights had")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    run(arguments.stage, arguments.steps)


if __name__ == "__main__":
    main()
