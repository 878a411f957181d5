"""What can be done with a user's guider, sampler, schedule and latent, and why the rest cannot."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.patcher_extension
import comfy.samplers

from .patches import (
    has_a_place,
    is_known,
    is_of_host,
    keeps_memory,
    may_keep_memory,
    repeats_alike,
    shares_a_variable,
)
from .rehearsal import Rehearsal

#: Places along a side of a latent below which no row is made smaller.
SMALLEST_LATENT = 4
OUTER, SAMPLING = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE
#: The key of the wrapper by which the pack counts rows.
OWN = "noise_search"
#: What takes the place of the conditional and the unconditional prediction.
PREDICTS = "sampler_calc_cond_batch_function"
#: Wrappers that see single steps.
STEPS = (
    comfy.patcher_extension.WrappersMP.PREDICT_NOISE,
    comfy.patcher_extension.WrappersMP.CALC_COND_BATCH,
    comfy.patcher_extension.WrappersMP.APPLY_MODEL,
    comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL,
)


class Abilities:
    """Each refusal is a reason in words, or None. `latent` is the one that candidates are made from."""

    def __init__(
        self, guider: Any, sampler: Any, sigmas: tuple[float, ...], latent: dict[str, Any], rehearsal: Rehearsal
    ) -> None:
        self.guider, self.sampler, self.sigmas, self.latent = guider, sampler, sigmas, latent
        self.rehearsal = rehearsal

    def midway_refusal(self) -> str | None:
        """Why an algorithm that pauses rows mid-way cannot be exact here."""
        if not isinstance(self.sampler, comfy.samplers.KSAMPLER):
            return f"the SAMPLER ({type(self.sampler).__name__}) can only run whole trajectories"
        if self.sigmas[-1] > 0:
            return f"the SIGMAS do not end at 0 (got {self.sigmas[-1]:g}), so there is no clean image to work towards"
        if self._wrapped(OUTER):
            return "a patch on the model (EasyCache, LazyCache or the like) keeps memory over whole trajectories"
        if self._keeps_memory():
            return "a guidance patch on the model (APG momentum or the like) remembers the last step"
        if may_keep_memory(self._model_wrapper):
            return "a patch around the model's calls (TeaCache or the like) may remember the last step"
        return None

    def pauses_exactly(self) -> bool:
        """Whether a row that stops on the way and goes on ends as if it had not: not if anything forgets meanwhile."""
        functions = [*self._guidance(), *self._step_wrappers()]
        if isinstance(self.sampler, comfy.samplers.KSAMPLER):
            functions.append(self.sampler.sampler_function)
        forgets = any(may_keep_memory(function) for function in functions)
        return self.midway_refusal() is None and not forgets and self.rehearsal.pauses_exactly()

    def gradient_refusal(self) -> str | None:
        """Why no gradient can go back from an image to its start noise here."""
        if not isinstance(self.sampler, comfy.samplers.KSAMPLER):
            return f"the SAMPLER ({type(self.sampler).__name__}) cannot be followed step by step"
        if self.sigmas[-1] > 0:
            return f"the SIGMAS do not end at 0 (got {self.sigmas[-1]:g}), so there is no clean image to score"
        if self.rehearsal.whole_cost is None:
            return (
                "the sampler chooses its steps by the image or looks into the model: choose one with a fixed number of "
                "steps, such as euler"
            )
        if self._wrapped(OUTER) or self._wrapped(SAMPLING):
            return "a patch on the model (EasyCache, LazyCache or the like) leaves out calls or keeps memory"
        if self._keeps_memory():
            return "a guidance patch on the model (APG momentum or the like) remembers the last step"
        if self.guider.model_patcher.get_additional_models_with_key("multigpu"):
            return "the model is split over several GPUs"
        if comfy.model_management.sage_attention_enabled():
            return "SageAttention has no gradient: start ComfyUI without --use-sage-attention"
        if not self.rehearsal.passes_gradient():
            return "the sampler does not pass a gradient (CFG++ and the like): choose another one, such as euler"
        return None

    def small_refusal(self, shrink: int) -> str | None:
        """Why rows cannot be smaller by a factor. What has a place in the picture would have to be made smaller too."""
        samples = self.latent["samples"]
        if samples.is_nested or samples.ndim < 4:
            return "the latent is not one picture or video"
        height, width = samples.shape[-2:]
        if height % shrink or width % shrink:
            return f"the latent of {width} x {height} is not divisible by that"
        if min(height, width) // shrink < SMALLEST_LATENT:
            return f"the latent would have {width // shrink} x {height // shrink} places (at least {SMALLEST_LATENT})"
        if self.latent.get("noise_mask") is not None:
            return "the latent has a mask"
        if any(has_a_place(cond) for cond in self._conditioning()):
            return "the conditioning has a ControlNet, an area, a mask or an image"
        return None

    def runs_alone(self) -> bool:
        """Whether candidates must go through the model one at a time to be what stock makes of them."""
        if self._wrapped(OUTER) or self._wrapped(SAMPLING):
            return True
        if self._keeps_memory() and self.rehearsal.whole_cost is None:
            return True  # rows of an adaptive sampler interleave
        if self._sampler_may_mix_rows() or may_keep_memory(self._model_wrapper):
            return True
        # in a shared forward each candidate's rows are guided apart
        inside = self.guider.model_options["transformer_options"]
        if any(may_keep_memory(f) or shares_a_variable(f, inside) for f in self._guidance()):
            return True
        predicts = self.guider.model_options.get(PREDICTS)
        if predicts is not None and not is_of_host(predicts):
            return True  # it sees the rows of all calls together
        if not is_known(self.guider):
            return True
        if isinstance(self.guider.model_patcher.model, comfy.model_base.SVD_img2vid):
            return True  # its rows are the frames of one video, however many
        rows = int(self.latent["samples"].shape[0])
        return not all(repeats_alike(cond, rows) for cond in self._conditioning())

    def _conditioning(self) -> list[Any]:
        return [cond for each in self.guider.original_conds.values() for cond in each]

    def _guidance(self) -> list[Any]:
        """The functions that make the conditional and the unconditional prediction, and one of both."""
        options = self.guider.model_options
        several = [
            f for name in ("sampler_pre_cfg_function", "sampler_post_cfg_function") for f in options.get(name, [])
        ]
        return [*several, *(options[name] for name in (PREDICTS, "sampler_cfg_function") if name in options)]

    @property
    def _model_wrapper(self) -> Any:
        return self.guider.model_options.get("model_function_wrapper")

    def _keeps_memory(self) -> bool:
        return any(keeps_memory(function) for function in (*self._guidance(), self._model_wrapper))

    def _sampler_may_mix_rows(self) -> bool:
        """Whether a sampler may keep beside its run, or in the model as SamplerARVideo does, what is of one row."""
        if isinstance(self.sampler, comfy.samplers.KSAMPLER):
            return not self.rehearsal.works or may_keep_memory(self.sampler.sampler_function)
        return not is_of_host(type(self.sampler))

    def _step_wrappers(self) -> list[Any]:
        """What others have put around single steps."""
        options = self.guider.model_options["transformer_options"]
        return [
            wrapper
            for wrappers in (options.get("wrappers", {}), self.guider.model_patcher.wrappers)
            for kind in STEPS
            for key, of_key in wrappers.get(kind, {}).items()
            if key != OWN
            for wrapper in of_key
        ]

    def _wrapped(self, kind: str) -> bool:
        """Whether a patch has put something of its own around the sampling."""
        of_options = comfy.patcher_extension.get_all_wrappers(kind, self.guider.model_options, is_model_options=True)
        return bool(of_options or self.guider.model_patcher.get_all_wrappers(kind))
