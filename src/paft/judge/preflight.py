"""What a judged evaluation needs, asked before any model is loaded."""

from pathlib import Path

from paft.config.judge import (
    LENGTH_CONTROLLED,
    AlpacaEvalConfig,
    AnnotationsJudge,
    AskedJudge,
    JudgeConfig,
    OpenAIJudge,
)
from paft.judge.outputs import read_annotations
from paft.judge.package import annotator, length_data, require_rate
from paft.judge.reference import read_reference


def require_judge(config: JudgeConfig) -> None:
    """Raise `ValueError` for a judge that cannot be asked: no package, no key, no endpoint, a file that is none."""
    if isinstance(config, AskedJudge):
        annotator(config.annotator)
    if isinstance(config, AnnotationsJudge):
        read_annotations(Path(config.file), "judge.file")
    if isinstance(config, OpenAIJudge):
        from paft.judge.endpoint import Endpoint

        Endpoint(config).require()


def require_judged(config: AlpacaEvalConfig, *, offline: bool) -> None:
    """Raise `ValueError` for a reference or a column that cannot be had."""
    read_reference(config.reference, offline=offline)
    for column, task in config.tasks.items():
        if task.metric == LENGTH_CONTROLLED:
            try:
                require_rate()
                length_data(Path(config.length_data) if config.length_data else None)
            except ValueError as error:
                raise ValueError(
                    f"the column {column} cannot be filled: {error}; evaluate.length_data=DIR gives the data, "
                    f"~evaluate.tasks.{column} leaves the column out"
                ) from None


def require_room(config: AlpacaEvalConfig, positions: int | None, title: str) -> None:
    """Raise `ValueError` where the longest answer would leave no room for an instruction in the model's positions."""
    tokens = config.sampling.max_new_tokens
    if positions is not None and tokens >= positions:
        raise ValueError(
            f"evaluate.sampling.max_new_tokens={tokens} leaves no room for an instruction in the {positions} positions "
            f"of {title}; set it to {positions // 2}"
        )
