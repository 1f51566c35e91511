"""Rows of the leaderboard's data sets, laid out for `evaluate.data_dir`: made up, or the real ones of a folder.

    python tests/open_llm_rows.py FOLDER OUT

writes what FOLDER holds of the real ones.
"""

import bz2
import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ARC = "allenai/ai2_arc/ARC-Challenge"
HELLASWAG = "Rowan/hellaswag"
TRUTHFULQA = "truthfulqa/truthful_qa/multiple_choice"
WINOGRANDE = "allenai/winogrande/winogrande_xl"
GSM8K = "openai/gsm8k/main"
PIQA = "baber/piqa"
SHOTS = 100
"""The last rows of a set of which there is no other part: examples are drawn from them, and they are no items."""


def write(out: Path, name: str, rows: Iterable[Row]) -> None:
    """`out`/`name`.jsonl"""
    file = out / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# --- made up ------------------------------------------------------------------------------------------


def made_up(out: Path, subjects: Iterable[str]) -> None:
    """Some rows of every data set of the leaderboard, of MMLU for these subjects."""
    write(out, f"{ARC}/train", [arc(n) for n in range(30)])
    write(out, f"{ARC}/test", [arc(n) for n in range(100, 106)])
    write(out, f"{HELLASWAG}/train", [hellaswag(n) for n in range(12)])
    write(out, f"{HELLASWAG}/validation", [hellaswag(n) for n in range(100, 105)])
    write(out, f"{TRUTHFULQA}/validation", [truthful(n) for n in range(5)])
    write(out, f"{WINOGRANDE}/train", [winogrande(n) for n in range(8)])
    write(out, f"{WINOGRANDE}/validation", [winogrande(n) for n in range(100, 105)])
    write(out, f"{GSM8K}/train", [gsm8k(n) for n in range(9)])
    write(out, f"{GSM8K}/test", [gsm8k(n) for n in range(100, 103)])
    for subject in subjects:
        write(out, f"cais/mmlu/{subject}/dev", [mmlu(n, subject) for n in range(5)])
        write(out, f"cais/mmlu/{subject}/test", [mmlu(n, subject) for n in range(100, 102)])


def arc(n: int) -> Row:
    labels = list("ABCD" if n % 2 else "1234")
    choices = {"text": [f"{n} ist größer", f"is it {n}?", "2020-01-01 00:00:00", "none"], "label": labels}
    return {"id": f"q{n}", "question": f"What is {n}?", "choices": choices, "answerKey": labels[n % 4]}


def hellaswag(n: int) -> Row:
    endings = [f"walks {n}  times [step] on.", "[title] rests", "runs.", "sleeps"]
    context = {"ctx_a": f"[header] How to count {n}", "ctx_b": "she OPENS", "activity_label": "Counting"}
    return {**context, "endings": endings, "label": str(n % 4)}


def truthful(n: int) -> Row:
    first = {"choices": [f"It is {n}.", "Nobody knows."], "labels": [1, 0]}
    second = {"choices": [f"It is {n}.", f"{n}", "Nobody knows."], "labels": [1, 1, 0]}
    return {"question": f"What comes after {n - 1}?", "mc1_targets": first, "mc2_targets": second}


def winogrande(n: int) -> Row:
    sentence = f"The box {n} did not fit the bag because _ was too big."
    return {"sentence": sentence, "option1": "the box", "option2": "the bag", "answer": str(1 + n % 2)}


def gsm8k(n: int) -> Row:
    return {"question": f"How much is {n} + 1?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1:,}"}


def mmlu(n: int, subject: str) -> Row:
    choices = [str(n), f"{n + 1}", "a, b", "none"]
    return {"question": f" What of {n}? ", "subject": subject, "choices": choices, "answer": n % 4}


# --- real ---------------------------------------------------------------------------------------------


def real(folder: Path, out: Path) -> None:
    """What `folder` holds of the data sets, under the hub's names of files and columns.

    Two sets lack a part: HellaSwag's examples are its last `SHOTS` validation items, which are then no items, and
    GSM8K's items the last `SHOTS` rows of its training part.
    """
    for split in ("train", "test"):
        write(out, f"{ARC}/{split}", _json_lines(folder / f"arc_challenge/{split}.jsonl"))
    packed = (folder / "hellaswag/hellaswag_val_full.txt.bz2").read_bytes()
    swag = list(_hellaswag(bz2.decompress(packed).decode()))
    write(out, f"{HELLASWAG}/validation", swag[:-SHOTS])
    write(out, f"{HELLASWAG}/train", swag[-SHOTS:])
    questions = json.loads((folder / "truthfulqa/mc_task_v0.json").read_text())
    write(out, f"{TRUTHFULQA}/validation", map(_truthful, questions))
    write(out, f"{WINOGRANDE}/train", _json_lines(folder / "winogrande/train_m.jsonl"))
    write(out, f"{WINOGRANDE}/validation", _json_lines(folder / "winogrande/train_xs.jsonl"))
    write(out, f"{PIQA}/validation", map(_piqa, _json_lines(folder / "piqa/piqa.jsonl")))
    for split in ("dev", "test"):
        for file in sorted((folder / f"mmlu/{split}").glob("*.csv")):
            subject = file.stem.removesuffix(f"_{split}")
            write(out, f"cais/mmlu/{subject}/{split}", _mmlu(file, subject))
    solved = [row["messages"] for row in _json_lines(folder.parent / "gsm8k_train.jsonl")]
    sums = [{"question": asked["content"], "answer": said["content"]} for asked, said in solved]
    write(out, f"{GSM8K}/train", sums[:-SHOTS])
    write(out, f"{GSM8K}/test", sums[-SHOTS:])


def _json_lines(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _hellaswag(text: str) -> Iterable[Row]:
    """Six lines an item: activity and context, number of the right ending, four endings."""
    lines = text.split("\n")
    for start in range(0, len(lines) - 5, 6):
        context, label, *endings = (line.strip() for line in lines[start : start + 6])
        activity, _, told = context.partition(": ")
        whole, stop, begun = told.rpartition(". ")
        if not begun[:1].islower():  # the sentence that the endings go on with begins in small letters
            whole, stop, begun = told, "", ""
        parts = {"activity_label": activity, "ctx_a": f"{whole}{stop}".strip(), "ctx_b": begun}
        yield {**parts, "endings": endings, "label": label}


def _truthful(row: Row) -> Row:
    targets = {
        name: {"choices": list(row[name]), "labels": list(row[name].values())}
        for name in ("mc1_targets", "mc2_targets")
    }
    return {"question": row["question"], **targets}


def _piqa(row: Row) -> Row:
    goal = row["query"].removeprefix("Question: ").removesuffix("\n")
    return {"goal": goal, "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}


def _mmlu(file: Path, subject: str) -> Iterable[Row]:
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            choices = [row[f"choice{n}"] for n in range(4)]
            named = {"question": row["question"], "subject": subject}
            yield {**named, "choices": choices, "answer": int(row["answer"])}


if __name__ == "__main__":
    real(Path(sys.argv[1]), Path(sys.argv[2]))
