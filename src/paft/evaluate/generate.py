"""The `generate` stage: a model folder in, outputs.json with its answers to a reference's instructions out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance

from paft.evaluate.lm import SparingLM, lm_of
from paft.files.jsonfile import read_object, write_json
from paft.graph.configs import GenerateStage
from paft.graph.stage import Stage
from paft.judge.reference import read_reference
from paft.judge.stage import OUTPUTS
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base
from paft.proof.record import device_of, proved_paths
from paft.store.context import Context
from paft.store.damage import WORK

ASKED = ("dataset", "instruction")
"""What an answer's row has of the reference's."""
BATCHES = 4
"""Of answers in a file that a run which was cut short goes on from."""


def run(stage: Stage[GenerateStage], inputs: dict[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Answer each instruction with the `model` among the inputs, or the base where there is none."""
    config, offline = stage.config, context.running.offline
    rows = read_reference(config.reference, config.limit, offline=offline)
    base, device = base_folder(config.model, offline=offline), device_of(context.running.trainer)
    tokenizer = load_tokenizer(base, config.template, trust_remote_code=config.model.trust_remote_code)
    loaded_as = replace(config.model, dtype=config.dtype or config.model.dtype)
    model = load_base(inputs.get("model", base), loaded_as, proved_paths(base, config.model, device))
    lm = lm_of(model, tokenizer, config.batch_size, device, chats=True)
    answers = answer(lm, list(rows), config, out / WORK)
    whose = {"generator": f"{config.model.title} {stage.key}"}
    outputs = [
        {column: row[column] for column in ASKED if column in row} | {"output": text} | whose
        for row, text in zip(rows.values(), answers, strict=True)
    ]
    write_json(out / OUTPUTS, outputs)
    return {"answers": len(answers), "mean_characters": sum(map(len, answers)) / len(answers)}


def answer(lm: SparingLM, instructions: Sequence[str], config: GenerateStage, work: Path) -> list[str]:
    """The answer to each instruction as a chat of one turn, stripped, some batches at a time.

    What is drawn depends on the seed and on the place of an instruction alone, so a run that goes on writes the same.
    """
    sampling = config.sampling
    settings: dict[str, Any] = {"until": [], "max_gen_toks": sampling.max_new_tokens, "do_sample": False}
    if sampling.temperature > 0:
        settings |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    work.mkdir(exist_ok=True)
    size, answers = BATCHES * config.batch_size, list[str]()
    for start in range(0, len(instructions), size):
        file = work / f"answers-{start}.json"
        if not file.is_file():
            torch.manual_seed(config.seed + start)
            texts = lm.generate_until(_requests(lm, instructions[start : start + size], settings))
            write_json(file, {"answers": [text.strip() for text in texts]})
        answers += read_object(file)["answers"]
    return answers


def _requests(lm: SparingLM, instructions: Sequence[str], settings: dict[str, Any]) -> list[Instance]:
    chats = [lm.apply_chat_template([{"role": "user", "content": text}]) for text in instructions]
    return [
        Instance("generate_until", {}, (chat, dict(settings)), number) for number, chat in enumerate(chats)
    ]
