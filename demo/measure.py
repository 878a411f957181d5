"""Prints how good the shipped demo files are: `python -m demo.measure [--prompts 240] [--seeds 1]`."""

from __future__ import annotations

import argparse
import math
import random
import time

import torch

from . import classifier, clip_model, mmdit, paths, sampling, scenes, vae
from .frozen import KINDS, kind
from .judge import judge
from .pairs import changed, counts, truth
from .scenes import CLASSES, Scene

RECOMMENDED_CFG: dict[str, float] = {"flow": 3.0, "eps": 3.0, "flow_large": 3.0}


def wilson(passed: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share; (nan, nan) of nothing."""
    if total == 0:
        return math.nan, math.nan
    z = 1.959964
    share = passed / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - spread) / (1 + z * z / total), (centre + spread) / (1 + z * z / total)


def share(name: str, passed: int, total: int) -> str:
    """One line with a share and its interval."""
    low, high = wilson(passed, total)
    return f"{name}: {passed}/{total} = {passed / total:.3f} (95 % {low:.3f} to {high:.3f})"


def frozen_prompts() -> list[str]:
    """The evaluation prompts, one per line of prompts.txt."""
    return paths.PROMPTS.read_text(encoding="utf-8").split("\n")[:-1]


def drawn(count: int, seed: int) -> tuple[list[Scene], list[scenes.Layout], torch.Tensor]:
    """`count` fresh scenes, their layouts and pictures [count, 64, 64, 3]."""
    rng = random.Random(seed)
    listed = [scenes.random_scene(rng) for _ in range(count)]
    layouts = [scenes.layout(scene, rng) for scene in listed]
    return listed, layouts, scenes.render(layouts)


def _passes(images: torch.Tensor, listed: list[Scene]) -> list[bool]:
    return [float(judge(image[None], scene)) == 1.0 for image, scene in zip(images, listed, strict=True)]


def measure_pictures() -> None:
    """The judge on drawn pictures and on reconstructions, and the VAE's PSNR."""
    listed, _, images = drawn(1000, 101)
    print(share("judge passes drawn pictures", sum(_passes(images, listed)), len(listed)))
    shuffled = listed[1:] + listed[:1]
    print(share("judge passes mismatched prompts", sum(_passes(images, shuffled)), len(listed)))
    model = vae.load(paths.VAE)
    with torch.no_grad():
        latents = torch.cat([model.encode(part) for part in images[:400].split(50)])
        again = torch.cat([model.decode(part) for part in latents.split(50)])
    errors = (again - images[:400]).square().mean(dim=(1, 2, 3))
    print(f"VAE PSNR: {float((-10 * errors.log10()).mean()):.2f} dB over 400 pictures")
    seen = vae.process_in(latents)
    print(f"latents as the diffusion model sees them: mean {float(seen.mean()):.3f}, std {float(seen.std()):.3f}")
    print(share("judge passes reconstructions", sum(_passes(again, listed[:400])), 400))


def measure_classifier() -> None:
    """Mean average precision over the 24 classes on drawn pictures and reconstructions."""
    listed, _, images = drawn(600, 102)
    model = classifier.load(paths.CLASSIFIER)
    auto = vae.load(paths.VAE)
    present = counts(listed) > 0
    with torch.no_grad():
        again = torch.cat([auto.decode(auto.encode(part)) for part in images.split(50)])
        for name, pictures in (("drawn", images), ("reconstructed", again)):
            logits = model(pictures.permute(0, 3, 1, 2))
            scores = [_average_precision(logits[:, k], present[:, k]) for k in range(len(CLASSES))]
            print(f"classifier mAP on {name} pictures: {sum(scores) / len(scores):.4f}")


def _average_precision(scores: torch.Tensor, present: torch.Tensor) -> float:
    ranked = present[scores.argsort(descending=True)].float()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / ranked.sum().clamp(min=1))


def measure_clip(seed: int = 103, count: int = 600) -> None:
    """How often the CLIP scores a picture's own prompt above 7 near-identical false ones (chance 12.5 %)."""
    rng = random.Random(seed)
    listed, layouts, images = drawn(count, seed)
    model, tokenizer = clip_model.load(paths.CLIP)
    auto = vae.load(paths.VAE)
    options = []
    for scene, layout in zip(listed, layouts, strict=True):
        false: list[Scene] = []
        for _ in range(400):
            one = changed(scene, rng)
            if len(false) < 7 and one not in false and not bool(truth([scene], [layout], [one])):
                false.append(one)
        options.append([scene, *false])
    with torch.no_grad():
        again = torch.cat([auto.decode(auto.encode(part)) for part in images.split(50)])
        texts = [scenes.prompt(scene) for row in options for scene in row]
        pooled = clip_model.encode_text(model, clip_model.tokenize(tokenizer, texts))[1]
        pooled = torch.nn.functional.normalize(pooled, dim=1).split([len(row) for row in options])
        for name, pictures in (("drawn", images), ("reconstructed", again)):
            made = torch.cat([clip_model.encode_images(model, part) for part in pictures.split(50)])
            right = sum(int((choice @ one).argmax()) == 0 for choice, one in zip(pooled, made, strict=True))
            print(share(f"CLIP picks the true prompt of 8 on {name} pictures", right, count))


def generate(
    name: str, texts: list[str], seed: int, steps: int = 20, cfg: float | None = None, batch: int = 60
) -> torch.Tensor:
    """One picture per prompt from a shipped model, [B, 64, 64, 3] in 0..1, by this package's own sampler."""
    objective = "eps" if name == "eps" else "flow"
    model = mmdit.load(paths.DIFFUSION_FILES[name])
    clip, tokenizer = clip_model.load(paths.CLIP)
    auto = vae.narrow(vae.load(paths.VAE))
    guidance = RECOMMENDED_CFG[name] if cfg is None else cfg
    generator = torch.Generator().manual_seed(seed)
    made = []
    with torch.no_grad():
        empty = clip_model.encode_text(clip, clip_model.tokenize(tokenizer, [""]))
        for start in range(0, len(texts), batch):
            some = texts[start : start + batch]
            text = clip_model.encode_text(clip, clip_model.tokenize(tokenizer, some))
            plain = tuple(part.expand(len(some), *part.shape[1:]) for part in empty)
            noise = torch.randn(len(some), mmdit.CHANNELS, 8, 8, generator=generator)
            latents = sampling.sample(objective, model, noise, text, (plain[0], plain[1]), steps, guidance)
            made.append(auto.decode(vae.process_out(latents)))
    return torch.cat(made)


def measure_diffusion(name: str, texts: list[str], seeds: int, steps: int = 20, cfg: float | None = None) -> None:
    """The exact judge's pass rate of one model, in all and by kind of prompt."""
    began = time.perf_counter()
    parsed = [scenes.parse(text) for text in texts]
    images = torch.cat([generate(name, texts, seed, steps, cfg) for seed in range(seeds)])
    repeated = parsed * seeds
    passed = _passes(images, repeated)
    scores = [float(judge(image[None], scene)) for image, scene in zip(images, repeated, strict=True)]
    print(share(f"{name} passes", sum(passed), len(passed)) + f"; mean score {sum(scores) / len(scores):.3f}; "
          f"{(time.perf_counter() - began) / len(passed):.3f} s per picture")
    for label in KINDS:
        chosen = [ok for ok, scene in zip(passed, repeated, strict=True) if kind(scene) == label]
        if chosen:
            print("  " + share(label, sum(chosen), len(chosen)))


def main() -> None:
    """Measures everything, or only the models named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=None)
    parser.add_argument("--only", nargs="*", default=["pictures", "classifier", "clip", *paths.DIFFUSION_FILES])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"pictures": measure_pictures, "classifier": measure_classifier, "clip": measure_clip}
    for name in arguments.only:
        if name in parts:
            parts[name]()
        else:
            texts = frozen_prompts()[: arguments.prompts]
            measure_diffusion(name, texts, arguments.seeds, arguments.steps, arguments.cfg)


if __name__ == "__main__":
    main()
