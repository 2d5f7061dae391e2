"""Servers that refuse, break off, drip, hang or talk garbage: what is asked again, what it costs, and how long it takes."""

import time
from email.utils import formatdate

import pytest

from saerl_lightning.errors import InputError
from saerl_lightning.reward.judge_reward import JudgeReward
from tests.reward.examples import SUM_PROMPTS, rollouts
from tests.reward.judging.chat_server import ChatHandler, JudgeServer


@pytest.fixture
def server():
    with JudgeServer() as running:
        yield running


def judge(url: str, **others) -> JudgeReward:
    given = {"template": "{{ completion }}", "cache": None, "backoff_s": 0.01, "retries": 2, "deadline_s": 5.0}
    return JudgeReward(url, "m", **{**given, **others})


def graded(reward: JudgeReward, *texts: str) -> list[float]:
    return reward(SUM_PROMPTS[:1], rollouts(list(texts)))[0].tolist()


def failing(times: int, status: int, headers: dict | None = None):
    """Refuses some requests, and replies to the next ones."""
    left = [times]

    def answer(handler: ChatHandler, body: dict) -> None:
        if left[0] > 0:
            left[0] -= 1
            handler.send(status, {"error": {"message": "come again"}}, headers)
        else:
            handler.reply("Score: 5")

    return answer


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_passes_is_asked_again(server, status):
    server.answer = failing(2, status)
    reward = judge(server.url)
    assert graded(reward, "a") == [0.5]
    assert len(server.asked) == 3 and reward.drain_counts() == {"asked": 1, "repeated": 2, "unparsed": 0}


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_would_be_refused_again_is_asked_once(server, status):
    server.answer = failing(9, status)
    reward = judge(server.url)
    assert graded(reward, "a") != graded(reward, "a"), "NaN"
    assert (
        len(server.asked) == 2 and f"answered {status}" in reward.last_failure and "'come again'" in reward.last_failure
    )


def test_a_server_that_keeps_failing_is_given_up_after_six_requests(server, caplog):
    server.answer = failing(99, 500)
    reward = judge(server.url)
    scores = reward(SUM_PROMPTS[:1], rollouts(["a", "b"]))
    assert scores.isnan().all() and len(server.asked) == 6
    assert "answered 500 Internal Server Error: 'come again'" in reward.last_failure
    assert len([each for each in caplog.records if "not as wrong" in each.message]) == 1


@pytest.mark.parametrize("given", ["0.6", "date"])
def test_retry_after_is_waited_for(server, given):
    after = formatdate(time.time() + 1.7, usegmt=True) if given == "date" else given  # whole seconds: 0.7 to 1.7
    server.answer = failing(1, 429, {"Retry-After": after})
    assert graded(judge(server.url), "a") == [0.5]
    assert server.at[1] - server.at[0] > 0.55


def test_no_request_waits_beyond_the_batch(server):
    server.answer = failing(1, 429, {"Retry-After": "3600"})
    began = time.monotonic()
    reward = judge(server.url, batch_deadline_s=30.0)
    assert graded(reward, "a")[0] != 0.5 and time.monotonic() - began < 15
    assert "answered 429" in reward.last_failure


def test_pauses_grow(server):
    server.answer = failing(3, 500)
    assert graded(judge(server.url, backoff_s=0.1, retries=3), "a") == [0.5]
    pauses = [later - earlier for earlier, later in zip(server.at, server.at[1:], strict=False)]
    for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True):  # and up to 0.1 more by chance
        assert least <= pause


def close(handler: ChatHandler, body: dict) -> None:
    handler.close_connection = True


def hang(handler: ChatHandler, body: dict) -> None:
    time.sleep(20)


def drip(handler: ChatHandler, body: dict) -> None:
    """A byte every 20 ms: no single read is slow."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def flood(handler: ChatHandler, body: dict) -> None:
    handler.send(200, b"x" * 5_000_000)


def cut_short(handler: ChatHandler, body: dict) -> None:
    handler.send(200, b'{"choices": [', {"Content-Length": "1000"})
    handler.close_connection = True


MISBEHAVIOUR = {
    "nothing": (close, "broke off"),
    "silence": (hang, "gave no whole answer within the deadline_s of 0.3 s"),
    "a drip": (drip, "gave no whole answer within the deadline_s of 0.3 s"),
    "a flood": (flood, "sent more than 4,000,000 bytes"),
    "half": (cut_short, "broke off"),
    "a page": (lambda h, b: h.send(200, b"<html>Welcome</html>"), "no chat completion: '<html>Welcome</html>'"),
    "other JSON": (lambda h, b: h.send(200, {"choices": []}), "no chat completion"),
    "a list": (lambda h, b: h.send(200, b"[1]"), "no chat completion"),
    "deep JSON": (lambda h, b: h.send(200, b"[" * 100_000), "no chat completion"),
    "no text": (lambda h, b: h.reply(["Score: 5"]), "no chat completion"),
    "another place": (lambda h, b: h.send(302, b"", {"Location": "http://127.0.0.1:1/"}), "answered 302 Found"),
}


@pytest.mark.parametrize("kind", MISBEHAVIOUR)
def test_misbehaviour_costs_the_grade_and_a_bounded_time(server, kind):
    server.answer, said = MISBEHAVIOUR[kind]
    reward = judge(server.url, deadline_s=2.0 if kind in ("a flood", "deep JSON") else 0.3, retries=1)
    began = time.monotonic()
    scores = reward(SUM_PROMPTS[:1], rollouts(["a", "b"]))
    assert time.monotonic() - began < 15 and scores.isnan().all()
    assert said in reward.last_failure, reward.last_failure
    assert not reward.drain_counts()["unparsed"]


def test_a_server_that_comes_back_grades_again(server):
    server.answer = close
    reward = judge(server.url, retries=0)
    assert graded(reward, "a") != [0.5]
    server.answer = lambda handler, body: handler.reply("Score: 5")
    assert graded(reward, "a") == [0.5]


def test_no_more_requests_at_a_time_than_allowed_and_each_question_once(server):
    def slowly(handler: ChatHandler, body: dict) -> None:
        time.sleep(0.05)
        handler.reply("Score: 5")

    server.answer = slowly
    texts = [str(i) for i in range(24)]
    assert graded(judge(server.url, concurrency=6), *texts, "0", "1") == [0.5] * 26
    assert server.most_present == 6 and len(server.asked) == 24


def test_the_deadline_of_a_batch_keeps_what_was_answered(server):
    def by_text(handler: ChatHandler, body: dict) -> None:
        if body["messages"][-1]["content"] == "slow":
            time.sleep(20)
        handler.reply("Score: 5")

    server.answer = by_text
    reward = judge(server.url, batch_deadline_s=0.5)
    began = time.monotonic()
    first, second = graded(reward, "fast", "slow")
    assert time.monotonic() - began < 15 and first == 0.5 and second != second
    assert "batch_deadline_s of 0.5 s" in reward.last_failure


def refused(reward: JudgeReward) -> str:
    with pytest.raises(InputError) as refusal:
        reward.check()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_the_door_refuses_what_does_not_answer(server):
    with JudgeServer() as gone:
        url = gone.url
    gone.server_close()
    began = time.monotonic()
    said = refused(judge(url, backoff_s=30.0))
    assert time.monotonic() - began < 20, "nothing is there: it is not waited for"
    assert said.startswith(f"the judge 'm' at {url}/chat/completions can't be reached: ConnectionRefusedError")
    server.answer = hang
    assert "gave no whole answer within the deadline_s of 0.3 s" in refused(judge(server.url, deadline_s=0.3))
    server.answer = failing(9, 404)
    assert "answered 404 Not Found: 'come again'" in refused(judge(server.url))


def test_the_door_waits_for_a_server_that_is_busy(server):
    server.answer = failing(2, 503)
    judge(server.url).check()
    assert len(server.asked) == 3


def test_the_whole_path_may_be_given(server):
    judge(f"{server.url}/chat/completions?version=2").check()
    assert judge("http://a/v1/").server.endpoint == "http://a/v1/chat/completions"
    assert judge("http://a/v1/chat/completions?v=2").server.endpoint == "http://a/v1/chat/completions?v=2"


def test_the_key_is_sent_and_never_said(server, monkeypatch, caplog):
    monkeypatch.setenv("MY_JUDGE", "sk-secret\n")
    with caplog.at_level("DEBUG"):
        reward = judge(server.url, api_key_env="MY_JUDGE")
        assert graded(reward, "a") == [0.5] and server.headers[0]["Authorization"] == "Bearer sk-secret"
        server.answer = lambda h, b: h.send(401, {"error": {"message": "wrong key sk-secret"}})
        assert "wrong key ***" in refused(reward)
        assert graded(reward, "b") != [0.5]
    assert "sk-secret" not in caplog.text + reward.last_failure + str(vars(reward)) + repr(reward.server)
    monkeypatch.delenv("MY_JUDGE")
    assert refused(reward) == "api_key_env is 'MY_JUDGE', and this environment variable is not set; export it"
