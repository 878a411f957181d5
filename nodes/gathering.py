"""SAMPLERs that go into guider.sample() in place of the user's: every row's own sampler, in lockstep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import comfy.samplers
import torch

from ..search.differentiable import differentiable
from ..search.guidance import LookaheadGuide
from ..search.seeds import child_seed
from ..search.types import Row
from .lockstep import Call, SuspendedModel, run_in_lockstep, seed_random
from .pull_back import Replay


class Owner(Protocol):
    """Whose rows they are: the port that counts forwards and knows the model."""

    guider: Any

    def coefficients(self, sigma: float) -> tuple[float, float]:
        """See search.types.Sampler."""

    def asked_at(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The sigmas at which the user's sampler asks the model along these."""

    def forward(self, guider: Any, calls: list[Call]) -> list[torch.Tensor]:
        """One forward for all calls, or one each where they cannot share it."""

    def show(self, x0: torch.Tensor) -> None:
        """Let the user see the clean estimate that the sampler of the first row has on its way."""

    def back(self, guider: Any, call: Call, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient by what the model answers to a call, taken back through it to one by the call's x."""


class Inputs:
    """What the samplers of one row get, on the device, in model space."""

    def __init__(
        self,
        noise: torch.Tensor,
        latent: torch.Tensor,
        mask: Any,
        extra_args: dict[str, Any],
        keep: Mapping[int, float],
        schedule: torch.Tensor,
    ) -> None:
        self.noise, self.latent, self.mask, self.extra_args, self.keep = noise, latent, mask, extra_args, keep
        self.schedule = schedule  # the whole of it, also where the row goes only a part of the way
        self.clean: torch.Tensor | None = None
        self.kept: list[tuple[float, torch.Tensor]] = []
        self.show: Callable[[torch.Tensor], None] | None = None

    def callback(self, step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        """Keep the last clean estimate, and those of the steps that are asked for: they are free."""
        self.clean = x0
        if step in self.keep:
            self.kept.append((self.keep[step], x0.cpu()))
        if self.show is not None:
            self.show(x0)


class Gathered(comfy.samplers.Sampler):
    """The SAMPLER that goes into guider.sample(): every row's own sampler, in lockstep."""

    def __init__(
        self,
        owner: Owner,
        rows: Sequence[Row],
        random_states: Sequence[torch.Tensor | None],
        job: Callable[..., Callable[[Any], torch.Tensor]],
        keep: Mapping[int, float],
        schedule: torch.Tensor,
        trail: bool = False,
    ) -> None:
        self.owner, self.rows, self.random_states, self.job, self.keep = owner, rows, random_states, job, keep
        self.schedule, self.leaves_trail = schedule, trail
        self.results: list[torch.Tensor] = []
        self.clean: list[torch.Tensor | None] = []
        self.kept: list[list[tuple[float, torch.Tensor]]] = []
        self.trail: list[torch.Tensor] = []  # of a row alone, where it is wanted: what the model answered

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: Any = None,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        count = len(self.rows)
        jobs, inputs = self._jobs(model_wrap, sigmas, extra_args, noise, latent_image, denoise_mask)
        inputs[0].show = self.owner.show
        if count == 1:  # no thread: exactly the stock call
            self.results = [jobs[0](SuspendedModel(model_wrap, lambda call: self._answered(model_wrap, call)))]
        else:
            self.results = run_in_lockstep(model_wrap, jobs, lambda calls: self.owner.forward(model_wrap, calls))
        self.clean = [each.clean for each in inputs]
        self.kept = [each.kept for each in inputs]
        return torch.cat(self.results)

    def _answered(self, model_wrap: Any, call: Call) -> torch.Tensor:
        [answer] = self.owner.forward(model_wrap, [call])
        if self.leaves_trail:
            self.trail.append(answer.to("cpu", copy=True))
        return answer

    def _jobs(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        noise: torch.Tensor,
        latent_image: Any,
        denoise_mask: Any,
    ) -> tuple[list[Callable[[Any], torch.Tensor]], list[Inputs]]:
        count = len(self.rows)
        masks = [None] * count if denoise_mask is None else shares(denoise_mask, count)
        parts = zip(self.rows, split(noise, count), split(latent_image, count), masks, strict=True)
        schedule = self.schedule.to(sigmas)
        told = {**extra_args, "model_options": told_of(schedule, extra_args["model_options"])}
        if conds := hooked(model_wrap):
            passed = self.owner.asked_at(schedule[schedule >= sigmas[0]]).to(sigmas)
            replay_keyframes(model_wrap, conds, passed[passed > sigmas[0]], told["model_options"])
        inputs = [
            Inputs(n, x, m, {**told, "seed": self._seed(row, sigmas)}, self.keep, schedule) for row, n, x, m in parts
        ]
        guides = self._guides(noise)
        jobs = []
        for row, each, state in zip(self.rows, inputs, self.random_states, strict=True):
            job, seed = self.job(row, sigmas.clone(), each), each.extra_args["seed"]
            jobs.append(self._started(job, seed, state, guides.get(id(row.guide))))
        return jobs, inputs

    def _guides(self, like: torch.Tensor) -> dict[int, LookaheadGuide]:
        """The guides of the rows by their id, with lookaheads in model space on the device: rows end as VAE latents."""
        model = self.owner.guider.model_patcher.model
        guides = {id(row.guide): row.guide for row in self.rows if row.guide is not None}
        latents = {key: guide.latents for key, guide in guides.items()}
        inside = {key: model.process_latent_in(z.flatten(0, 1)).reshape(z.shape).to(like) for key, z in latents.items()}
        return {key: replace(guide, latents=inside[key]) for key, guide in guides.items()}

    def _started(
        self,
        job: Callable[[Any], torch.Tensor],
        seed: int,
        state: torch.Tensor | None,
        guide: LookaheadGuide | None,
    ) -> Callable[[Any], torch.Tensor]:
        """The job, with the global generators where stock has them after it drew this row's noise (`state`), or at a
        seed of their own where the row goes on from a stored state."""

        def run(model: Any) -> torch.Tensor:
            seed_random(self.owner.guider.model_patcher.load_device, seed, state)
            return job(model if guide is None else self._guided(model, guide))

        return run

    def _guided(self, model: Any, guide: LookaheadGuide) -> SuspendedModel:
        """The model with every clean estimate corrected, after CFG. The forward is still shared with other rows."""

        def corrected(call: Call) -> torch.Tensor:
            x0 = model(call.x, call.sigma, model_options=call.model_options, seed=call.seed)
            sigma = float(call.sigma.flatten()[0])
            return guide.correct(call.x, x0, sigma, self.owner.coefficients(sigma))

        return SuspendedModel(model, corrected)

    @staticmethod
    def _seed(row: Row, sigmas: torch.Tensor) -> int:
        """The step-noise seed. A row that goes on from a stored state must not repeat the noise that led there."""
        seed = row.recipe.step_seed
        return seed if row.x is None else child_seed(seed, "segment", int(float(sigmas[0]) * 1e6))


class PulledBack(Gathered):
    """The SAMPLER for the way back: its result is the gradient by the start noise of its one row."""

    def __init__(self, owner: Owner, rows: Sequence[Row], *args: Any, gradient: torch.Tensor) -> None:
        super().__init__(owner, rows, *args)
        self.gradient = gradient

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: Any = None,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        with differentiable():
            leaf = noise.clone().requires_grad_()
            replay = Replay(self.rows[0].trail)
            [job], _ = self._jobs(model_wrap, sigmas, extra_args, leaf, latent_image, denoise_mask)
            state = job(SuspendedModel(model_wrap, replay.answer))
            end = model_wrap.inner_model.process_latent_out(state.to(torch.float32))
            through = partial(self.owner.back, model_wrap)
            self.results = [replay.back(end, self.gradient.to(end), leaf, through)]
        return state.detach()


def told_of(schedule: torch.Tensor, model_options: dict[str, Any]) -> dict[str, Any]:
    """Model options that tell patches of the whole schedule, as stock does, though rows go only a part of it."""
    transformer_options = {**model_options["transformer_options"], "sample_sigmas": schedule}
    return {**model_options, "transformer_options": transformer_options}


def hooked(guider: Any) -> list[dict[str, Any]]:
    """The conds with hooks, as they are while it samples."""
    return [cond for conds in guider.conds.values() for cond in conds if "hooks" in cond]


def replay_keyframes(
    guider: Any, conds: Sequence[dict[str, Any]], sigmas: torch.Tensor, model_options: dict[str, Any]
) -> None:
    """Take the keyframes of hooks past sigmas of calls behind the rows: the host starts them anew with every call."""
    for hook in (hook for cond in conds for hook in cond["hooks"].hooks):
        # a reset leaves the last sigma behind, at which the host would take the first step for one already taken
        hook.hook_keyframe.prepare_current_keyframe(-1.0, model_options["transformer_options"])
        hook.reset()
    patcher = guider.inner_model.current_patcher
    for sigma in sigmas:
        for cond in conds:
            if cond.get("timestep_end", 0.0) <= sigma <= cond.get("timestep_start", float("inf")):
                patcher.prepare_hook_patches_current_keyframe(sigma[None], cond["hooks"], model_options)


def split(tensor: torch.Tensor, count: int) -> list[torch.Tensor]:
    return list(tensor.split(tensor.shape[0] // count))


def shares(mask: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Every candidate's part of a mask; a mask of one row serves all."""
    return [mask] * count if mask.shape[0] % count else split(mask, count)
