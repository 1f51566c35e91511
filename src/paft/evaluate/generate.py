"""The `generate` stage: a model folder in, outputs.json with its answers to the questions of an evaluation out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance

from paft.config.judged import Sampling
from paft.evaluate.folder import model_folder
from paft.evaluate.lm import SparingLM, lm_of
from paft.files.jsonfile import read_object, write_json
from paft.graph.configs import GenerateStage
from paft.graph.stage import Stage
from paft.judge.questions import Asked, read_questions
from paft.judge.stage import OUTPUTS
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base
from paft.proof.record import device_of, proved_paths
from paft.store.context import Context
from paft.store.damage import WORK

BATCHES = 4
"""Of answers in a file that a run which was cut short goes on from."""
Chat = list[dict[str, str]]


def run(stage: Stage[GenerateStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Answer each question with the `model` among the inputs, or the base where there is none."""
    config, offline = stage.config, context.running.offline
    asked = read_questions(config.questions, config.limit, offline=offline)
    base, device = base_folder(config.model, offline=offline), device_of(context.running.trainer)
    tokenizer = load_tokenizer(base, config.template, trust_remote_code=config.model.trust_remote_code)
    loaded_as = replace(config.model, dtype=config.dtype or config.model.dtype)
    folder = model_folder(inputs, base, out / WORK / "model", config.dtype)
    model = load_base(folder, loaded_as, proved_paths(base, config.model, device), used_on=device)
    lm = lm_of(
        model,
        tokenizer,
        config.batch_size,
        device,
        chats=True,
        generation_batch_size=config.at_once,
    )
    answers = answer(lm, asked, config, out / WORK)
    name = f"{config.model.title} {stage.key}"
    write_json(out / OUTPUTS, [one.answered(said, name) for one, said in zip(asked, answers, strict=True)])
    texts = [text for said in answers for text in said]
    return {"answers": len(texts), "mean_characters": sum(map(len, texts)) / len(texts)}


def answer(lm: SparingLM, asked: Sequence[Asked], config: GenerateStage, work: Path) -> list[list[str]]:
    """The answers of each conversation, one a turn, stripped.

    A turn of some batches is written at a time. What is drawn depends on the seed and on the place of a question alone,
    so a run that goes on writes the same.
    """
    work.mkdir(exist_ok=True)
    answers: list[list[str]] = [[] for _ in asked]
    size = BATCHES * config.at_once
    for turn in range(max(len(one.turns) for one in asked)):
        going_on = [number for number, one in enumerate(asked) if len(one.turns) > turn]
        for start in range(0, len(going_on), size):
            numbers = going_on[start : start + size]
            file = work / f"answers-{turn}-{start}-{len(numbers)}.json"
            if not file.is_file():
                chats = [chat(asked[number], answers[number]) for number in numbers]
                requests = [
                    _request(lm, talk, config.sampling, asked[number].temperature)
                    for talk, number in zip(chats, numbers, strict=True)
                ]
                torch.manual_seed(config.seed + start)
                texts = lm.generate_until(requests, disable_tqdm=True)
                write_json(file, {"answers": [text.strip() for text in texts]})
            for number, text in zip(numbers, read_object(file)["answers"], strict=True):
                answers[number].append(text)
    return answers


def chat(one: Asked, answers: Sequence[str]) -> Chat:
    """The conversation so far, up to what the user says next."""
    messages: Chat = []
    for text, answer in zip(one.turns, answers, strict=False):
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": one.turns[len(answers)]}]


def _request(lm: SparingLM, messages: Chat, sampling: Sampling, temperature: float | None) -> Instance:
    degrees = sampling.temperature if temperature is None else temperature
    settings: dict[str, Any] = {
        "until": [],
        "max_gen_toks": sampling.max_new_tokens,
        "do_sample": degrees > 0,
    }
    if degrees > 0:
        settings |= {"temperature": degrees, "top_p": sampling.top_p}
    return Instance("generate_until", {}, (lm.apply_chat_template(messages), settings), 0)
