"""`SparingLM` against lm-eval's own `HFLM`: the same model, the same requests, float32."""

from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import MODEL

from paft.config import Template
from paft.evaluate.columns import task_manager
from paft.evaluate.lm import SparingLM
from paft.model.base import base_folder, load_tokenizer
from paft.proof.base import load_base

TASKS = ["paft_tool_call", "paft_honesty", "paft_mmlu_dev"]
CLOSE = 1e-4
"""Log-likelihoods are sums of up to some hundred float32 terms, padded differently; measured 3e-5 at most."""


def pair_of_models(**settings: Any) -> tuple[HFLM, SparingLM]:
    folder = base_folder(MODEL)
    tokenizer = load_tokenizer(folder, Template.chatml)
    made = [
        kind(pretrained=load_base(folder, MODEL), tokenizer=tokenizer, device="cpu", **settings)
        for kind in (HFLM, SparingLM)
    ]
    return made[0], made[1]


def evaluated(lm: HFLM, **settings: Any) -> dict[str, Any]:
    raw = simple_evaluate(
        lm, tasks=TASKS, limit=6, bootstrap_iters=10, task_manager=task_manager(set(TASKS)), **settings
    )
    assert raw is not None
    return dict(raw)


@pytest.mark.parametrize("apply_chat_template", [False, True])
def test_own_tasks_against_hflm(apply_chat_template):
    theirs, ours = (
        evaluated(lm, apply_chat_template=apply_chat_template) for lm in pair_of_models(batch_size=4)
    )
    for task in TASKS:
        for name, value in theirs["results"][task].items():
            if "stderr" not in name and not isinstance(value, str):
                assert ours["results"][task][name] == pytest.approx(value, abs=1e-5), (task, name)
        for a, b in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert a["prompt_hash"] == b["prompt_hash"]
            same_answers(a["filtered_resps"], b["filtered_resps"])


def same_answers(ours: list[Any], theirs: list[Any], rel: float = 1e-6) -> None:
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, str):
            assert a == b
        else:
            assert a[0] == pytest.approx(b[0], abs=CLOSE, rel=rel) and a[1] == b[1]


def requests(pairs: list[tuple[str, str]]) -> list[Instance]:
    return [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)
    ]


FEWSHOT = "Q: one?\nA: yes\n\nQ: two?\nA: no\n\n"
PAIRS = [
    *[
        (f"{FEWSHOT}Q: item {i}?\nA:", answer)
        for i in range(4)
        for answer in (" yes", " no", " yes, it is", " A")
    ],
    ("", "no context at all"),
    ("x", "y"),
    (FEWSHOT * 9, " a context longer than the window"),
    (FEWSHOT * 9, " a"),
    ("Ünïcödé ☃", " 雪"),
    ("Q: twice?\nA:", " yes"),
    ("Q: twice?\nA:", " yes"),
]
"""Contexts shared as in few-shot evaluation, answers that begin other answers, equal requests, truncation."""


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("max_length", [None, 64])
def test_requests_against_hflm(batch_size, max_length):
    theirs, ours = pair_of_models(batch_size=batch_size, max_length=max_length)
    same_answers(
        ours.loglikelihood(requests(PAIRS), disable_tqdm=True),
        theirs.loglikelihood(requests(PAIRS), disable_tqdm=True),
    )


def test_one_text_split_in_two_ways_where_hflm_is_wrong():
    """lm-eval 0.4.13 keeps one forward per context + continuation and reads every request at the same place.

    Two requests with the same tokens, but split elsewhere, get the longer one's positions there; no task of
    ours or of the leaderboard asks that. Ours is the sum over the request's own tokens.
    """
    theirs, ours = pair_of_models(batch_size=4)
    context, longer, shorter = "Q: item?\nA:", " yes, it is", ", it is"
    asked = requests([(context, longer), (f"{context} yes", shorter)])
    (_, found), (_, off) = (lm.loglikelihood(asked, disable_tqdm=True) for lm in (ours, theirs))
    (alone,) = theirs.loglikelihood(requests([(f"{context} yes", shorter)]), disable_tqdm=True)
    assert found[0] == pytest.approx(alone[0], abs=CLOSE)
    assert abs(off[0] - alone[0]) > 1e-2, "lm-eval has been mended: fold this case into PAIRS"


def test_greedy_flags_against_hflm():
    """Continuations that the model itself would write, and those with the last token changed."""
    theirs, ours = pair_of_models(batch_size=4)
    context = ours.tok_encode("Q: item?\nA:")
    written = ours.model.generate(
        torch.tensor([context]), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(context) :].tolist()
    asked = [(None, context, written[:k]) for k in range(1, 7)]
    asked += [(None, context, [*written[: k - 1], (written[k - 1] + 1) % 256]) for k in range(1, 7)]
    answers = [lm._loglikelihood_tokens(asked, disable_tqdm=True) for lm in (ours, theirs)]
    same_answers(*answers)
    assert [greedy for _, greedy in answers[0]] == [True] * 6 + [False] * 6


def test_rolling_log_likelihood_against_hflm():
    theirs, ours = pair_of_models(batch_size=4, max_length=32)
    text = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(FEWSHOT * k,), idx=k)
        for k in (1, 3)
    ]
    a, b = (lm.loglikelihood_rolling(text, disable_tqdm=True) for lm in (ours, theirs))
    assert a == pytest.approx(b, abs=1e-3)  # a sum over some hundred tokens of about -6 each


def test_generated_text_against_hflm():
    theirs, ours = pair_of_models(batch_size=4)
    settings = {"until": ["\n"], "do_sample": False, "max_gen_toks": 12}
    asked = [
        Instance(
            request_type="generate_until", doc={}, arguments=(f"{FEWSHOT}Q: {word}?\nA:", settings), idx=i
        )
        for i, word in enumerate(("item", "a much longer question", "x", "other things", "last"))
    ]
    assert ours.generate_until(asked, disable_tqdm=True) == theirs.generate_until(asked, disable_tqdm=True)


def test_generation_gives_the_head_rows_side_by_side():
    """Of rows that lie apart torch copies the head's weight once for each."""
    seen = []
    _, ours = pair_of_models(batch_size=4)
    context = torch.randint(3, 200, (4, 7))
    lm_head = ours.model.get_output_embeddings()
    plain = lm_head.forward
    lm_head.forward = lambda hidden: seen.append(hidden.is_contiguous()) or plain(hidden)
    ours._model_generate(context, 10, ["\n"], attention_mask=torch.ones_like(context), do_sample=False)
    assert seen and all(seen)
