"""A vision-language model as a judge: ask it a question about the image, and measure how sure it is of Yes.

Lin et al. 2024 (VQAScore, arXiv 2404.01291) ask "Does this figure show ...?" and take P("Yes").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..search.errors import SearchError
from .files import Source
from .images import scored
from .kinds import Setting, VerifierKind
from .notes import note
from .ports import VisionLanguageModel

PROMPT = "{prompt}"
QUESTION = f'Does this image show "{PROMPT}"?'
COMBINE = ("all must pass", "mean")
MEASURES = ("probability", "log-odds", "P(Yes) of all words")
#: Below this share of the next word for Yes and No together, the model answers something else.
_ANSWERED = 0.1

_SOURCES = (
    Source(
        file="qwen3vl_4b_bf16.safetensors or qwen3vl_4b_fp8_scaled.safetensors",
        address="https://huggingface.co/Comfy-Org/Qwen3-VL",
        size="8.9 GB or about 5 GB",
        licence="Apache-2.0",
        put="ComfyUI's models/text_encoders",
    ),
    Source(
        file="qwen3vl_8b_bf16.safetensors or qwen3vl_8b_fp8_scaled.safetensors",
        address="https://huggingface.co/Comfy-Org/Qwen3-VL",
        size="17.5 GB or about 10 GB",
        licence="Apache-2.0",
        put="ComfyUI's models/text_encoders",
    ),
)


class VLMJudge:
    """How sure a vision-language model is that the answer to each of `questions` is Yes.

    `measure`, from the logits of the answer's first token: "probability" is P(Yes) / (P(Yes) + P(No)), 0..1;
    "log-odds" is log P(Yes) - log P(No), which still tells apart images that are all but sure; both count every
    spelling that is one token. "P(Yes) of all words" is VQAScore's: the probability of "Yes" as it is written among
    the whole vocabulary. Several questions make one score by `combine`: the worst answer counts, or their mean.
    """

    name = "VLM Judge"
    differentiable = False
    scale: tuple[float, float] | None = None

    def __init__(
        self,
        vlm: VisionLanguageModel,
        questions: tuple[str, ...] = (QUESTION,),
        combine: str = COMBINE[0],
        measure: str = MEASURES[0],
    ) -> None:
        if not questions or not all(questions):
            raise SearchError("question: it is empty; write a question whose good answer is Yes")
        if combine not in COMBINE:
            raise SearchError(f"combine: got {combine!r}; expected one of {', '.join(COMBINE)}")
        if measure not in MEASURES:
            raise SearchError(f"measure: got {measure!r}; expected one of {', '.join(MEASURES)}")
        self.module: nn.Module | None = None  # the host has it, and moves it
        self.questions, self.combine, self.measure = questions, combine, measure
        self.needs_prompt = any(PROMPT in question for question in questions)
        self.notes: list[str] = []
        self._vlm = vlm
        self._yes, self._no = self._spellings("Yes"), self._spellings("No")

    def _spellings(self, word: str) -> list[int]:
        ids = list(self._vlm.tokens(word))
        if not ids:
            raise SearchError(f"vlm: {self._vlm.name} cannot say {word} in one token; wire another model")
        return ids

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. One call of the model per image and question.

        NaN where the model's logits are no numbers.
        """
        questions = [question.replace(PROMPT, prompt) for question in self.questions]

        def of(pixels: Tensor) -> Tensor:
            return torch.stack([self._of_one(image[None], questions) for image in pixels.movedim(1, -1)])

        with torch.no_grad():
            return scored(images, of)

    def _of_one(self, image: Tensor, questions: list[str]) -> Tensor:
        if not bool(image.isfinite().all()):
            return torch.tensor(float("nan"))
        answers = torch.stack([self._sure(self._vlm.next_token_logits(image, question)) for question in questions])
        score = answers.mean() if self.combine == "mean" else answers.min()
        return torch.where(score.isfinite(), score, float("nan")).float()

    def _sure(self, logits: Tensor) -> Tensor:
        """What `measure` says of the logits [vocabulary] of one answer, float64."""
        logits = logits.cpu().double()
        yes, no, everything = (torch.logsumexp(part, dim=0) for part in (logits[self._yes], logits[self._no], logits))
        if (yes - everything).exp() + (no - everything).exp() < _ANSWERED:
            note(
                self.notes,
                f"VLM Judge: {self._vlm.name} hardly thinks of answering Yes or No to a question; ask so that one of "
                "them is the first word of the answer"
            )
        if self.measure == MEASURES[2]:
            return (logits[self._yes[0]] - everything).exp()
        return yes - no if self.measure == MEASURES[1] else (yes - no).sigmoid()


def load_vlm_judge(
    vlm: VisionLanguageModel | None = None,
    question: str = QUESTION,
    questions: str = "",
    combine: str = COMBINE[0],
    measure: str = MEASURES[0],
) -> VLMJudge:
    """The judge with a model of the graph. `questions`, one per line, take the place of `question` if there are any.

    Raises SearchError when no model is wired, when there is no question, or when the model has no word for Yes or No.
    """
    if vlm is None:
        given = "; ".join(map(str, _SOURCES))
        raise SearchError(f"vlm: nothing is wired; expected a Qwen3-VL from Load CLIP, type stable_diffusion; {given}")
    asked = tuple(line.strip() for line in questions.splitlines() if line.strip())
    return VLMJudge(vlm, asked or (question.strip(),), combine, measure)


KIND = VerifierKind(
    key="vlm_judge",
    name="VLM Judge",
    description="How sure a vision-language model is that the answer to a question about the image is Yes.",
    load=load_vlm_judge,
    settings=(
        Setting(
            "vlm", "vlm", None,
            "Qwen3-VL 4B or 8B from Load CLIP, with the type left at stable_diffusion.",
        ),
        Setting(
            "question", "text", QUESTION,
            "What the model is asked about every image; good images are those whose answer is Yes. "
            "{prompt} stands for the prompt.",
        ),
        Setting(
            "questions", "lines", "",
            "A checklist, one question per line, instead of the question above; {prompt} stands for the prompt.",
        ),
        Setting(
            "combine", "choice", COMBINE[0],
            "The score of a checklist: all must pass takes the worst answer, mean the average.",
            options=COMBINE,
        ),
        Setting(
            "measure", "choice", MEASURES[0],
            "probability: of Yes against No, 0 to 1. log-odds: the same with more room at the ends, where many images "
            'are. P(Yes) of all words: VQAScore\'s, which falls when the model would begin with another word.',
            options=MEASURES,
        ),
    ),
    use_for="Prompts with counts, places, relations or text, and checklists of your own; the strongest judge of this "
    "list that needs no server. One call of a 4B or 8B model per image and question.",
    fooled_by="Text in the image that says what was asked for, and images that show it all in an ugly way: it is asked "
    "what is there, not how good it looks. Nearly every image of a good model gets a Yes: choose log-odds then.",
    sources=_SOURCES,
)  # fmt: skip
