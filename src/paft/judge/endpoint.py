"""A judge behind an endpoint that speaks OpenAI's chat completions.

The key is read from the environment, sent in one header, and taken out of whatever the endpoint says.
"""

import json
import logging
import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx

from paft.config.judge import OpenAIJudge
from paft.judge.answers import Hopeless
from paft.judge.prompts import Completion, Question

PASSING = {408, 409, 425, 429}
"""Statuses that may be another one soon, as is every 5xx."""
NO_ACCESS = {401, 403}
LONGEST_WAIT = 60.0
"""Seconds between two attempts, unless the endpoint asks for more."""
CONNECT_SECONDS = 10.0
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every call


class Endpoint:
    """Asks questions over HTTP, as fast as its config allows, and again where an error may pass."""

    def __init__(self, config: OpenAIJudge) -> None:
        self.config, self.model, self.at_once = config, config.model, config.concurrency
        self.key = os.environ.get(config.api_key_env, "").strip()
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        timeout = httpx.Timeout(config.timeout_seconds, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=config.concurrency)
        # a redirect could carry the key elsewhere
        self.client = httpx.Client(
            base_url=config.base_url, headers=headers, timeout=timeout, limits=limits, follow_redirects=False
        )
        self._turn = threading.Lock()
        self._next = 0.0

    def require(self) -> None:
        """Raise `ValueError` for an endpoint that cannot be reached, or that wants another key; costs nothing."""
        if not self.key and self.config.base_url == type(self.config).base_url:
            raise ValueError(f"{self._name} needs a key: set {self.config.api_key_env}; {self._elsewhere}")
        try:
            answer = self.client.get("models")
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            raise ValueError(
                f"{self._name} cannot be reached: {self._words(error)}; {self._elsewhere}"
            ) from None
        except httpx.HTTPError:
            return  # something is there, whatever it thinks of lists of models
        if answer.status_code in NO_ACCESS:
            raise self._no_access(answer.status_code)

    def ask(self, question: Question, stop: threading.Event) -> Completion:
        """The first choice of the answer, and its usage.

        Raises `ValueError` after the last attempt, at once for a request that the endpoint will never take.
        """
        body = {"model": self.model, "messages": list(question.messages), **question.sampling}
        for attempt in range(self.config.retries + 1):
            self._wait_for_turn(stop)
            if stop.is_set():
                raise ValueError(f"{self._name} was not asked: the run was stopped")
            wait, why = None, ""
            try:
                answer = self.client.post("chat/completions", json=body)
                if answer.status_code == httpx.codes.OK:
                    return completion(self._scrubbed(answer.text))
                wait, why = self._refused(answer)
            except (httpx.HTTPError, Broken) as error:
                why = self._words(error)
            if attempt < self.config.retries:
                stop.wait(self._backoff(attempt) if wait is None else wait)
        raise ValueError(f"{self._name} gave no answer in {attempt + 1} attempts, the last time: {why}")

    def _refused(self, answer: httpx.Response) -> tuple[float | None, str]:
        """(seconds that the endpoint asks to wait, what it says). Raises `Hopeless` for what no waiting mends."""
        status = answer.status_code
        if status in NO_ACCESS:
            raise self._no_access(status)
        said = self._scrubbed(answer.text)[:300]
        if status not in PASSING and status < 500:
            raise Hopeless(f"{self._name} refuses the call with status {status}: {said}")
        if status == 429 and "insufficient_quota" in said:
            raise Hopeless(f"{self._name} says that the account of the key has no credit left")
        return _seconds(answer.headers.get("retry-after")), f"status {status}: {said}"

    def _no_access(self, status: int) -> Hopeless:
        """Without what the endpoint says, which repeats keys."""
        name = self.config.api_key_env
        given = f"the key in {name}" if self.key else f"a call without a key; set {name}"
        return Hopeless(f"{self._name} refuses {given} (status {status})")

    def _wait_for_turn(self, stop: threading.Event) -> None:
        rate = self.config.requests_per_minute
        if rate is None:
            return
        with self._turn:
            begins = max(self._next, time.monotonic())
            self._next = begins + 60 / rate
        stop.wait(begins - time.monotonic())

    def _backoff(self, attempt: int) -> float:
        """About twice as long each time; calls that failed together do not come back together."""
        return min(LONGEST_WAIT, self.config.backoff_seconds * 2**attempt) * random.uniform(0.5, 1.0)

    def _words(self, error: Exception) -> str:
        return self._scrubbed(f"{type(error).__name__} {error}".strip())

    def _scrubbed(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text

    @property
    def _name(self) -> str:
        return f"judge.base_url={self.config.base_url}"

    @property
    def _elsewhere(self) -> str:
        return "judge.base_url names another endpoint, judge=annotations takes judgements from a file"


class Broken(Exception):
    """An answer that is none: cut off, or of another form."""


def completion(text: str) -> Completion:
    """The first choice of a chat completion, with the call's usage. Raises `Broken` for anything else."""
    try:
        answer = json.loads(text)
        choice = answer["choices"][0]
        if not isinstance(choice["message"], Mapping):
            raise TypeError
    except (ValueError, LookupError, TypeError, RecursionError):
        raise Broken(f"what it sent is no chat completion: {text[:120]!r}") from None
    usage: Any = answer.get("usage")
    return {**choice, "usage": usage if isinstance(usage, dict) else {}}


def _seconds(header: str | None) -> float | None:
    """Of a Retry-After in seconds; a date is rare, and left to the backoff."""
    try:
        return min(max(float(header or ""), 0.0), 10 * LONGEST_WAIT)
    except ValueError:
        return None
