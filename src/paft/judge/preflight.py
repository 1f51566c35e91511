"""What a judged evaluation needs, asked before any model is loaded."""

from pathlib import Path

from paft.config.judge import AnnotationsJudge, AskedJudge, JudgeConfig, OpenAIJudge
from paft.config.judged import LENGTH_CONTROLLED, AlpacaEvalConfig, JudgedConfig, MTBenchConfig
from paft.judge.outputs import read_annotations
from paft.judge.package import annotator, length_data, require_rate
from paft.judge.questions import read_questions


def require_judge(config: JudgeConfig, *, compares: bool) -> None:
    """Raise `ValueError` for a judge that cannot be asked: no package, no key, no endpoint, a file that is none."""
    if isinstance(config, AskedJudge) and compares:
        annotator(config.annotator)
    if isinstance(config, AnnotationsJudge):
        read_annotations(Path(config.file), "judge.file")
    if isinstance(config, OpenAIJudge):
        from paft.judge.endpoint import Endpoint

        Endpoint(config).require()


def require_judged(config: JudgedConfig, *, offline: bool) -> None:
    """Raise `ValueError` for questions or a column that cannot be had."""
    read_questions(config.asked, offline=offline)
    for column, task in config.tasks.items():
        if isinstance(config, AlpacaEvalConfig) and task.metric == LENGTH_CONTROLLED:
            try:
                require_rate()
                length_data(Path(config.length_data) if config.length_data else None)
            except ValueError as error:
                raise ValueError(
                    f"the column {column} cannot be filled: {error}; evaluate.length_data=DIR gives the data, "
                    f"~evaluate.tasks.{column} leaves the column out"
                ) from None


def require_room(config: JudgedConfig, positions: int | None, title: str) -> None:
    """Raise `ValueError` where the longest answers would leave no room for what is asked in the model's positions."""
    tokens = config.sampling.max_new_tokens
    turns = 2 if isinstance(config, MTBenchConfig) else 1
    if positions is not None and turns * tokens >= positions:
        raise ValueError(
            f"evaluate.sampling.max_new_tokens={tokens} leaves no room for what is asked in the {positions} positions "
            f"of {title}; set it to {positions // (2 * turns)}"
        )
