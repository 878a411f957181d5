"""GuidedSampler: ComfyUI's own sampling (GUIDER + SAMPLER + SIGMAS + LATENT + VAE) as the port of a search."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.nested_tensor
import comfy.patcher_extension
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch
from torch.autograd.graph import allow_mutation_on_saved_tensors

from ..search.curves import LOOK_COSTS
from ..search.differentiable import gradient_of
from ..search.errors import SearchError
from ..search.recipe import gaussian
from ..search.resolution import averaged, smaller_noise
from ..search.types import Meter, Row
from .abilities import OWN, Abilities
from .decoder import Decoder
from .gathering import Gathered, Inputs, PulledBack, split
from .guider_axes import asked_as, axes_of
from .lockstep import Call, merged_options, random_states, restore_random
from .noise import RecipeNoise, packed, unpacked
from .pull_back import TracedInpaint, kept_weights, unfused
from .rehearsal import Rehearsal
from .room import room

#: More candidates at once gain little on a GPU, and would let the user wait for images, and Cancel lose more of them.
LARGEST_MICRO_BATCH = 4
#: Model families of search.curves by the host's classes: fine-tunes are of the class of what they come from.
FAMILIES = {"Flux": "FLUX.1-dev", "SDXL": "SDXL"}
PREVIEWED = "what was not finished was decoded by preview_vae"


class GuidedSampler:
    """Moves candidates with a user's own guider and sampler; leaves both as they were.

    A row's `x` is the sampler's state in model space on its way, and the latent that stock would output once it is
    at the last sigma. What is not finished (x0 predictions on the way, scouts) is decoded by `preview_vae`, if there is
    one. `abilities` says what can be done here. `notes` collects what the report should say. `viewer`, where there is
    one, is shown what the first row of every micro-batch looks like on its way. Raises SearchError for inputs that
    cannot be sampled, before any sampling.
    """

    def __init__(
        self,
        guider: Any,
        sampler: Any,
        sigmas: torch.Tensor,
        latent: dict[str, Any],
        vae: Any,
        given: Any = None,
        preview_vae: Any = None,
    ) -> None:
        self.sampler, self.decoder = sampler, Decoder("vae", vae)
        self.preview = self.decoder if preview_vae is None else Decoder("preview_vae", preview_vae)
        self.given = given  # the NOISE that recipes with a "given" operation start from
        self.schedule = sigmas.detach().cpu()
        self.sigmas: tuple[float, ...] = tuple(self.schedule.tolist())
        self.notes: list[str] = []
        self.viewer: Callable[[torch.Tensor], None] | None = None
        self.meter: Meter | None = None
        self._count = threading.Lock()  # with several GPUs the model is entered from several threads
        self.guider = copy.copy(guider)
        self.guider.model_patcher = guider.model_patcher.clone()
        self.guider.model_patcher.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.APPLY_MODEL, OWN, self._apply_model
        )
        self.model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self.latent = fixed_latent(guider.model_patcher, latent)
        self._check()
        self.rows_per_candidate = int(self.latent["samples"].shape[0])
        if self.rows_per_candidate > 1:
            batch = f"latent_image is a batch of {self.rows_per_candidate}"
            self.notes.append(f"{batch}: one candidate is all of them, scored by their mean")
        self._costs: dict[tuple[float, ...], int | None] = {}
        self._rehearsal = Rehearsal(guider, sampler, self.schedule, self.coefficients(self.sigmas[0])[1])
        self.abilities = Abilities(self.guider, sampler, self.sigmas, self.latent, self._rehearsal)
        self._alone = self.abilities.runs_alone()

    def _check(self) -> None:
        if len(self.sigmas) < 2:
            raise SearchError(
                f"sigmas: got {len(self.sigmas)} sigmas, so no step is taken and all candidates would be the same; "
                "expected at least one step: raise steps or denoise"
            )
        parts = _tensors(self.latent["samples"])
        if not all(torch.isfinite(part).all() for part in parts):
            raise SearchError("latent_image: got a latent with NaN or infinite values; check the node that made it")
        channels = self.guider.model_patcher.get_model_object("latent_format").latent_channels
        if len(parts) == 1 and parts[0].shape[1] != channels:
            raise SearchError(
                f"latent_image: got {parts[0].shape[1]} channels; this model expects {channels}: "
                "use the empty-latent or VAE-encode node that belongs to the model"
            )
        if self.coefficients(self.sigmas[0])[1] == 0:
            raise SearchError(
                "model: its sampling starts from an image and adds no noise, so there is nothing to search"
            )
        self.decoder.check(parts[0])
        if self.preview is not self.decoder:
            self.preview.check(parts[0])

    # noise

    def noise(self, row: Row) -> torch.Tensor:
        """The start noise of a row, packed; leaves the global generator where stock leaves it for the row's seed."""
        noise = packed(RecipeNoise(row.recipe, self.given, row.noise).generate_noise(self.latent))
        return noise if row.shrink == 1 else smaller_noise(noise, row.shrink)

    # the port

    def advance(
        self,
        rows: Sequence[Row],
        sigmas: Sequence[float],
        meter: Meter,
        keep: Sequence[float] = (),
        trail: bool = False,
    ) -> list[Row]:
        """See search.types.Sampler."""
        shares = [{place: row} for place, row in enumerate(rows)] if trail else self._together(rows)
        if len(shares) > 1:
            return _in_order(shares, lambda share: self.advance(share, sigmas, meter, keep, trail))
        whole = tuple(sigmas) == self.sigmas
        schedule = self.schedule if whole else torch.tensor(sigmas, dtype=self.schedule.dtype)
        last = sigmas[-1] == self.sigmas[-1]
        steps = {step: sigma for step, sigma in enumerate(sigmas) if sigma in keep}
        job = self._trajectory if last else self._segment
        passed = schedule if whole else self._whole(sigmas)
        out, done = self._sample(rows, schedule, meter, job, passed, steps, partial(Gathered, trail=trail))
        outs = split(packed(out), len(rows)) if last else done.results
        moved = [
            replace(row, sigma=sigmas[-1], x=x.cpu(), x0=None if x0 is None else x0.cpu(), early=(*row.early, *early))
            for row, x, x0, early in zip(rows, outs, done.clean, done.kept, strict=True)
        ]
        return [replace(row, trail=tuple(done.trail)) for row in moved] if trail else moved

    def pull_back(self, row: Row, gradient: torch.Tensor, meter: Meter) -> torch.Tensor:
        """See search.types.Sampler. The network is the host's own, with its weights as they lie."""
        row = replace(row, sigma=self.sigmas[0], x=None)
        pulled = partial(PulledBack, gradient=gradient)
        _, done = self._sample([row], self.schedule, meter, self._trajectory, self.schedule, kind=pulled)
        return done.results[0].cpu()

    def predict(self, rows: Sequence[Row], meter: Meter) -> list[Row]:
        """See search.types.Sampler."""
        if len(shares := self._together(rows)) > 1:
            return _in_order(shares, lambda share: self.predict(share, meter))
        schedule = torch.tensor([rows[0].sigma, self.sigmas[-1]], dtype=self.schedule.dtype)
        _, done = self._sample(rows, schedule, meter, self._prediction, self._whole([rows[0].sigma]))
        return [
            replace(row, x=row.x if row.x is not None or state is None else state.cpu(), x0=x0.cpu())
            for row, x0, state in zip(rows, done.results, done.clean, strict=True)
        ]

    def renoise(self, row: Row, sigma: float, seed: int) -> Row:
        """See search.types.Sampler. Exact for every parametrisation: the coefficients are asked of the model."""
        if row.x is None:
            raise SearchError("a row at pure noise cannot be re-noised; expected one that has moved")
        (a, b), (c, d) = self.coefficients(row.sigma), self.coefficients(sigma)
        fresh = max(0.0, d**2 - (c / a * b) ** 2) ** 0.5
        recipe = row.recipe.then(op="renoise", seed=seed, **{"from": row.sigma, "to": sigma})
        return Row(recipe, sigma, c / a * row.x + fresh * gaussian(row.x, seed), parent=row.id)

    def show(self, x0: torch.Tensor) -> None:
        """See Owner. Of a latent of several parts, the viewer gets the first: the pictures."""
        if self.viewer is not None:
            self.viewer(_tensors(self.unpacked(x0))[0])

    def decode(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """See search.types.Sampler."""
        latents = torch.cat([self.visible_latent(row) for row in rows])
        finished = rows[0].sigma == self.sigmas[-1] and not rows[0].scout
        decoder = self.decoder if finished else self.preview
        if decoder is not self.decoder and PREVIEWED not in self.notes:
            self.notes.append(PREVIEWED)
        return split(decoder.images(latents), len(rows))

    def visible_latent(self, row: Row) -> torch.Tensor:
        """The latent that a row's picture is decoded from: its end, or its clean estimate on the way."""
        finished = row.sigma == 0
        latent = row.x if finished else row.x0
        if latent is None:
            raise SearchError(f"a row at sigma {row.sigma:g} has no picture yet")
        first = _tensors(self.unpacked(latent))[0]
        return first if finished else self.guider.model_patcher.model.process_latent_out(first)

    def cost(self, sigmas: Sequence[float]) -> int | None:
        """Forwards of one row, found by running the sampler on a scalar with a model that costs nothing."""
        key = tuple(sigmas)
        if key == self.sigmas:
            return self._rehearsal.whole_cost
        if key not in self._costs:
            part = torch.tensor(key, dtype=self.schedule.dtype)
            self._costs[key] = self._rehearsal.cost(part) if len(key) > 1 else 0
        return self._costs[key]

    @cached_property
    def exact_pauses(self) -> bool:
        """See search.types.Sampler. Samplers that remember steps or draw noise are found out on a scalar."""
        return self.abilities.pauses_exactly()

    @property
    def family(self) -> str:
        """See search.types.Sampler."""
        return FAMILIES.get(type(self.guider.model_patcher.model.model_config).__name__, "")

    @property
    def look_cost(self) -> float:
        """See search.types.Sampler."""
        own, small = LOOK_COSTS[self.family]
        return own if self.preview is self.decoder else small

    @cached_property
    def axes(self) -> Mapping[str, float]:
        """See search.types.Sampler. Whether a sampler draws noise on its way is found out on a scalar."""
        axes = axes_of(self.guider)
        if isinstance(self.sampler, comfy.samplers.KSAMPLER) and self._rehearsal.draws_noise():
            axes |= {"step_noise": 0.0}
        return axes

    def coefficients(self, sigma: float) -> tuple[float, float]:
        """See search.types.Sampler. Asked of the model's own noise scaling."""
        zero, one, s = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([sigma])
        scaling = self.model_sampling.noise_scaling
        return float(scaling(s, zero, one)), float(scaling(s, one, zero))

    def time(self, sigma: float) -> float:
        """See search.types.Sampler."""
        a, b = self.coefficients(sigma)
        b /= float(getattr(self.model_sampling, "noise_scale", 1.0))
        return b / (a + b)

    def sigma(self, time: float) -> float:
        """See search.types.Sampler."""
        variance_exploding = self.coefficients(self.sigmas[0])[0] == 1.0
        return time / (1 - time) if variance_exploding else time

    def micro_batch(self) -> int:
        """See search.types.Sampler."""
        shape = packed(self.latent["samples"]).shape
        return 1 if self._alone else room(self.guider, shape, self.rows_per_candidate, LARGEST_MICRO_BATCH)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """See search.types.Sampler."""
        return isinstance(error, Exception) and comfy.model_management.is_oom(error)

    def free_memory(self) -> None:
        """Unload what ComfyUI can load again by itself."""
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()

    def small_refusal(self, shrink: int) -> str | None:
        """See search.types.Sampler."""
        return self.abilities.small_refusal(shrink)

    # one guider.sample() per request

    def _sample(
        self,
        rows: Sequence[Row],
        schedule: torch.Tensor,
        meter: Meter,
        job: Callable[..., Callable[[Any], torch.Tensor]],
        whole: torch.Tensor,
        keep: Mapping[int, float] = MappingProxyType({}),
        kind: Callable[..., Gathered] | None = None,
    ) -> tuple[Any, Gathered]:
        mask = self._mask(len(rows))
        noises: list[torch.Tensor] = []
        states: list[torch.Tensor | None] = []
        for row in rows:
            under_way = row.x is not None
            # on its way a row needs its start noise only where a mask blends it in
            noises.append(torch.zeros_like(row.x) if under_way and mask is None else self.noise(row))
            states.append(None if under_way else torch.get_rng_state())
        gathered = (kind or Gathered)(self, rows, states, job, keep, whole)
        samples, count = self._samples(rows[0].shrink), len(rows)
        guider = asked_as(self.guider, rows[0].recipe.beside)
        self.meter = meter
        try:
            out = guider.sample(
                self.unpacked(torch.cat(noises)),
                samples if count == 1 else _repeated(samples, count),
                gathered,
                schedule.clone(),  # some samplers write into their sigmas
                denoise_mask=mask,
                disable_pbar=True,
                seed=rows[0].recipe.step_seed,
            )
        finally:
            self.meter = None
            _release(guider)
        return out, gathered

    def _whole(self, sigmas: Sequence[float]) -> torch.Tensor:
        """The schedule of rows that pass these sigmas: the user's own before the first of them and after the last."""
        before, after = (s for s in self.sigmas if s > sigmas[0]), (s for s in self.sigmas if s < sigmas[-1])
        return torch.tensor([*before, *sigmas, *after], dtype=self.schedule.dtype)

    def _together(self, rows: Sequence[Row]) -> list[dict[int, Row]]:
        """Rows by their place, in shares that go through the model together: those that ask it alike."""
        if self._alone:
            return [{place: row} for place, row in enumerate(rows)]
        shares: list[dict[int, Row]] = []
        for place, row in enumerate(rows):
            alike = (share for share in shares if next(iter(share.values())).recipe.beside == row.recipe.beside)
            share = next(alike, None)
            if share is None:
                shares.append({place: row})
            else:
                share[place] = row
        return shares

    def _samples(self, shrink: int) -> Any:
        samples = self.latent["samples"]
        return samples if shrink == 1 else averaged(samples, shrink)

    def _mask(self, count: int) -> Any:
        mask = self.latent.get("noise_mask")
        samples = self.latent["samples"]
        if mask is None or mask.is_nested or samples.is_nested or mask.ndim > samples.ndim:
            return mask
        if samples.ndim != 4 and mask.ndim != samples.ndim:
            return mask  # the frames of a mask for every video
        mask = mask[None] if mask.ndim == 2 else mask
        return comfy.utils.repeat_to_batch_size(mask, self.rows_per_candidate).repeat(count, *[1] * (mask.ndim - 1))

    def _apply_model(self, executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out: torch.Tensor = executor(x, *args, **kwargs)
        if self.meter is not None:
            with self._count:
                self.meter.model_rows(int(x.shape[0]))
        return out

    def asked_at(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The sigmas at which the user's sampler asks the model along these."""
        return self._rehearsal.asked_at(sigmas.cpu()) if len(sigmas) > 1 else sigmas

    def forward(self, guider: Any, calls: list[Call]) -> list[torch.Tensor]:
        """One forward for all calls, or one each where they cannot share it."""
        assert self.meter is not None
        self.meter.forward(sum(call.x.shape[0] for call in calls))
        options = None if len(calls) == 1 or self._alone else merged_options(calls)
        if options is None:
            return [_answered(guider, call) for call in calls]
        x, sigma = torch.cat([c.x for c in calls]), torch.cat([c.sigma for c in calls])
        state = torch.get_rng_state()
        try:
            out = guider(x, sigma, model_options=options, seed=calls[0].seed)
        except Exception as error:
            if self.is_out_of_memory(error):
                raise
            complaint = _first_line(error)
        else:
            if torch.equal(state, torch.get_rng_state()):
                return list(out.split([c.x.shape[0] for c in calls]))
            complaint = "it draws random numbers"
        # models and patches made for one image at a time complain in many ways; asked one by one, they either answer
        # or raise their real complaint
        outs = [_answered(guider, call) for call in calls]
        self._alone = True
        self.notes.append(f"the model takes one candidate at a time ({complaint})")
        return outs

    def back(self, guider: Any, call: Call, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient by what the model answers to a call, taken back through it to one by the call's x."""
        assert self.meter is not None
        x = call.x.detach().requires_grad_()
        try:
            # allow_mutation: Flux and others write into what autograd has saved
            patcher = guider.model_patcher
            with unfused(patcher.model), allow_mutation_on_saved_tensors(), kept_weights(patcher):
                [answer] = self.forward(guider, [Call(x, call.sigma.detach(), call.model_options, call.seed)])
                self.meter.backward(x.shape[0])
                if answer.requires_grad:
                    return gradient_of(answer, [x], gradient)[0]
            error = None
        except RuntimeError as raised:  # autograd's complaints; memory that runs out is known by the cause
            error = raised
        raise SearchError(
            f"model: no gradient passes through it ({_first_line(error)}); gradient search needs weights and "
            "attention with a gradient: load another version of the model, or choose another algorithm"
        ) from error

    # jobs: what one row does while it is suspended

    def _trajectory(self, row: Row, sigmas: torch.Tensor, inputs: Inputs) -> Callable[[Any], torch.Tensor]:
        """To the last sigma, as stock does it; from the row's state if it has one, or with gradients."""
        if row.x is None and not inputs.noise.requires_grad:
            return lambda model: self.sampler.sample(
                model, sigmas, inputs.extra_args, inputs.callback, inputs.noise, inputs.latent, inputs.mask, True
            )

        def resume(model: Any) -> torch.Tensor:
            out = self._run(model, row, sigmas, inputs)
            return model.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], out)

        return resume

    def _segment(self, row: Row, sigmas: torch.Tensor, inputs: Inputs) -> Callable[[Any], torch.Tensor]:
        """To a sigma on the way; the result is the state there."""
        return lambda model: self._run(model, row, sigmas, inputs)

    def _prediction(self, row: Row, sigmas: torch.Tensor, inputs: Inputs) -> Callable[[Any], torch.Tensor]:
        """The clean estimate at the first sigma."""

        def predict(model: Any) -> torch.Tensor:
            x = self._entry(model, row, sigmas, inputs)
            inputs.clean = x  # where the estimate was made
            return self._masked(model, inputs)(x, sigmas[0] * x.new_ones([x.shape[0]]), **inputs.extra_args)

        return predict

    def _run(self, model: Any, row: Row, sigmas: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """KSAMPLER's own inner loop, entered at the row's stored state."""

        def step(state: dict[str, Any]) -> None:
            inputs.callback(state["i"], state["denoised"], state["x"], len(sigmas) - 1)

        out: torch.Tensor = self.sampler.sampler_function(
            self._masked(model, inputs),
            self._entry(model, row, sigmas, inputs),
            sigmas,
            extra_args=inputs.extra_args,
            callback=step,
            disable=True,
            **self.sampler.extra_options,
        )
        return out

    def _entry(self, model: Any, row: Row, sigmas: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        if row.x is not None:
            return row.x.to(inputs.noise)
        highest = self.sampler.max_denoise(model, sigmas)
        start: torch.Tensor = model.inner_model.model_sampling.noise_scaling(
            sigmas[0], inputs.noise, inputs.latent, highest
        )
        return start

    def _masked(self, model: Any, inputs: Inputs) -> Any:
        kind = TracedInpaint if inputs.noise.requires_grad else comfy.samplers.KSamplerX0Inpaint
        masked = kind(model, inputs.schedule)
        masked.latent_image, masked.noise = inputs.latent, inputs.noise
        if self.sampler.inpaint_options.get("random", False):
            mask_seed = inputs.extra_args["seed"] + 1
            masked.noise = gaussian(inputs.noise.cpu(), mask_seed).to(inputs.noise)
        inputs.extra_args["denoise_mask"] = inputs.mask
        return masked

    # facts about the model

    def unpacked(self, tensor: torch.Tensor) -> Any:
        """A packed tensor as the host's latent: nested where the latent is nested."""
        return unpacked(tensor, self.latent["samples"])


def _answered(guider: Any, call: Call) -> torch.Tensor:
    """The model's answer to one call alone, with random numbers from where its caller is."""
    device = guider.model_patcher.load_device
    if call.random is not None:
        restore_random(device, call.random)
    answer: torch.Tensor = guider(call.x, call.sigma, model_options=call.model_options, seed=call.seed)
    if call.random is not None:
        call.random = random_states(device)
    return answer


def _first_line(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0] if error else "its answer does not depend on its input"


def fixed_latent(model: Any, latent: dict[str, Any]) -> dict[str, Any]:
    """The latent as stock samplers take it: channels and dimensions fixed before any noise is drawn."""
    fixed = latent.copy()
    ratios = fixed.pop("downscale_ratio_spacial", None), fixed.pop("downscale_ratio_temporal", None)
    fixed["samples"] = comfy.sample.fix_empty_latent_channels(model, latent["samples"], *ratios)
    return fixed


def _release(guider: Any) -> None:
    """After an error the host leaves ControlNets dirty and the conds behind: clean up as it does at the end."""
    conds = guider.__dict__.pop("conds", None)
    if conds is not None:
        comfy.sampler_helpers.cleanup_models(conds, guider.__dict__.pop("loaded_models", []))
        guider.__dict__.pop("inner_model", None)


def _in_order(shares: Sequence[dict[int, Row]], move: Callable[[list[Row]], list[Row]]) -> list[Row]:
    """What a move makes of every share, in the order of the rows' places."""
    moved: dict[int, Row] = {}
    for share in shares:
        moved.update(zip(share, move([*share.values()]), strict=True))
    return [moved[place] for place in sorted(moved)]


def _tensors(samples: Any) -> list[torch.Tensor]:
    return list(samples.unbind()) if samples.is_nested else [samples]


def _repeated(samples: Any, count: int) -> Any:
    if samples.is_nested:
        return comfy.nested_tensor.cat_nested([samples] * count)
    return samples.repeat(count, *[1] * (samples.ndim - 1))
