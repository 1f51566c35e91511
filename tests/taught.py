"""A tiny model that was taught the calls of a few requests, in a template whose end of turn is or is not its EOS."""

from pathlib import Path

import torch
from chat_tokenizers import byte_level, finished
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paft.chat.encode import encode_conversation
from paft.chat.tokens import IGNORE
from paft.config import EvaluateConfig, TaskConfig
from paft.evaluate.tasks.docs import tool_call

NUM_ITEMS = 5
ITEMS = [dict(item) for item in list(tool_call()["test"])[:NUM_ITEMS]]
TASK = TaskConfig(task="paft_tool_call", metric="exact_match,none")


def config(batch_size: int) -> EvaluateConfig:
    return EvaluateConfig(
        name="taught", tasks={"calls": TASK}, apply_chat_template=True, batch_size=batch_size, limit=NUM_ITEMS
    )


def tokenizer_for(template: str, *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Its words are those of the calls; padding is an ordinary word, as it is in some released models."""
    tokenizer = finished(
        byte_level(*(item["request"] + item["call"] for item in ITEMS)), template, adds_bos=adds_bos
    )
    tokenizer.pad_token_id = tokenizer.convert_tokens_to_ids("!")
    return tokenizer


def teach(tokenizer: PreTrainedTokenizerFast, folder: Path) -> LlamaForCausalLM:
    """Save the model and its tokenizer, which has lost its template, as a base model has none."""
    rows = [
        encode_conversation(
            tokenizer,
            [{"role": "user", "content": item["request"]}, {"role": "assistant", "content": item["call"]}],
        )
        for item in ITEMS
    ]
    width = max(len(row.input_ids) for row in rows)
    ids, labels = (
        torch.tensor([values + [fill] * (width - len(values)) for values in column])
        for column, fill in zip(zip(*rows, strict=True), (0, IGNORE), strict=True)
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(300):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 5e-3:
            break
    model.eval().save_pretrained(folder)
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = template
    return model
