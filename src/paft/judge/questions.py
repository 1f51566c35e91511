"""What a model is asked before it is judged, and what its answers are written as."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paft.config.judged import REPO, MTBenchQuestions, Questions, Reference
from paft.files.hub import unavailable
from paft.judge.mt_bench import read_data
from paft.judge.outputs import Row, read_outputs

FILE = "alpaca_eval_gpt4_baseline.json"


@dataclass(frozen=True)
class Asked:
    """One conversation that the model is to have."""

    row: Row
    """What is known of it, beside the answers."""
    turns: tuple[str, ...]
    """What the user says."""
    temperature: float | None = None
    """Where it has one of its own."""

    def answered(self, answers: Sequence[str], generator: str) -> Row:
        """A row of outputs.json: alpaca-eval's `output` to an instruction, `answers` to a question of several turns."""
        said = {"output": answers[0]} if "instruction" in self.row else {"answers": list(answers)}
        return self.row | said | {"generator": generator}


def read_questions(questions: Questions, limit: int | None = None, *, offline: bool = False) -> list[Asked]:
    """The first `limit` of them. Raises `ValueError` for files that cannot be had or hold something else."""
    match questions:
        case Reference():
            rows = read_reference(questions, offline=offline)
            columns = ("dataset", "instruction")
            asked = [
                Asked({name: row[name] for name in columns if name in row}, (instruction,))
                for instruction, row in rows.items()
            ]
        case MTBenchQuestions():
            data = read_data(Path(questions.folder))
            degrees = questions.temperatures
            asked = [Asked(q, tuple(q["turns"]), degrees.get(q["category"])) for q in data.questions]
        case _:
            raise TypeError(f"unknown questions {type(questions).__name__}")
    return asked[:limit]


def read_reference(reference: Reference, *, offline: bool = False) -> dict[str, Row]:
    """Instruction -> row with the reference's `output`."""
    return read_outputs(reference_file(reference, offline=offline), "evaluate.reference.file")


def reference_file(reference: Reference, *, offline: bool = False) -> Path:
    """Where a reference is. Raises `ValueError` saying what to do where it cannot be had."""
    if reference.file is not None:
        return Path(reference.file)
    from huggingface_hub import hf_hub_download

    revision = reference.revision
    try:
        return Path(
            hf_hub_download(REPO, FILE, repo_type="dataset", revision=revision, local_files_only=offline)
        )
    except (OSError, ValueError) as error:
        instead = "with a copy on this disk: evaluate.reference.file=..."
        raise unavailable(f"{FILE} of {REPO}", f"datasets/{REPO}", error, instead) from None
