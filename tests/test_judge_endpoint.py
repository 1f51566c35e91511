"""Calls of a real server on loopback that fails as servers do: nothing that was judged is lost, no key is written."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from judge_server import JudgeServer

from paft.config import OpenAIJudge
from paft.judge.answers import Answers, Hopeless, answer_all
from paft.judge.endpoint import Endpoint
from paft.judge.prompts import Question

KEY = "sk-secret-0123456789"
PASSING = (429, 500, 503, 408, "malformed", "html", "dropped")


def config(server: JudgeServer, **settings) -> OpenAIJudge:
    return OpenAIJudge(
        **{"model": "toy", "base_url": server.url, "backoff_seconds": 0.01, "api_key_env": "JUDGE_KEY"}
        | settings
    )


def question(number: int = 0) -> Question:
    content = f'Question {number}: "output": """a""" "output": """bb"""'
    return Question(({"role": "user", "content": content},), {"max_tokens": 1})


def questions(num: int) -> list[Question]:
    return [question(number) for number in range(num)]


def ask(server: JudgeServer, folder: Path, asked: Sequence[Question], **settings):
    return answer_all(asked, Endpoint(config(server, **settings)), Answers(folder, "toy"))


# --- errors that pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", PASSING)
def test_a_call_is_made_again_after_an_error_that_passes(tmp_path, fault):
    with JudgeServer(faults=[fault, fault]) as server:
        (answer,), counts = ask(server, tmp_path, [question()])

    assert answer["message"]["content"] in ("m", "M")
    assert len(server.calls) == 3
    assert counts["calls"] == 1 and counts["input_tokens"] > 0 and counts["output_tokens"] == 1


def test_all_kinds_of_errors_among_many_calls_cost_no_answer(tmp_path):
    with JudgeServer(faults=PASSING * 2) as server:
        answers, counts = ask(server, tmp_path, questions(20), concurrency=5)

    assert len(answers) == 20 == server.answered
    assert counts["calls"] == 20


def test_endpoint_that_stays_broken_keeps_the_answers_it_gave(tmp_path):
    with JudgeServer(faults=["dropped"] * 3) as server, pytest.raises(ValueError) as caught:
        ask(server, tmp_path, questions(4), retries=2, concurrency=1)
    assert "1 of 4 calls of the judge failed" in str(caught.value)
    assert "3 attempts" in str(caught.value) and "the same command asks for the rest" in str(caught.value)

    with JudgeServer() as again:
        answers, counts = ask(again, tmp_path, questions(4))
    assert len(answers) == 4
    assert (counts["calls"], counts["cached"]) == (1, 3) and len(again.calls) == 1


def test_second_run_makes_no_call(tmp_path):
    with JudgeServer() as server:
        first, _ = ask(server, tmp_path, questions(5))
    with JudgeServer(faults=[500]) as silent:
        second, counts = ask(silent, tmp_path, questions(5))

    assert second == first
    assert not silent.calls and (counts["calls"], counts["cached"]) == (0, 5)


def test_damaged_answer_is_asked_for_again(tmp_path):
    with JudgeServer() as server:
        ask(server, tmp_path, questions(2))
        next(tmp_path.glob("*/*.json")).write_text("{")
        ask(server, tmp_path, questions(2))

    assert len(server.calls) == 3


def test_another_model_and_another_sampling_are_other_questions():
    plain = question()
    assert plain.key("toy") != plain.key("other")
    assert plain.key("toy") != Question(plain.messages, {"max_tokens": 2}).key("toy")


def test_equal_questions_are_asked_once(tmp_path):
    with JudgeServer() as server:
        answers, _ = ask(server, tmp_path, [question(), question()])

    assert answers[0] == answers[1] and len(server.calls) == 1


# --- errors that do not ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 422])
def test_request_that_is_never_taken_stops_at_once(tmp_path, status):
    with (
        JudgeServer(faults=[status] * 50) as server,
        pytest.raises(Hopeless, match=f"status {status}: .*cannot now"),
    ):
        ask(server, tmp_path, questions(40), concurrency=1)

    assert len(server.calls) < 40


def test_signal_ends_the_wait_between_attempts():
    stop = threading.Event()

    def stop_after_a_call():
        while not server.calls:
            time.sleep(0.005)
        stop.set()

    with JudgeServer(faults=[500] * 100) as server:
        threading.Thread(target=stop_after_a_call, daemon=True).start()
        with pytest.raises(ValueError, match="was not asked: the run was stopped"):
            Endpoint(config(server, backoff_seconds=60)).ask(question(), stop)

    assert len(server.calls) == 1


# --- before a run -------------------------------------------------------------------------------------------


def test_reachable_endpoint_is_taken(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with JudgeServer(key=KEY) as server:
        Endpoint(config(server)).require()

    assert not server.calls


def test_key_that_is_not_set_is_said(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with JudgeServer(key=KEY) as server, pytest.raises(ValueError, match="without a key; set JUDGE_KEY"):
        Endpoint(config(server)).require()
    with pytest.raises(
        ValueError, match=r"judge.base_url=https://api.openai.com/v1 needs a key: set JUDGE_KEY"
    ):
        Endpoint(OpenAIJudge(api_key_env="JUDGE_KEY")).require()


def test_key_that_is_refused_is_not_repeated(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY + "x")
    with (
        JudgeServer(key=KEY) as server,
        pytest.raises(ValueError, match="refuses the key in JUDGE_KEY") as caught,
    ):
        Endpoint(config(server)).require()

    assert KEY not in str(caught.value)


def test_endpoint_that_is_not_there_is_said():
    with JudgeServer() as server:
        gone = config(server)
    with pytest.raises(
        ValueError, match=r"judge.base_url=http://127.0.0.1:\d+/v1 cannot be reached: ConnectError"
    ):
        Endpoint(gone).require()


# --- pace and secrets -----------------------------------------------------------------------------------------


def test_no_more_calls_at_once_than_allowed(tmp_path):
    with JudgeServer() as server:
        ask(server, tmp_path, questions(30), concurrency=3)

    assert server.most_under_way <= 3


def test_calls_keep_the_rate(tmp_path):
    with JudgeServer() as server:
        ask(server, tmp_path, questions(6), requests_per_minute=1200, concurrency=6)

    # five pauses of 50 ms; a clock that is read late can only make them seem longer
    assert max(server.times) - min(server.times) > 0.2


def test_key_is_in_no_log_error_or_file(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with caplog.at_level(logging.DEBUG), JudgeServer(key=KEY, faults=[500, 429, "dropped", 500]) as server:
        with pytest.raises(ValueError) as caught:
            ask(server, tmp_path, questions(1), retries=3)
        ask(server, tmp_path, questions(3))

    assert KEY not in str(caught.value) and "***" in str(caught.value)
    assert KEY not in caplog.text
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3 and not any(KEY in text for text in files)
