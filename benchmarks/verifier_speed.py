"""How fast CLIPScore judges a batch, against the transformers library on the same weights, in one run.

    python run.py bench verifier_speed [--model demo|large|both] [--images 32] [--size PIXELS] [--rounds N]

Three ways to score the same images [B, H, W, 3] for the same prompt, in float32 on a CPU, in turns:
this pack's verifier; transformers in batches as large as the verifier's, on tensors, with the prompt read once; and
one image at a time through 8 bits, PIL and the library's processor, with the prompt read anew for each, as many packs
do it. `demo` is the demo world's CLIP, `large` a CLIP ViT-L/14 with random weights (1.7 GB, written to a temporary
folder). One thread, and its processor time, which other programs disturb less (still by a tenth on a busy machine). A
run of both models with the default images writes benchmarks/results/verifier_speed.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..load_pack import ROOT
from ..verifiers.images import CHUNK

RESULTS = ROOT / "benchmarks" / "results"
#: What each model is called, how large the images are that it is measured on, and how often.
MODELS = {"demo": ("The demo's CLIP", (512, 1024), 7), "large": ("CLIP ViT-L/14", (1024,), 3)}
WAYS = ("this pack", "transformers, batched", "one image at a time through PIL")
PROMPT = "a watercolour of two red foxes asleep under a blue umbrella, soft morning light, highly detailed"


def write_large(folder: Path, words: Path) -> None:
    """Write a CLIP ViT-L/14 with random weights, as the hub has it, with the tokenizer in `words`."""
    from shutil import copy

    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text |= {"projection_dim": 768, "bos_token_id": 49406, "eos_token_id": 49407}
    vision = {**sizes, "patch_size": 14, "image_size": 224, "projection_dim": 768}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768))
    model.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        copy(words / name, folder)


def ways(folder: Path) -> dict[str, Callable[[Any, str], Any]]:
    """What is compared: functions from images [B, H, W, 3] and a prompt to cosines [B]."""
    import torch
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    from ..verifiers.clip_score import load_clip_score

    verifier = load_clip_score(str(folder), weight=1.0, long_prompts="truncate")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    on_tensors = CLIPImageProcessor.from_pretrained(folder, do_rescale=False)
    on_pil = CLIPProcessor(CLIPImageProcessorPil.from_pretrained(folder), tokenizer)

    def ours(images: Any, prompt: str) -> Any:
        return verifier.score(images, prompt)

    def batched(images: Any, prompt: str) -> Any:
        ids = tokenizer([prompt], return_tensors="pt", truncation=True)
        text = model.get_text_features(**ids).pooler_output
        parts = []
        for chunk in images.movedim(-1, 1).split(CHUNK):
            pixels = on_tensors(images=list(chunk), return_tensors="pt")["pixel_values"]
            embedded = model.get_image_features(pixel_values=pixels).pooler_output
            parts.append(torch.cosine_similarity(embedded, text, dim=-1))
        return torch.cat(parts).clamp(min=0)

    def through_pil(images: Any, prompt: str) -> Any:
        parts = []
        for image in images:
            picture = Image.fromarray((image * 255).clamp(0, 255).byte().numpy())
            inputs = on_pil(text=[prompt], images=picture, return_tensors="pt", padding=True, truncation=True)
            output = model(**inputs)
            parts.append((output.image_embeds @ output.text_embeds.T)[:, 0])
        return torch.cat(parts).clamp(min=0)

    return dict(zip(WAYS, (ours, batched, through_pil), strict=True))


def measured(folder: Path, number: int, size: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each way's fastest round, and the largest difference of its scores from this pack's."""
    import torch

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(number, 3, 16, 16, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear").movedim(1, -1).contiguous()
    made = ways(folder)
    times: dict[str, list[float]] = {name: [] for name in made}
    scores = {}
    with torch.inference_mode():
        for score in made.values():
            score(images[:2], "warm up")
        for call in range(rounds):
            for name, score in made.items():
                start = time.process_time()
                # a prompt of its own for every round, or this pack would not read it again
                scores[name] = score(images, f"{call} {PROMPT}")
                times[name].append(time.process_time() - start)
    difference = {name: float((found - scores[WAYS[0]]).abs().max()) for name, found in scores.items()}
    return {name: min(seconds) for name, seconds in times.items()}, difference


def table(seconds: dict[str, float], difference: dict[str, float], number: int) -> Iterator[str]:
    """The rows of a Markdown table."""
    yield f"| way | seconds for {number} images | images per second | this pack is faster by | scores differ by |"
    yield "|---|---|---|---|---|"
    for name, taken in seconds.items():
        ratio = taken / seconds[WAYS[0]]
        yield f"| {name} | {taken:.2f} | {number / taken:.2f} | {ratio:.2f} x | {difference[name]:.0e} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.py bench verifier_speed", description=__doc__)
    parser.add_argument("--model", choices=(*MODELS, "both"), default="both")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, help="height and width of the images")
    parser.add_argument("--rounds", type=int, help="how often each way is timed; the fastest counts")
    arguments = parser.parse_args()

    import torch

    from ..demo import paths

    torch.set_num_threads(1)
    words = Path(os.environ["COMFYUI_PATH"]) / "comfy" / "sd1_tokenizer"
    text = [
        f"CLIPScore of {arguments.images} images for one prompt, float32, seconds of one CPU thread, ways in turns, "
        f"torch {torch.__version__}."
    ]
    print(text[0], flush=True)
    for name in MODELS if arguments.model == "both" else (arguments.model,):
        with tempfile.TemporaryDirectory(prefix="noise-search-speed-") as made:
            folder = paths.CLIP
            if name == "large":
                folder = Path(made)
                write_large(folder, words)
            called, sizes, rounds = MODELS[name]
            rounds = arguments.rounds or rounds
            for size in (arguments.size,) if arguments.size else sizes:
                rows = table(*measured(folder, arguments.images, size, rounds), arguments.images)
                part = ["", f"{called}, images of {size} x {size}, fastest of {rounds} round(s):", "", *rows]
                print("\n".join(part), flush=True)
                text += part
    if (arguments.model, arguments.images, arguments.size) != ("both", 32, None):
        return  # a quick look, not the published comparison
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "verifier_speed.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
