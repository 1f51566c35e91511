"""Evaluations whose answers a judge reads: what the model is asked, and how it answers."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from omegaconf import MISSING

from paft.config.checks import Typed, incidental, require
from paft.config.evaluate import Backend, EvaluateConfig, EvaluateSplit

REPO, COMMIT = "tatsu-lab/alpaca_eval", "2edc6fad8be6b14ea7230aabfd08188da6b8b814"
"""AlpacaEval's data set on the hub."""
MT_BENCH_FILES = ("judge_prompts.jsonl", "mt_bench/question.jsonl", "mt_bench/reference_answer/gpt-4.jsonl")
"""In the folder of FastChat's data."""
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""FastChat's, by the category of a question of MT-Bench."""


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
class Questions(Typed):
    """What a model is asked, and what its answers are compared with."""


@dataclass
class Reference(Questions):
    """Instructions, each with the answer that the model's is compared with."""

    file: str | None = field(default=None, metadata={"identity": False})
    """A JSON list of objects with instruction and output; null: AlpacaEval 2's 805 from the hub."""
    revision: str = COMMIT
    """Commit of tatsu-lab/alpaca_eval that they are from, where there is no file."""
    sha256: str = ""
    """Filled in from the file when the graph is built."""


@dataclass
class MTBenchQuestions(Questions):
    """MT-Bench's questions of two turns, in FastChat's files."""

    folder: str = field(default=MISSING, metadata={"identity": False})
    """FastChat's `fastchat/llm_judge/data` with the prompts of its judge, the questions and
    GPT-4's answers to them. Their content is their identity."""
    sha256: str = ""
    """Filled in from these files when the graph is built."""
    temperatures: dict[str, float] = field(default_factory=lambda: dict(TEMPERATURES))
    """Temperature by a question's category, FastChat's by default; of others it is that of `sampling`."""


@dataclass
class JudgedConfig(EvaluateConfig):
    """Answers that a judge reads; `judge` says who."""

    task_name: ClassVar[str] = ""
    metrics: ClassVar[tuple[str, ...]] = ()
    """What its columns may be, by their task and metric."""
    apply_chat_template: bool = True
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def asked(self) -> Questions:
        """What the model is asked."""
        raise NotImplementedError

    def asking(self, questions: Questions) -> Self:
        """The same evaluation with other questions."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.apply_chat_template, "evaluate.apply_chat_template", False, "true: answers are a chat's")
        split = self.split
        require(split is EvaluateSplit.full, "evaluate.split", split.value, "full where answers are judged")
        backend = self.backend
        require(backend is Backend.hf, "evaluate.backend", backend.value, "hf where answers are judged")
        for name in ("data_dir", "include_path"):
            value = getattr(self, name)
            require(value is None, f"evaluate.{name}", value, "null where answers are judged")
        for column, task in self.tasks.items() if isinstance(self.tasks, dict) else ():
            at = f"evaluate.tasks.{column}"
            require(
                task.task == self.task_name, f"{at}.task", task.task, f"{self.task_name}, which is judged"
            )
            require(task.metric in self.metrics, f"{at}.metric", task.metric, f"one of {self.metrics}")
            for name in ("num_fewshot", "mean_over", "rows", "num_items"):
                value = getattr(task, name)
                require(value is None, f"{at}.{name}", value, "null where answers are judged")
            plain = not (task.pooled or task.mean_with or task.above_chance)
            require(plain, at, task, "without pooled, mean_with and above_chance where answers are judged")


WIN_RATE, LENGTH_CONTROLLED = "win_rate", "length_controlled_winrate"
"""Metrics of AlpacaEval 2, as alpaca-eval calls them."""


@dataclass
class AlpacaEvalConfig(JudgedConfig):
    """AlpacaEval 2: answers to instructions, each compared with a reference's."""

    task_name: ClassVar[str] = "alpaca_eval"
    metrics: ClassVar[tuple[str, ...]] = (WIN_RATE, LENGTH_CONTROLLED)
    reference: Reference = field(default_factory=Reference)
    length_data: str | None = incidental(None)
    """A folder with alpaca-eval's df_gamed.csv, for the length-controlled rate; null: from the hub."""

    @property
    def asked(self) -> Reference:
        return self.reference

    def asking(self, questions: Questions) -> Self:
        assert isinstance(questions, Reference)
        return replace(self, reference=questions)


RATING, TURNS = "rating", ("first_turn", "second_turn")
"""Metrics of MT-Bench: the mean rating, and that of either turn alone."""


@dataclass
class MTBenchConfig(JudgedConfig):
    """MT-Bench: answers to questions of two turns, each rated from 1 to 10."""

    task_name: ClassVar[str] = "mt_bench"
    metrics: ClassVar[tuple[str, ...]] = (RATING, *TURNS)
    questions: MTBenchQuestions = field(default_factory=MTBenchQuestions)

    @property
    def asked(self) -> MTBenchQuestions:
        return self.questions

    def asking(self, questions: Questions) -> Self:
        assert isinstance(questions, MTBenchQuestions)
        return replace(self, questions=questions)
