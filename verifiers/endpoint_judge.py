"""A vision-language model behind a server as a judge: vLLM, SGLang, llama.cpp, Ollama, LM Studio, or on the internet.

The grader of Ma et al. 2025 (arXiv 2501.09732) asks for five aspects; the shorter ways to ask read the probabilities of
one word, which ties far less often than a written grade.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..search.errors import SearchError
from .chat_endpoint import ChatEndpoint, Unanswered, refuse_secrets
from .images import scored
from .kinds import Setting, VerifierKind
from .notes import note, notes_on
from .parallel import in_order

PROMPT = "{prompt}"
ASPECTS = ("accuracy", "creativity", "visual_quality_and_realism", "consistency", "emotional_resonance")
FORMATS = ("jpeg", "png")
JPEG_QUALITY = 95
#: Notes about images that could not be judged, one per reason; a broken server might make up ever new ones.
_NOTES_KEPT = 20


def _one_word(answer: dict[str, Any]) -> dict[str, float]:
    """The probabilities of the first word of an answer, by word in lower case without spaces."""
    probabilities: dict[str, float] = {}
    try:
        logprobs = answer["choices"][0].get("logprobs")
        if not logprobs or not logprobs.get("content"):
            raise SearchError(
                "mode: the server or the model gives no logprobs; choose the mode json_aspects, or another server"
            )
        for choice in logprobs["content"][0]["top_logprobs"]:
            word = str(choice["token"]).strip().lower()
            probabilities[word] = probabilities.get(word, 0.0) + math.exp(min(0.0, float(choice["logprob"])))
    except (LookupError, TypeError, ValueError, AttributeError):
        raise Unanswered("the answer has no top_logprobs where they belong") from None
    return probabilities


def _yes(answer: dict[str, Any]) -> float:
    """P(Yes) / (P(Yes) + P(No)), 0..1, of an answer's first word."""
    words = _one_word(answer)
    yes, no = words.get("yes", 0.0), words.get("no", 0.0)
    if not yes + no > 0:
        raise Unanswered("neither Yes nor No is among the likeliest first words of the answer")
    return yes / (yes + no)


def _digit(answer: dict[str, Any]) -> float:
    """The mean grade from 0 to 9 under an answer's probabilities, as 0..1."""
    words = _one_word(answer)
    grades = {grade: words.get(str(grade), 0.0) for grade in range(10)}
    if not sum(grades.values()) > 0:
        raise Unanswered("no digit is among the likeliest first words of the answer")
    return sum(grade * p for grade, p in grades.items()) / sum(grades.values()) / 9


def _aspects(answer: dict[str, Any]) -> float:
    """The mean of the five aspects' grades from 0 to 10, as 0..1."""
    try:
        text = str(answer["choices"][0]["message"]["content"]).rpartition("</think>")[2]
        grades = json.loads(text[text.index("{") : text.rindex("}") + 1])
        scores = [float(grades[aspect]["score"]) for aspect in ASPECTS]
    except (LookupError, TypeError, ValueError, RecursionError):
        raise Unanswered("the answer is not the JSON that was asked for") from None
    if not all(0 <= score <= 10 for score in scores):
        raise Unanswered("the answer has a grade outside 0 to 10")
    return sum(scores) / len(scores) / 10


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_GRADE = _object({"explanation": {"type": "string"}, "score": {"type": "number"}})
_SCHEMA = {"name": "grades", "strict": True, "schema": _object(dict.fromkeys((*ASPECTS, "overall"), _GRADE))}
_FIRST_WORD = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}


@dataclass(frozen=True)
class Mode:
    """A way to ask: the question, further fields of the request, and how to read the answer as 0..1."""

    question: str
    fields: dict[str, Any]
    read: Callable[[dict[str, Any]], float]


MODES = {
    "logprobs_yes_no": Mode(f'Does this image show "{PROMPT}"? Answer with Yes or No.', _FIRST_WORD, _yes),
    "logprobs_digit": Mode(
        f'How good is this image as a picture of "{PROMPT}"? Consider whether all that was asked for is there as it '
        "was asked for, and how good it looks. Answer with one digit from 0 (useless) to 9 (perfect).",
        _FIRST_WORD,
        _digit,
    ),
    "json_aspects": Mode(
        f'This image was generated for the text "{PROMPT}". Grade it strictly, each time first with an explanation of '
        "one sentence and then with a score from 0 (worst) to 10 (best): accuracy (is all that the text asks for "
        "there, and as it asks), creativity (is the idea original), visual_quality_and_realism (sharpness, light, no "
        "artefacts), consistency (do the parts fit together), emotional_resonance (does it move the viewer), and then "
        "overall. Answer with JSON alone: an object with these six names, each an object with explanation and score.",
        {"max_tokens": 2000, "response_format": {"type": "json_schema", "json_schema": _SCHEMA}},
        _aspects,
    ),
}


class EndpointJudge:
    """What a model behind a server says of each image, 0..1; see MODES for the ways to ask.

    At most `concurrency` images are on their way at a time. An image whose answer cannot be read scores NaN, and a note
    says why; a server that cannot be used ends the search. `check_cancel` is called while waiting, and may raise to
    end it: what is on its way is then forgotten.
    """

    name = "Endpoint Judge"
    differentiable = False
    scale: tuple[float, float] | None = None

    def __init__(
        self,
        endpoint: ChatEndpoint,
        mode: str = "logprobs_yes_no",
        question: str = "",
        extra: dict[str, Any] | None = None,
        image_format: str = FORMATS[0],
        longest_side: int = 1024,
        concurrency: int = 4,
        check_cancel: Callable[[], object] | None = None,
    ) -> None:
        if mode not in MODES:
            raise SearchError(f"mode: got {mode!r}; expected one of {', '.join(MODES)}")
        if image_format not in FORMATS:
            raise SearchError(f"image_format: got {image_format!r}; expected one of {', '.join(FORMATS)}")
        self.module: nn.Module | None = None
        self.question = question or MODES[mode].question
        self.needs_prompt = PROMPT in self.question
        self.notes: list[str] = []
        self._endpoint, self._mode, self._extra = endpoint, MODES[mode], extra or {}
        self._format, self._side, self._concurrency = image_format, longest_side, concurrency
        self._check_cancel = check_cancel or (lambda: None)

    def score(self, images: Tensor, prompt: str) -> Tensor:
        """images [B, H, W, 3] in 0..1 -> scores float32 [B] on the CPU. Raises SearchError when the server fails."""
        question = self.question.replace(PROMPT, prompt)

        def of(pixels: Tensor) -> Tensor:
            fine = [bool(image.isfinite().all()) for image in pixels]
            jobs = [partial(self._ask, self._body(p, question)) for p, ok in zip(pixels, fine, strict=True) if ok]
            answers = iter(in_order(jobs, self._concurrency, self._check_cancel))
            return torch.tensor([self._told(next(answers), prompt) if ok else math.nan for ok in fine])

        with torch.no_grad():
            return scored(images, of)

    def _body(self, image: Tensor, question: str) -> dict[str, Any]:
        """The request about one image [3, H, W]; a field of `extra` that is null takes one away."""
        address = data_url(image, self._format, self._side)
        content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        body = {"messages": messages, "temperature": 0, **self._mode.fields, **self._extra}
        return {name: value for name, value in body.items() if value is not None}

    def _ask(self, body: dict[str, Any], stopped: Event) -> float | str:
        """The score of one image, or why there is none."""
        try:
            answer = self._endpoint.ask(body, stopped)
            _refuse_refusals(answer)
            return self._mode.read(answer)
        except Unanswered as reason:
            return self._endpoint.without_secrets(str(reason))

    def _told(self, answer: float | str, prompt: str) -> float:
        if isinstance(answer, float):
            return answer
        if len(notes_on([self], prompt)) < _NOTES_KEPT:
            note(self.notes, f"Endpoint Judge could not judge an image: {answer}", about=prompt)
        return math.nan


def _refuse_refusals(answer: dict[str, Any]) -> None:
    """Raise Unanswered when the model or its filter will not judge the image."""
    try:
        choice = answer["choices"][0]
        refused = choice.get("finish_reason") == "content_filter" or bool(choice["message"].get("refusal"))
    except (LookupError, TypeError, AttributeError):
        raise Unanswered("the answer has no message") from None
    if refused:
        raise Unanswered("the model refuses to judge it")


def data_url(image: Tensor, image_format: str, longest_side: int) -> str:
    """An image [3, H, W] in 0..1 as a data: address, made smaller if a side is longer than `longest_side`."""
    from PIL import Image

    height, width = image.shape[1:]
    longest = max(height, width)
    if longest > longest_side:
        height, width = (max(1, round(side * longest_side / longest)) for side in (height, width))
        image = functional.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0]
    pixels = image.clamp(0, 1).mul(255).round().to(torch.uint8).movedim(0, -1).cpu().contiguous()
    picture = Image.frombytes("RGB", (width, height), pixels.numpy().tobytes())
    file = io.BytesIO()
    picture.save(file, image_format, quality=JPEG_QUALITY, subsampling=0)  # 0: colours as sharp as brightness
    return f"data:image/{image_format};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def load_endpoint_judge(
    base_url: str = "https://api.openai.com/v1",
    model: str = "",
    api_key_variable: str = "OPENAI_API_KEY",
    mode: str = "logprobs_yes_no",
    question: str = "",
    image_format: str = FORMATS[0],
    longest_side: int = 1024,
    concurrency: int = 4,
    timeout: float = 60.0,
    retries: int = 3,
    extra: str = "",
    check_cancel: Callable[[], object] | None = None,
) -> EndpointJudge:
    """The judge for a server and a model. Nothing is sent before it scores.

    `check_cancel` is the host's: it raises when the user has cancelled. Raises SearchError for settings that make no
    sense, and for an API key in a widget.
    """
    refuse_secrets(question=question, extra=extra)
    endpoint = ChatEndpoint(base_url, model.strip(), api_key_variable.strip(), timeout, retries)
    if not endpoint.model:
        raise SearchError("model: it is empty; write the name under which the server knows the model")
    return EndpointJudge(
        endpoint, mode, question.strip(), _fields(extra), image_format, longest_side, concurrency, check_cancel
    )


def _fields(extra: str) -> dict[str, Any]:
    try:
        fields = json.loads(extra) if extra.strip() else {}
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise SearchError('extra: expected a JSON object such as {"seed": 1}, or nothing')
    return fields


KIND = VerifierKind(
    key="endpoint_judge",
    name="Endpoint Judge",
    description="What a vision-language model behind an OpenAI-compatible server says of the image. Sends the images "
    "there.",
    load=load_endpoint_judge,
    settings=(
        Setting(
            "base_url", "text", "https://api.openai.com/v1",
            "Where the server is, up to /v1: http://127.0.0.1:8000/v1 for vLLM here, port 8080 for llama.cpp, 11434 "
            "for Ollama, 1234 for LM Studio. The images of the search are sent there.",
        ),
        Setting("model", "text", "", "The name under which the server knows the model; it must take images."),
        Setting(
            "api_key_variable", "text", "OPENAI_API_KEY",
            "The NAME of the environment variable with the API key, never the key; empty for a server without keys. "
            "For another host than OpenAI's, set NAME_HOST to that host too.",
        ),
        Setting(
            "mode", "choice", "logprobs_yes_no",
            "logprobs_yes_no: how sure the model is of Yes, in one word. logprobs_digit: the mean grade from 0 to 9, "
            "in one word. json_aspects: five written grades, for servers without logprobs; slow, and ties often.",
            options=tuple(MODES),
        ),
        Setting(
            "question", "lines", "",
            "Asked instead of the mode's own question; {prompt} stands for the prompt. It must ask for the kind of "
            "answer that the mode reads.",
        ),
        Setting("image_format", "choice", FORMATS[0], "png loses nothing and sends some ten times as much.",
                options=FORMATS),
        Setting(
            "longest_side", "int", 1024, "Larger images are made smaller before they are sent.",
            minimum=64, maximum=8192,
        ),
        Setting("concurrency", "int", 4, "How many images are on their way at a time.", minimum=1, maximum=16),
        Setting(
            "timeout", "float", 60.0, "Seconds to wait for an answer.", minimum=1.0, maximum=3600.0, step=1.0,
        ),
        Setting(
            "retries", "int", 3, "How often a request is repeated when the server is busy or cannot be reached.",
            minimum=0, maximum=10,
        ),
        Setting(
            "extra", "lines", "",
            "Further fields of the request as JSON; null takes one away. Models that think first need "
            '{"reasoning_effort": "none"} or {"chat_template_kwargs": {"enable_thinking": false}}.',
        ),
    ),
    host=("check_cancel",),
    use_for="The strongest models there are, or one that runs on another machine: nothing is loaded here. As a "
    "held-out verifier, or for a short search.",
    fooled_by="Text in the image that praises it. Written grades are whole numbers and tie; models differ, change "
    "without notice behind the same name, and do not always answer the same twice.",
)  # fmt: skip
