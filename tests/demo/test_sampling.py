"""The demo models make pictures that the exact judge accepts now and then, and the schedules are ComfyUI's."""

from pathlib import Path

import torch

from pack.demo import measure, sampling
from pack.demo.judge import judge


def test_the_small_flow_model_draws_what_a_simple_prompt_names_in_some_of_eight_tries() -> None:
    text = "a green triangle"
    images = measure.generate("flow", [text] * 8, seed=1)
    assert images.shape == (8, 64, 64, 3)
    assert float((judge(images, text) == 1.0).float().mean()) > 0


def test_the_sigmas_are_those_of_the_host(host: Path) -> None:
    import comfy.model_sampling

    discrete = comfy.model_sampling.ModelSamplingDiscrete()
    torch.testing.assert_close(sampling.eps_sigmas(), discrete.sigmas, rtol=1e-4, atol=1e-4)
    flow = comfy.model_sampling.ModelSamplingDiscreteFlow()
    flow.set_parameters(shift=sampling.SHIFT)
    torch.testing.assert_close(sampling.flow_sigmas(), flow.sigmas, rtol=1e-4, atol=1e-5)
