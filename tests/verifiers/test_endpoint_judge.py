"""The judge behind a server, with servers of all tempers on this machine."""

import json
import logging
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pack.search import SearchError
from pack.tests.verifiers.chat_server import Answer, Server, brightness, grades, picture, question, text, words
from pack.verifiers import chat_endpoint
from pack.verifiers.endpoint_judge import EndpointJudge, load_endpoint_judge

KEY = "sk-very-secret-0123456789abcdef"
GREYS = torch.linspace(0.1, 0.9, 5)[:, None, None, None].expand(5, 16, 16, 3)
Serve = Callable[[Callable[[dict[str, Any]], Answer]], Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts servers, which end with the test; the pauses between repetitions are short."""
    monkeypatch.setattr(chat_endpoint, "PAUSE", 0.01)
    started: list[Server] = []

    def start(answer: Callable[[dict[str, Any]], Answer]) -> Server:
        started.append(Server(answer))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def judge(server: Server, **settings: Any) -> EndpointJudge:
    return load_endpoint_judge(
        **{"base_url": server.base_url, "model": "m", "api_key_variable": "", "timeout": 5.0, **settings}
    )


def bright(body: dict[str, Any]) -> Answer:
    """Yes with the image's brightness."""
    return words({"Yes": brightness(body), "No": 1 - brightness(body)})


def test_a_request_is_what_openai_asks_for(serve: Serve) -> None:
    server = serve(bright)
    judge(server).score(GREYS[:1], 'a {x} "cat"')
    (body,), (headers,) = server.asked, server.headers
    assert headers["path"] == "/v1/chat/completions" and "Authorization" not in headers
    assert question(body) == 'Does this image show "a {x} "cat""? Answer with Yes or No.'
    rest = {name: value for name, value in body.items() if name != "messages"}
    assert rest == {"model": "m", "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    assert [m["role"] for m in body["messages"]] == ["user"] and picture(body).format == "JPEG"


def test_images_are_sent_as_they_are_but_for_the_size(serve: Serve) -> None:
    server = serve(bright)
    images = torch.randint(0, 256, (1, 40, 80, 3), generator=torch.Generator().manual_seed(1)) / 255
    for settings, size, error in (
        ({"image_format": "png"}, (80, 40), 0), ({"image_format": "jpeg"}, (80, 40), 40),
        ({"image_format": "png", "longest_side": 64}, (64, 32), None),
    ):  # fmt: skip
        judge(server, **settings).score(images, "")
        sent = picture(server.asked[-1])
        assert (sent.mode, sent.size, sent.format) == ("RGB", size, str(settings["image_format"]).upper())
        if error is not None:
            got = torch.frombuffer(bytearray(sent.tobytes()), dtype=torch.uint8).reshape(40, 80, 3)
            assert (got.float() - images[0] * 255).abs().max() <= error + 0.001
    outside = torch.full((1, 8, 8, 3), 1.7)
    judge(server, image_format="png").score(outside, "")
    assert picture(server.asked[-1]).getextrema() == ((255, 255),) * 3


def test_yes_is_measured_against_no_in_every_spelling(serve: Serve) -> None:
    server = serve(lambda body: words({"Yes": 0.3, " yes": 0.1, "No": 0.1, "NO": 0.05, "Maybe": 0.4, "no": 0.0}))
    assert judge(server).score(GREYS[:1], "").tolist() == pytest.approx([0.4 / 0.55])


def test_a_digit_is_the_mean_under_its_probabilities(serve: Serve) -> None:
    server = serve(lambda body: words({"7": 0.5, " 9": 0.25, "0": 0.05, "Well": 0.2, "12": 0.1}))
    made = judge(server, mode="logprobs_digit")
    assert made.score(GREYS[:1], "a cat").tolist() == pytest.approx([(7 * 0.5 + 9 * 0.25) / 0.8 / 9])
    assert '"a cat"' in question(server.asked[0]) and server.asked[0]["max_tokens"] == 1


def test_five_aspects_are_averaged_and_the_overall_grade_is_not_counted(serve: Serve) -> None:
    server = serve(lambda body: text(f"<think>maybe {{8}}</think>```json\n{grades([8, 7, 6, 10, 9], overall=1)}\n```"))
    made = judge(server, mode="json_aspects")
    assert made.score(GREYS[:2], "a cat").tolist() == pytest.approx([0.8, 0.8])
    schema = server.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["required"][-1] == "overall" and len(schema["required"]) == 6
    assert list(schema["properties"]["accuracy"]["properties"]) == ["explanation", "score"]
    assert "logprobs" not in server.asked[0] and server.asked[0]["temperature"] == 0


def test_own_questions_and_further_fields_are_sent(serve: Serve) -> None:
    server = serve(bright)
    made = judge(server, question="Is it bright? Yes or No.", extra='{"seed": 7, "temperature": null, "max_tokens": 3}')
    assert not made.needs_prompt and judge(server).needs_prompt
    made.score(GREYS[:1], "a cat")
    body = server.asked[0]
    assert question(body) == "Is it bright? Yes or No." and (body["seed"], body["max_tokens"]) == (7, 3)
    assert "temperature" not in body


def test_scores_keep_their_order_when_later_answers_come_first(serve: Serve) -> None:
    def darkest_last(body: dict[str, Any]) -> Answer:
        time.sleep(0.3 * brightness(body))
        return bright(body)

    server = serve(darkest_last)
    expected = judge(serve(bright), concurrency=1).score(GREYS, "")
    assert torch.equal(judge(server, concurrency=5).score(GREYS.flip(0), ""), expected.flip(0))
    assert expected.tolist() == pytest.approx(GREYS[:, 0, 0, 0].tolist(), abs=0.01)
    assert server.most_at_once == 5


def test_no_more_images_are_on_their_way_than_allowed(serve: Serve) -> None:
    def slow(body: dict[str, Any]) -> Answer:
        time.sleep(0.03)
        return bright(body)

    for concurrency in (1, 3):
        server = serve(slow)
        assert judge(server, concurrency=concurrency).score(GREYS, "").isfinite().all()
        assert server.most_at_once == concurrency


def test_a_busy_server_is_asked_again(serve: Serve) -> None:
    answers = iter([(429, {"error": "slow down"}, {"Retry-After": "0"}), (500, b"oops", {}), (503, {}, {})])
    server = serve(lambda body: next(answers, bright(body)))
    assert judge(server, concurrency=1).score(GREYS[:2], "").tolist() == pytest.approx([0.1, 0.3], abs=0.01)
    assert len(server.asked) == 5


def test_the_server_says_how_long_to_wait_and_is_believed_within_reason(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_endpoint, "LONGEST_PAUSE", 0.2)
    for header, least, most in (("0.15", 0.15, 1.0), ("99999", 0.2, 1.0), ("Wed, 21 Oct 2026", 0.0, 0.15)):
        answers = iter([(429, {}, {"Retry-After": header})])
        server = serve(lambda body, answers=answers: next(answers, bright(body)))
        start = time.monotonic()
        judge(server).score(GREYS[:1], "")
        assert least <= time.monotonic() - start < most


FAILING: list[tuple[Answer, int, str]] = [
    ((500, {"error": {"message": "out of memory"}}, {}), 3, "base_url: 127.0.0.1 is busy or broken .HTTP 500: out of"),
    ((429, b"<html>", {}), 3, "busy or broken .HTTP 429., asked 3 times; see that the server runs"),
    ((401, {"error": "no"}, {}), 1, "api_key_variable: 127.0.0.1 asks for an API key .HTTP 401."),
    ((403, b"", {}), 1, "api_key_variable"), ((404, {"detail": "no"}, {}), 1, "HTTP 404.; most addresses end in /v1"),
    ((400, {"error": {"message": "unknown field top_logprobs"}}, {}), 1, "HTTP 400: unknown field.*model, mode and ex"),
    ((302, b"", {"Location": "http://example.org"}), 1, "sends requests on to another address"),
    ((200, {"choices": [{"message": {"content": "Yes"}}]}, {}), 1, "mode: .*gives no logprobs"),
    ((200, {"choices": [{"message": {"content": "Yes"}, "logprobs": None}]}, {}), 1, "mode: .*gives no logprobs"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "asked", "said"), FAILING, ids=[f"{a[0]} {s[:20]}" for a, _, s in FAILING])
def test_a_server_that_cannot_be_used_ends_the_search_with_a_sentence(
    serve: Serve, answer: Answer, asked: int, said: str
) -> None:
    server = serve(lambda body: answer)
    with pytest.raises(SearchError, match=said) as error:
        judge(server, retries=2, concurrency=1).score(GREYS, "")
    assert len(server.asked) == asked and "\n" not in str(error.value)


def test_a_server_that_is_not_there_or_too_slow_ends_the_search(serve: Serve) -> None:
    gone = serve(bright)
    gone.shutdown()
    gone.server_close()
    with pytest.raises(SearchError, match=r"base_url: 127.0.0.1 could not be reached \(ConnectionError\), asked 2"):
        judge(gone, retries=1).score(GREYS[:1], "")
    release = threading.Event()
    server = serve(lambda body: (release.wait(10), bright(body))[1])
    start = time.monotonic()
    with pytest.raises(SearchError, match="timeout: 127.0.0.1 did not answer within 0.2 seconds, asked 2 times"):
        judge(server, timeout=0.2, retries=1).score(GREYS[:1], "")
    assert time.monotonic() - start < 3
    release.set()


BAD_YES: list[tuple[Any, str]] = [
    ((200, b"<html>", {}), "is not JSON"), ((200, [1], {}), "is a list"), ((200, {}, {}), "has no message"),
    ((200, {"choices": []}, {}), "has no message"), ((200, b"[" * 100_000, {}), "is not JSON"),
    ((200, {"choices": [{"message": {}, "logprobs": {"content": [7]}}]}, {}), "has no top_logprobs"),
    (words({"Perhaps": 1.0}), "neither Yes nor No"), (words({"Perhaps": 0.9, "No": 0.0}), "neither Yes nor No"),
    ((200, {"choices": [{"message": {"refusal": "I cannot"}}]}, {}), "refuses"),
    ((200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}, {}), "refuses"),
    ((400, {"error": {"code": "content_policy_violation", "message": "no"}}, {}), r"will not look .* \(HTTP 400: no"),
    ((200, b" " * 4_100_000, {}), "more than"),
]  # fmt: skip
BAD_ASPECTS: list[tuple[Any, str]] = [
    (text("Great picture!"), "not the JSON"), (text(None), "not the JSON"), (text('{"accuracy": 7}'), "not the JSON"),
    (text("}{"), "not the JSON"), (text(grades([1, 1, 1, 1, 1])[:-9]), "not the JSON"),
    (text(grades([11, 1, 1, 1, 1])), "outside"), (text(grades([-1, 1, 1, 1, 1])), "outside"),
    (text(grades([float("nan"), 1, 1, 1, 1])), "outside"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "answer", "reason"),
    [("logprobs_yes_no", *bad) for bad in BAD_YES]
    + [("logprobs_digit", words({"Good": 1.0}), "no digit")]
    + [("json_aspects", *bad) for bad in BAD_ASPECTS],
)
def test_an_answer_that_cannot_be_read_makes_that_image_nan_and_a_note(
    serve: Serve, mode: str, answer: Answer, reason: str
) -> None:
    def sometimes(body: dict[str, Any]) -> Answer:
        if 0.2 < brightness(body) < 0.6:
            return answer
        return text(grades([5] * 5)) if mode == "json_aspects" else words({"Yes": 0.5, "No": 0.5, "4": 0.1})

    made = judge(serve(sometimes), mode=mode, concurrency=2)
    assert made.score(GREYS, "").isnan().tolist() == [False, True, True, False, False]
    (note,) = made.notes
    assert "Endpoint Judge could not judge an image: " in note
    assert re.search(reason, note)


def test_notes_stay_few_when_every_answer_is_wrong_in_a_new_way(serve: Serve) -> None:
    count = iter(range(1000))
    server = serve(lambda body: (400, {"error": f"content policy {next(count)}"}, {}))
    made = judge(server)
    for _ in range(8):
        made.score(GREYS, "")
    assert len(made.notes) == 20


def test_an_image_with_a_pixel_that_is_no_number_is_not_sent(serve: Serve) -> None:
    images, server = GREYS.clone(), serve(bright)
    images[2, 0, 0, 0] = float("nan")
    assert judge(server).score(images, "").isnan().tolist() == [False, False, True, False, False]
    assert len(server.asked) == 4


class Cancelled(BaseException):
    """What ComfyUI raises is no Exception either."""


def test_a_cancel_leaves_requests_behind_and_sends_no_more(serve: Serve) -> None:
    release = threading.Event()
    server = serve(lambda body: (release.wait(20), bright(body))[1])

    def check() -> None:
        if len(server.asked) >= 2:
            raise Cancelled

    start = time.monotonic()
    with pytest.raises(Cancelled):
        judge(server, concurrency=2, timeout=30.0, check_cancel=check).score(GREYS, "")
    assert time.monotonic() - start < 3
    release.set()
    time.sleep(0.1)
    assert len(server.asked) == 2


def test_a_cancel_ends_a_pause_between_two_requests(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "PAUSE", 0.3)
    server = serve(lambda body: (503, {}, {}))

    def check() -> None:
        if server.asked:
            raise Cancelled

    with pytest.raises(Cancelled):
        judge(server, check_cancel=check).score(GREYS[:1], "")
    time.sleep(0.5)
    assert len(server.asked) == 1


# The key.


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SEARCH_TEST_API_KEY", f" {KEY}\n")
    return "SEARCH_TEST_API_KEY"


def everything(*objects: Any) -> str:
    """All text that is to be found in objects, their attributes, and theirs."""
    found, seen, open_ = [], set(), list(objects)
    while open_:
        item = open_.pop()
        if id(item) in seen or isinstance(item, type(threading)) or len(seen) > 20_000:
            continue
        seen.add(id(item))
        found.append(repr(item))
        open_ += list(vars(item).values()) if hasattr(item, "__dict__") else []
        open_ += list(item) if isinstance(item, list | tuple | set) else []
        open_ += list(item.items()) if isinstance(item, dict) else []
    return "\n".join(found)


def test_the_key_is_in_one_header_and_nowhere_else(
    serve: Serve, key: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every way a request can end, at servers that repeat the key wherever they can."""
    caplog.set_level(logging.DEBUG)
    echo = {"error": {"message": f"Incorrect API key provided: {KEY}; {KEY}!"}}
    policy = {"error": {"message": f"content policy: {KEY}"}}
    endings: list[Answer] = [
        words({"Yes": 0.5, "No": 0.5}), *((status, echo, {}) for status in (400, 401, 403, 404, 429, 500)),
        (400, policy, {}), (307, echo, {"Location": f"http://127.0.0.1:9/?{KEY}"}), (200, f"{KEY}".encode(), {}),
        (200, {"choices": [{"message": {"refusal": KEY}}]}, {}), (200, {KEY: KEY}, {}), text(KEY),
    ]  # fmt: skip
    said = []
    for answer in endings:
        for mode in ("logprobs_yes_no", "json_aspects"):
            server = serve(lambda body, answer=answer: answer)
            made = judge(server, api_key_variable=key, retries=1, mode=mode)
            try:
                made.score(GREYS[:2], "a cat")
            except SearchError as error:
                said.append(f"{error!r} {error.__cause__!r} {error.__context__!r}")
            said.append(everything(made, made.notes))
            assert all(h["Authorization"] == f"Bearer {KEY}" for h in server.headers)
            assert KEY not in json.dumps(server.asked)
    gone = serve(bright)
    gone.shutdown()
    gone.server_close()
    with pytest.raises(SearchError) as unreachable:
        judge(gone, api_key_variable=key, retries=0).score(GREYS[:1], "")
    said.append(repr(unreachable.value))
    logged = caplog.text + "".join(capfd.readouterr())
    assert len(said) > 30 and any("***" in s for s in said) and "POST" in logged
    for secret in (KEY, KEY[5:20], "very-secret"):
        assert not any(secret in s for s in said) and secret not in logged


def test_the_judge_holds_no_key_that_could_be_saved_with_it(serve: Serve, key: str) -> None:
    made = judge(serve(bright), api_key_variable=key)
    made.score(GREYS[:1], "")
    state = {**vars(made), **vars(made._endpoint)}
    del state["_requests"], state["_check_cancel"], state["_mode"], state["_endpoint"]
    assert KEY.encode() not in pickle.dumps(state)


def test_a_redirect_is_not_followed_and_its_host_gets_nothing(serve: Serve, key: str) -> None:
    other = serve(bright)
    for status in (301, 302, 303, 307, 308):
        port = other.server_address[1]
        target = {"Location": f"http://localhost:{port}/v1/chat/completions"}
        server = serve(lambda body, status=status, target=target: (status, b"", target))
        with pytest.raises(SearchError, match="base_url: .*sends requests on"):
            judge(server, api_key_variable=key).score(GREYS[:1], "")
    assert other.asked == [] and other.headers == []


def test_a_password_of_netrc_and_a_proxy_are_not_used_on_this_machine(
    serve: Serve, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hush\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = serve(bright)
    judge(server, api_key_variable=key, retries=0).score(GREYS[:1], "")
    judge(server, retries=0).score(GREYS[:1], "")
    assert [h.get("Authorization") for h in server.headers] == [f"Bearer {KEY}", None]


HOSTS: list[tuple[str, str, str, str]] = [
    ("OPENAI_API_KEY", "", "https://api.openai.com/v1", ""),
    ("OPENAI_API_KEY", "", "https://evil.example/v1", "may be sent to api.openai.com, and base_url names evil.example"),
    ("OPENAI_API_KEY", "", "https://api.openai.com.evil.example/v1", "OPENAI_API_KEY_HOST=api.openai.com.evil.example"),
    ("OPENAI_API_KEY", "", "http://api.openai.com/v1", "base_url: expected https"),
    ("OPENAI_API_KEY", "eu.example", "https://eu.example/v1", ""),
    ("OPENAI_API_KEY", "eu.example", "https://api.openai.com/v1", "may be sent to eu.example"),
    ("AWS_SECRET_ACCESS_KEY", "", "https://evil.example/v1", "may be sent to no host yet"),
    ("OTHER_API_KEY", "10.0.0.7", "http://10.0.0.7:8000/v1", ""),
    ("OTHER_API_KEY", "", "http://localhost:8000/v1", ""), ("OTHER_API_KEY", "", "http://[::1]:8000/v1", ""),
    ("OTHER_API_KEY", "", "http://127.0.0.1.evil.example/v1", "may be sent to no host yet"),
]  # fmt: skip


@pytest.mark.parametrize(("variable", "host", "base_url", "refused"), HOSTS)
def test_a_key_goes_only_to_the_host_that_its_owner_has_named(
    variable: str, host: str, base_url: str, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "plain-test-value")
    monkeypatch.delenv(f"{variable}_HOST", raising=False)
    if host:
        monkeypatch.setenv(f"{variable}_HOST", host)
    if not refused:
        load_endpoint_judge(base_url, "m", variable)
        return
    with pytest.raises(SearchError, match=refused) as error:
        load_endpoint_judge(base_url, "m", variable)
    assert "plain-test-value" not in str(error.value)


SENSELESS: list[tuple[dict[str, Any], str]] = [
    ({"api_key_variable": KEY}, "api_key_variable: this looks like an API key"),
    ({"base_url": f"https://x.example/{KEY}/v1"}, "base_url: this looks like an API key"),
    ({"model": KEY}, "model: this looks like"), ({"question": f"{KEY}?"}, "question: this looks like"),
    ({"extra": json.dumps({"api_key": KEY})}, "extra: this looks like"),
    ({"api_key_variable": "Bearer abcdefghijklm"}, "looks like an API key"),
    ({"api_key_variable": "hf_abcdefghijklm"}, "looks like an API key"),
    ({"api_key_variable": "a1b2c3d4e5f6a7b8"}, "api_key_variable: expected the name of an environment variable"),
    ({"api_key_variable": "SEARCH_TEST_NOT_SET"}, "api_key_variable: .*not set or empty"),
    ({"base_url": "https://me:pass@x.example/v1"}, "base_url: it holds a user name or password"),
    ({"base_url": "https://me@x.example/v1"}, "base_url: it holds a user name or password"),
    ({"base_url": "x.example/v1"}, "base_url: expected an address"), ({"base_url": "ftp://x.example"}, "base_url"),
    ({"base_url": ""}, "base_url: expected"), ({"base_url": "https://x.example/v1?a=b"}, "without . and #"),
    ({"base_url": "https://x.example:port/v1"}, "base_url"), ({"base_url": "https://[x/v1"}, "base_url"),
    ({"base_url": "https://x.example\\.y.example/v1"}, "base_url"), ({"base_url": "https://x .example/"}, "base_url"),
    ({"model": " "}, "model: it is empty"), ({"mode": "grades"}, "mode: got 'grades'"),
    ({"image_format": "gif"}, "image_format: got 'gif'"), ({"extra": "seed=1"}, "extra: expected a JSON object"),
    ({"extra": "[1]"}, "extra: expected a JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), SENSELESS)
def test_settings_that_make_no_sense_are_refused_without_repeating_a_secret(
    settings: dict[str, Any], said: str
) -> None:
    given = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "api_key_variable": "", **settings}
    with pytest.raises(SearchError, match=said) as error:
        load_endpoint_judge(**given)
    for secret in (KEY, "pass@", "abcdefghijklm", "a1b2c3d4e5f6a7b8"):
        assert secret not in str(error.value) and secret not in repr(error.value.__context__)


def test_ordinary_names_are_not_taken_for_keys() -> None:
    for model in ("skywork-vl-reward-7b", "Qwen/Qwen3-VL-8B-Instruct", "gpt-4.1-mini-2026-04-14", "hfl-large-13b"):
        assert load_endpoint_judge("http://127.0.0.1:9/v1", model, "").notes == []


def test_a_key_of_several_words_is_refused_without_naming_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (f"{KEY}\nX-Header: 1", f"{KEY} {KEY}", "schl\u00fcssel"):
        monkeypatch.setenv("SEARCH_TEST_API_KEY", value)
        with pytest.raises(SearchError, match="api_key_variable: what SEARCH_TEST_API_KEY holds is no key") as error:
            load_endpoint_judge("http://127.0.0.1:9/v1", "m", "SEARCH_TEST_API_KEY")
        assert "secret" not in str(error.value)


def test_nothing_is_sent_before_it_scores_and_pasted_addresses_are_understood(serve: Serve) -> None:
    server = serve(bright)
    for base_url in (server.base_url + "/", server.base_url + "/chat/completions", f" {server.base_url} "):
        made = judge(server, base_url=base_url)
        before = len(server.asked)
        time.sleep(0.02)
        assert len(server.asked) == before
        made.score(GREYS[:1], "")
        assert server.headers[-1]["path"] == "/v1/chat/completions"


def test_the_same_images_send_the_same_requests(serve: Serve) -> None:
    server = serve(bright)
    images = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        judge(server).score(images, "a cat")
    assert server.asked[0] == server.asked[1]
