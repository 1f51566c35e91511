"""Who judges a model's answers, and what is asked of a model that is judged."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from paft.config.checks import Typed, incidental, require
from paft.config.evaluate import EvaluateConfig, EvaluateSplit

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
"""AlpacaEval 2's own: its prompt, and the preference as a probability."""
REPO, COMMIT = "tatsu-lab/alpaca_eval", "2edc6fad8be6b14ea7230aabfd08188da6b8b814"
"""AlpacaEval's data set on the hub."""


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
    input_price: float | None = incidental(10.0)
    """US dollars a million tokens of prompts, for what plans and reports say; null where nobody pays."""
    output_price: float | None = incidental(30.0)
    """The same of answers."""

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


# --- what is judged ----------------------------------------------------------------------------------


@dataclass
class Sampling(Typed):
    """How an answer is written."""

    max_new_tokens: int = 2048
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Of the likeliest tokens that have this probability together one is drawn."""

    def __post_init__(self) -> None:
        tokens = self.max_new_tokens
        require(tokens > 0, "evaluate.sampling.max_new_tokens", tokens, "positive")
        require(self.temperature >= 0, "evaluate.sampling.temperature", self.temperature, "0 or more")
        require(0 < self.top_p <= 1, "evaluate.sampling.top_p", self.top_p, "in (0, 1]")


@dataclass
class Reference(Typed):
    """The instructions, each with the answer that the model's is compared with."""

    file: str | None = field(default=None, metadata={"identity": False})
    """A JSON list of objects with instruction and output; null: AlpacaEval 2's 805 from the hub."""
    revision: str = COMMIT
    """Commit of tatsu-lab/alpaca_eval that they are from, where there is no file."""
    sha256: str = ""
    """Filled in from the file when the graph is built."""


WIN_RATE, LENGTH_CONTROLLED = "win_rate", "length_controlled_winrate"
"""Metrics of AlpacaEval 2, as alpaca-eval calls them."""


@dataclass
class AlpacaEvalConfig(EvaluateConfig):
    """Answers to instructions, compared with a reference's by a judge: AlpacaEval 2. `judge` says by whom."""

    apply_chat_template: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    reference: Reference = field(default_factory=Reference)
    length_data: str | None = incidental(None)
    """A folder with alpaca-eval's df_gamed.csv, for the length-controlled rate; null: from the hub."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.apply_chat_template, "evaluate.apply_chat_template", False, "true: answers are a chat's")
        require(
            self.split is EvaluateSplit.full,
            "evaluate.split",
            self.split.value,
            "full where answers are judged",
        )
        for column, task in self.tasks.items() if isinstance(self.tasks, dict) else ():
            at, allowed = f"evaluate.tasks.{column}", (WIN_RATE, LENGTH_CONTROLLED)
            for name in ("num_fewshot", "mean_over", "rows", "num_items"):
                value = getattr(task, name)
                require(value is None, f"{at}.{name}", value, "null where answers are judged")
            require(task.task == "alpaca_eval", f"{at}.task", task.task, "alpaca_eval, the only one judged")
            require(task.metric in allowed, f"{at}.metric", task.metric, f"one of {allowed}")
