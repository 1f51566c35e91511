"""Score a few-shot multiple-choice task with SmolLM2-135M-Instruct: lm-eval's own Hugging Face model against PAFT's.

    python benchmarks/evaluate.py [--questions 40] [--shots 5] [--quick] [--out DIR]

The questions are those of MMLU's development set that lm-eval carries, as `paft_mmlu_dev` words them, each after
the same few worked ones. Both sides get the same requests and batch size, each in a process of its own. Scores are
compared in float32 before bfloat16 is timed: in bfloat16 either side's move with the rows that share a batch.
`--quick` has one question, and float32 alone.
"""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.process import run_child
from harness.progress import Progress, new_parser, parse
from measure import Report, Row, publish

CLOSE = 1e-3
"""Allowed difference of a log-likelihood in float32, in nats; relative where it is above 1."""
PROOF_QUESTIONS = 8
SPEED = 3.0
SECONDS = (20, 15, 65, 18)
"""Of the processes, on two cores."""


def requests_of(lm: Any, questions: int, shots: int) -> list[tuple[None, list[int], list[int]]]:
    """The four options of each question as (text, context tokens, continuation tokens)."""
    from paft.evaluate.tasks.docs import mmlu_dev

    asked = [(doc["question"], options(doc), doc["gold"]) for doc in mmlu_dev()["test"]]
    asked = [question for question in asked if len(question[1]) == 4]
    examples = "".join(f"{text}\nAnswer: {choices[gold]}\n\n" for text, choices, gold in asked[:shots])
    encode = lm.tokenizer.encode
    return [
        (None, encode(f"{examples}{text}\nAnswer:"), encode(f" {choice}"))
        for text, choices, _ in asked[shots : shots + questions]
        for choice in choices
    ]


def options(doc: dict[str, Any]) -> list[str]:
    """What the question's last lines offer, without the letters."""
    lines = doc["question"].splitlines()[-(len(doc["choices"]) - 1) :]
    return [line.partition(". ")[2] for line in lines]


def contender(
    name: str,
    model_name: str,
    dtype: str,
    questions: int,
    shots: int,
    out: Path,
    device: str = "cpu",
    batch_size: int = 8,
) -> None:
    """One side: load, score, write seconds and log-likelihoods."""
    import torch
    from hydra import compose, initialize_config_dir
    from lm_eval.models.huggingface import HFLM

    from paft.command.compose import register_schemas, to_config
    from paft.config import DType
    from paft.evaluate.lm import SparingLM
    from paft.model.base import base_folder, load_tokenizer
    from paft.proof.base import load_base

    torch.manual_seed(0)
    register_schemas()
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        config = to_config(compose("train", [f"model={model_name}"]))
    folder = base_folder(config.model)
    config = replace(config, model=replace(config.model, dtype=DType(dtype)))
    kind = HFLM if name == "lm-eval" else SparingLM
    model = load_base(folder, config.model, device=device)
    model.to(torch.device(device))  # type: ignore[arg-type]
    if name == "lm-eval":
        model.set_attn_implementation("sdpa")
    lm = kind(pretrained=model, tokenizer=load_tokenizer(folder, config.data.template), batch_size=batch_size)
    asked = requests_of(lm, questions, shots)
    lm._loglikelihood_tokens(asked[:8], disable_tqdm=True)
    started = time.perf_counter()
    found = lm._loglikelihood_tokens(asked, disable_tqdm=True)
    seconds = time.perf_counter() - started
    tokens = sum(len(context) + len(choice) for _, context, choice in asked)
    out.write_text(json.dumps({"seconds": seconds, "tokens": tokens, "scores": found}))


def same(a: list[list[Any]], b: list[list[Any]]) -> float:
    """Largest difference of two log-likelihoods; raises if one is too large or an answer differs."""
    worst = max(abs(x[0] - y[0]) / max(1.0, abs(x[0])) for x, y in zip(a, b, strict=True))
    answers = [[max(range(4), key=lambda c: s[4 * q + c][0]) for q in range(len(s) // 4)] for s in (a, b)]
    different = sum(x != y for x, y in zip(*answers, strict=True))
    if worst > CLOSE or different:
        raise RuntimeError(f"log-likelihoods differ by {worst:.2g}, {different} answers differ")
    return worst


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--shots", type=int, default=5)
    given = parse(parser)
    asked = {"float32": PROOF_QUESTIONS, "bfloat16": given.questions}
    if given.quick:
        asked, given.shots = {"float32": 1}, 1
    progress = Progress("evaluate", SECONDS[: 2 * len(asked)], quick=given.quick)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype, questions in asked.items():
            for name in ("lm-eval", "paft"):
                progress.next(f"{name} in {dtype}")
                out = Path(folder) / f"{name}.json"
                model = "tiny" if given.quick else "smollm2_135m"
                words = (name, model, dtype, str(questions), str(given.shots), str(out))
                child = run_child(__file__, "--side", *words)
                found[name] = json.loads(out.read_text()) | {"peak": child.peak_mb}
            if dtype == "float32":
                worst = same(found["lm-eval"]["scores"], found["paft"]["scores"])
    details = {"seconds": {name: f["seconds"] for name, f in found.items()}, "worst": worst}
    publish(Report("evaluate", rows_of(found, given.shots, worst), details), given.out)


def rows_of(found: dict[str, dict[str, Any]], shots: int, worst: float) -> list[Row]:
    ours, theirs = found["paft"], found["lm-eval"]
    rate = {name: f["tokens"] / f["seconds"] for name, f in found.items()}
    return [
        Row(
            f"MMLU development questions, {shots} shots",
            f"{ours['seconds']:.1f} s, {rate['paft']:.0f} tokens/s",
            "lm-eval HFLM",
            f"{theirs['seconds']:.1f} s, {rate['lm-eval']:.0f} tokens/s",
            theirs["seconds"] / ours["seconds"],
            at_least=SPEED,
            note=f"float32: same answers, log-likelihoods within {worst:.1g}",
        ),
        Row(
            "its peak memory",
            f"{ours['peak']:.0f} MiB",
            "lm-eval HFLM",
            f"{theirs['peak']:.0f} MiB",
            ours["peak"] / theirs["peak"],
        ),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        name, model, dtype, questions, shots, path, *where = sys.argv[2:]
        device, batch_size = where or ("cpu", "8")
        contender(name, model, dtype, int(questions), int(shots), Path(path), device, int(batch_size))
    else:
        main()
