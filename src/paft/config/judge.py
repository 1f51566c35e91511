"""Who judges a model's answers."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from paft.config.checks import Typed, incidental, require

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
"""AlpacaEval 2's own: its prompt, and the preference as a probability."""

PRICES = {
    "gpt-4-1106-preview": (10.0, 30.0),
    "gpt-4-turbo": (10.0, 30.0),
    "gpt-4": (30.0, 60.0),
    "gpt-4.1-2025-04-14": (2.0, 8.0),
    "gpt-4o-mini-2024-07-18": (0.15, 0.6),
}
"""US dollars a million tokens of prompts and of answers, by OpenAI's list when alpaca-eval took up the model."""


@dataclass
class JudgeConfig(Typed):
    """Who says which of two answers is the better one."""


@dataclass
class AskedJudge(JudgeConfig):
    """A model that is asked, in the words of one of alpaca-eval's annotators."""

    annotator: str = ANNOTATOR
    """One of alpaca-eval's annotators that read a preference off log-probabilities, by its name: the prompt, the
    sampling and the tokens that are answers."""


@dataclass
class OpenAIJudge(AskedJudge):
    """A model behind any endpoint that speaks OpenAI's chat completions, as vLLM, SGLang and llama.cpp do."""

    model: str = "gpt-4-1106-preview"
    """What the endpoint calls the model. It is what a judgement is known by, wherever the endpoint is: give another
    model another name."""
    base_url: str = incidental("https://api.openai.com/v1")
    """The endpoint up to where `/chat/completions` follows."""
    api_key_env: str = incidental("OPENAI_API_KEY")
    """The environment variable that holds the key; an endpoint that asks for none needs none."""
    concurrency: int = incidental(8)
    """Calls under way at once."""
    requests_per_minute: int | None = incidental(None)
    """Calls that may begin in a minute; null: as many as come."""
    retries: int = incidental(8)
    """How often a call is made again after an error that may pass: 408, 409, 429, 5xx, no or a broken answer."""
    backoff_seconds: float = incidental(1.0)
    """Before the first of them; each waits about twice as long as the one before, a minute at most."""
    timeout_seconds: float = incidental(120.0)
    """For an answer to a call."""
    input_price: float | None = incidental(None)
    """US dollars a million tokens of prompts, for what plans and reports say; null: OpenAI's list price of the model
    where PAFT knows it, else nothing is said."""
    output_price: float | None = incidental(None)
    """The same of answers."""

    @property
    def prices(self) -> tuple[float, float] | None:
        """US dollars a million tokens of prompts and of answers; None where they are not known."""
        known = PRICES.get(self.model, (None, None))
        given = (self.input_price, self.output_price)
        first, second = (
            mine if mine is not None else listed for mine, listed in zip(given, known, strict=True)
        )
        return None if first is None or second is None else (first, second)

    def __post_init__(self) -> None:
        scheme = self.base_url.partition("://")[0]
        require(scheme in ("http", "https"), "judge.base_url", self.base_url, "http://... or https://...")
        for name in ("concurrency", "timeout_seconds", "backoff_seconds"):
            require(getattr(self, name) > 0, f"judge.{name}", getattr(self, name), "positive")
        require(self.retries >= 0, "judge.retries", self.retries, "0 or more")
        rate = self.requests_per_minute
        require(rate is None or rate > 0, "judge.requests_per_minute", rate, "positive or null")
        for name in ("input_price", "output_price"):
            price = getattr(self, name)
            require(price is None or price >= 0, f"judge.{name}", price, "0 or more, or null")


@dataclass
class LocalJudge(AskedJudge):
    """A model folder on this disk, asked in its own chat template."""

    path: str = field(default=MISSING, metadata={"identity": False})
    """The folder: config.json, *.safetensors and a tokenizer with a chat template. Its content is its identity."""
    sha256: str = ""
    """Filled in from the folder's files when the graph is built."""


@dataclass
class AnnotationsJudge(JudgeConfig):
    """Judgements that are there already: a file of alpaca-eval's, as its leaderboard publishes them."""

    file: str = field(default=MISSING, metadata={"identity": False})
    """A JSON list of objects with instruction, output_1, output_2 and preference. Its content is its identity."""
    sha256: str = ""
    """Filled in from the file when the graph is built."""


JUDGES: dict[str, type[JudgeConfig]] = {
    "openai": OpenAIJudge,
    "local": LocalJudge,
    "annotations": AnnotationsJudge,
}
"""Name on the command line -> type."""
