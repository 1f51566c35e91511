"""A prompt forwarded once for both answers gives what two rows of their own give.

Losses and gradients of whole steps are compared with plain rows in test_step.py.
"""

import pytest
import torch
from tiny import BRANCHES, PAD, make, move, pairs

from paft.chat.tokens import IGNORE, EncodedPair
from paft.forward.pairs import CHOSEN, PROMPT, REJECTED, pair_tensors, shared_prompt_tensors, two_row_tensors
from paft.model.policy import Policy

PAIR = EncodedPair([3, 4, 9], [5], [6, 7])


def trained_a_little() -> Policy:
    return move(make(BRANCHES["dpo"])).backbone


def test_shared_prompt_tensors_by_hand():
    found = shared_prompt_tensors([PAIR, EncodedPair([8], [5], [6])], PAD, prompt_labels=True)
    assert found.input_ids.tolist() == [[3, 4, 9, 5, 9, 6, 7], [8, 5, 8, 6, PAD, PAD, PAD]]
    assert found.labels.tolist() == [[IGNORE, 4, 9, 5, IGNORE, 6, 7], [IGNORE, 5, IGNORE, 6, *[IGNORE] * 3]]
    assert found.answers.tolist() == [[0, 0, 0, 1, 0, 2, 2], [0, 1, 0, 2, 0, 0, 0]]
    assert found.segments is not None and found.positions is not None
    assert found.segments.tolist() == [[0, 0, 1, 1, 2, 2, 2], [1, 1, 2, 2, 3, 3, 3]]
    assert found.positions.tolist() == [[0, 1, 2, 3, 2, 3, 4], [0, 1, 0, 1, 0, 0, 0]]


def test_two_row_tensors_by_hand():
    found = two_row_tensors([PAIR], PAD, prompt_labels=True)
    assert found.input_ids.tolist() == [[3, 4, 9, 5, PAD], [3, 4, 9, 6, 7]]
    assert found.labels.tolist() == [[IGNORE, 4, 9, 5, IGNORE], [*[IGNORE] * 3, 6, 7]]
    assert found.answers.tolist() == [[PROMPT] * 3 + [CHOSEN, PROMPT], [PROMPT] * 3 + [REJECTED] * 2]


def test_answer_sums_by_hand():
    values = torch.arange(7.0)[None]
    assert [t.tolist() for t in shared_prompt_tensors([PAIR], PAD).answer_sums(values)] == [[3.0], [11.0]]
    assert [t.tolist() for t in shared_prompt_tensors([PAIR], PAD).answer_means(values)] == [[3.0], [5.5]]
    rows = torch.arange(10.0).view(2, 5)
    assert [t.tolist() for t in two_row_tensors([PAIR], PAD).answer_sums(rows)] == [[3.0], [8.0 + 9.0]]


@pytest.mark.parametrize("prompt_labels", [False, True])
def test_every_label_against_rows_of_their_own(prompt_labels):
    policy, rows = trained_a_little(), [*pairs(5), EncodedPair([7], [8, 9], [10])]
    shared = shared_prompt_tensors(rows, PAD, prompt_labels=prompt_labels)
    plain = two_row_tensors(rows, PAD, prompt_labels=prompt_labels)
    ours, theirs = shared.logps(policy), plain.logps(policy)
    for answer in (PROMPT, CHOSEN, REJECTED):
        mine, own = (
            t[(b.answers == answer) & (b.labels != IGNORE)] for t, b in ((ours, shared), (theirs, plain))
        )
        # float32 rounding: the same sums over keys, some of them over more zeros
        torch.testing.assert_close(mine, own, atol=2e-6, rtol=1e-5)


def test_neither_answer_nor_another_row_nor_padding_is_seen():
    policy = trained_a_little()
    first, second = EncodedPair([3, 4, 9], [5, 6], [6, 7]), EncodedPair([3, 4, 9], [5, 6], [11, 12, 13, 14])
    alone = shared_prompt_tensors([first], PAD).answer_sums(shared_prompt_tensors([first], PAD).logps(policy))
    both = shared_prompt_tensors([first, second], PAD)
    chosen, rejected = both.answer_sums(both.logps(policy))
    torch.testing.assert_close(chosen[0], chosen[1])
    torch.testing.assert_close((chosen[0], rejected[0]), (alone[0][0], alone[1][0]))
    assert (rejected[0] - rejected[1]).abs() > 1e-2


def test_attention_that_takes_no_mask_or_looks_back_less_far_gets_two_rows():
    policy = trained_a_little()
    assert pair_tensors(policy, [PAIR], PAD).segments is not None
    policy.base.config.sliding_window = PAIR.row_tokens - 1
    assert pair_tensors(policy, [PAIR], PAD).segments is None
    policy.base.config.sliding_window = PAIR.row_tokens
    assert pair_tensors(policy, [PAIR], PAD).segments is not None
    policy.base.config._attn_implementation = "flash_attention_2"
    assert pair_tensors(policy, [PAIR], PAD).input_ids.shape == (2, 5)
