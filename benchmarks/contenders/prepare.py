"""Conversations to tokens and labels, in one process: PAFT's data stage or what others do with the same rows.

    python benchmarks/contenders/prepare.py paft|rows|map|trl <model> <rows.jsonl> <cores>

`paft` is the stage as it is, `rows` the same with each row rendered and tokenised by itself, `map` is
`datasets.map(batched=True)` with the chat template, the tokenizer and its offsets, `trl` the preparation of TRL's
SFTTrainer for `assistant_only_loss`. Prints one JSON line: seconds from the file to the tokens on a disk, without
start-up, and a digest of the tokens and labels.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

IGNORE = -100
ANSWER = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)
MASKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML as PAFT's template writes it, with the answers marked for transformers' own mask."""
LIMITS: Any = {"max_length": 65536, "max_prompt_length": 32768}
Columns = dict[str, list[list[int]]]


def tokenizer_of(model: str) -> Any:
    from hydra import compose, initialize_config_dir

    from paft.command.choices import CONF
    from paft.command.compose import register_schemas, to_config
    from paft.config import Template
    from paft.model.base import base_folder, load_tokenizer

    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(compose("train", [f"model={model}"]))
    return load_tokenizer(base_folder(config.model), Template.chatml)


def by_paft(tokenizer: Any, rows: str, out: Path, cores: int) -> Iterable[Columns]:
    from paft.config import FileSource
    from paft.data.prepare import prepare_sft

    prepare_sft(FileSource(path=rows, **LIMITS), tokenizer, out)
    return written(out)


def row_by_row(tokenizer: Any, rows: str, out: Path, cores: int) -> Iterable[Columns]:
    from paft.chat.batch import BatchEncoder

    def alone(self: BatchEncoder, row: Any) -> Any:
        try:
            return self.conversation(row.messages, row.tools)
        except ValueError as error:
            return error

    def each(self: BatchEncoder, rows: Any) -> Any:
        return [alone(self, row) for row in rows]

    setattr(BatchEncoder, "conversations", each)  # noqa: B010
    return by_paft(tokenizer, rows, out, cores)


def by_map(tokenizer: Any, rows: str, out: Path, cores: int) -> Iterable[Columns]:
    from datasets import load_dataset

    def encode(batch: dict[str, Any]) -> Columns:
        texts = [text.rstrip() for text in tokenizer.apply_chat_template(batch["messages"], tokenize=False)]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        labels = [[IGNORE] * len(ids) for ids in encoded.input_ids]
        for at, (text, ids) in enumerate(zip(texts, encoded.input_ids, strict=True)):
            for answer in ANSWER.finditer(text):
                start, end = (
                    encoded.char_to_token(at, place) for place in (answer.start(1), answer.end(1) - 1)
                )
                labels[at][start : end + 1] = ids[start : end + 1]
        return {"input_ids": encoded.input_ids, "labels": labels}

    given = load_dataset("json", data_files=rows, split="train", cache_dir=str(out))
    made = given.map(encode, batched=True, num_proc=cores, remove_columns=given.column_names)
    return made.iter(1000)


def by_trl(tokenizer: Any, rows: str, out: Path, cores: int) -> Iterable[Columns]:
    import trl
    from datasets import load_dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer.chat_template = MASKED
    shape: Any = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **shape))
    settings = trl.SFTConfig(
        str(out), assistant_only_loss=True, max_length=None, dataset_num_proc=cores, use_cpu=True, bf16=False,
        report_to="none", shuffle_dataset=False,
    )  # fmt: skip
    given = load_dataset("json", data_files=rows, split="train", cache_dir=str(out))
    trainer: Any = trl.SFTTrainer(model, settings, train_dataset=given, processing_class=tokenizer)
    return trainer.train_dataset.iter(1000)


def written(out: Path) -> Iterable[Columns]:
    import pyarrow.parquet as pq

    return (batch.to_pydict() for batch in pq.ParquetFile(out / "train.parquet").iter_batches(1000))


def digest(columns: Iterable[Columns]) -> dict[str, Any]:
    """Of all tokens up to the last that is learnt, and of their labels."""
    import numpy as np

    found, tokens, rows = hashlib.sha256(), 0, 0
    for batch in columns:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            end = np.flatnonzero(np.array(labels) != IGNORE)[-1] + 1
            found.update(np.array([ids[:end], labels[:end]], np.int32).tobytes())
            tokens, rows = tokens + int(end), rows + 1
    return {"digest": found.hexdigest(), "tokens": tokens, "rows": rows}


def main(name: str, model: str, rows: str, cores: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    tokenizer = tokenizer_of(model)
    ways = {"paft": by_paft, "rows": row_by_row, "map": by_map, "trl": by_trl}
    warm_up = {"paft": "paft.data.prepare", "rows": "paft.data.prepare", "map": "datasets", "trl": "trl"}
    __import__(warm_up[name])
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        columns = ways[name](tokenizer, rows, Path(out), cores)
        seconds = time.perf_counter() - started
        print("\n" + json.dumps({"seconds": seconds} | digest(columns)))


if __name__ == "__main__":
    name, model, rows, cores = sys.argv[1:]
    main(name, model, rows, int(cores))
