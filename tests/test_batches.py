"""Batches: every row once an epoch, ranks share a batch between them, a resumed loader goes on where it was."""

import pytest
import torch
from tiny import PAD, VOCABULARY, pairs, sft_rows
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
)

from paft.chat.tokens import IGNORE, Encoded, EncodedPair
from paft.config import Schedule
from paft.forward.batches import micro_batches, sft_tensors
from paft.training.batches import StepLoader, num_steps, row_order
from paft.training.schedule import schedule


def loader(rows, steps=6, **settings):
    return StepLoader(rows, global_batch_size=4, steps=steps, seed=3, **settings)


def test_an_epoch_covers_every_row_once_and_the_next_in_another_order():
    rows = sft_rows(12)
    seen = [row for batch in loader(rows) for row in batch.rows]
    first, second = seen[:12], seen[12:]
    assert sorted(first) == sorted(second) == sorted(rows)
    assert first != second


def test_the_rest_of_an_epoch_is_left_out_and_differs_by_epoch():
    rows = sft_rows(6)
    left_out = [set(range(6)) - set(row_order(6, seed=3, epoch=e)[:4]) for e in range(6)]
    batches = [batch.rows for batch in loader(rows)]
    assert all(len(batch) == 4 for batch in batches)
    assert set().union(*left_out) != left_out[0]


def test_ranks_have_disjoint_rows_and_together_the_global_batch():
    rows = pairs(12)
    whole = list(loader(rows))
    ranks = [list(loader(rows, rank=rank, world=2)) for rank in range(2)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert sorted(parts[0].rows + parts[1].rows) == sorted(batch.rows)
        assert not set(map(str, parts[0].rows)) & set(map(str, parts[1].rows))
        for part in parts:
            totals = ("step", "num_rows", "num_targets", "num_sequence_targets", "num_chosen_targets")
            assert [getattr(part, t) for t in totals] == [getattr(batch, t) for t in totals]


@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_resuming_at_step_k_gives_the_same_batches(k):
    rows = sft_rows(13)
    through, stopped, resumed = list(loader(rows)), loader(rows), loader(rows)
    iterator = iter(stopped)
    for _ in range(k):
        next(iterator)
    resumed.load_state_dict(stopped.state_dict())
    assert list(resumed) == through[k:]


def test_another_seed_gives_another_order():
    assert row_order(50, seed=1, epoch=0) == row_order(50, seed=1, epoch=0) != row_order(50, seed=2, epoch=0)
    assert row_order(50, seed=1, epoch=1) != row_order(50, seed=2, epoch=0)


def test_micro_batches_count_padding_unless_packed():
    rows = [Encoded([3] * n, [IGNORE] * n) for n in (9, 5, 4, 3, 2)]
    sizes = [[len(row.input_ids) for row in part] for part in micro_batches(rows, 8, 10)]
    assert sizes == [[9], [5, 4], [3, 2]]
    sizes = [[len(row.input_ids) for row in part] for part in micro_batches(rows, 8, 10, packed=True)]
    assert sizes == [[9], [5, 4], [3, 2]]
    sizes = [[len(row.input_ids) for row in part] for part in micro_batches(rows, 8, 12, packed=True)]
    assert sizes == [[9], [5, 4, 3], [2]]
    assert [len(part) for part in micro_batches(rows, 2, 12, packed=True)] == [1, 2, 2]
    assert [len(part) for part in micro_batches(rows, 8, 1)] == [1] * 5


def test_micro_batches_hold_every_row_once_and_pad_less():
    rows = sft_rows(10)
    cut = micro_batches(rows, 4)
    assert [len(part) for part in cut] == [4, 4, 2]
    assert sorted(row for part in cut for row in part) == sorted(rows)
    widths = [max(len(r.input_ids) for r in part) * len(part) for part in cut]
    assert sum(widths) < 10 * max(len(r.input_ids) for r in rows)


def test_totals_are_counted_by_hand():
    rows = [EncodedPair([3, 4, 5], [6, 7], [8]), EncodedPair([3], [4, 5, 6], [7, 8])]
    (batch,) = StepLoader(rows, global_batch_size=2, steps=1, seed=0)
    assert (batch.num_rows, batch.num_targets, batch.num_chosen_targets) == (2, 8, 5)
    assert batch.num_sequence_targets == 4 + 3  # all chosen-side tokens but each row's first


def test_sft_tensors_by_hand():
    ids, labels, lengths = sft_tensors(
        [Encoded([3, 4], [IGNORE, 4]), Encoded([5, 6, 7], [IGNORE, 6, 7])], PAD
    )
    assert ids.tolist() == [[3, 4, PAD], [5, 6, 7]]
    assert labels.tolist() == [[IGNORE, 4, IGNORE], [IGNORE, 6, 7]]
    assert lengths.tolist() == [2, 3]


def test_steps_of_a_run():
    assert num_steps(50, global_batch_size=16, epochs=2, max_steps=None) == 6
    assert num_steps(50, global_batch_size=16, epochs=2, max_steps=5) == 5
    with pytest.raises(ValueError, match=r"global_batch_size=16 is more than the 15 training rows"):
        num_steps(15, global_batch_size=16, epochs=1, max_steps=None)


@pytest.mark.parametrize("name", list(Schedule))
def test_schedule_starts_rises_and_ends(name):
    factor = schedule(name, steps=100, warmup_ratio=0.1)
    rising = [factor(step) for step in range(11)]
    assert 0 < rising[0] < 0.1, "a first step at rate 0 would be wasted"
    assert rising == sorted(rising) and rising[10] == 1
    ends = {"cosine": 0.0, "linear": 0.0, "inverse_sqrt": (11 / 100) ** 0.5, "constant": 1.0}
    assert factor(99) == pytest.approx(ends[name.value], abs=0.02)


@pytest.mark.parametrize("name", list(Schedule))
def test_schedule_against_transformers(name):
    steps, warmup = 100, 10
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = {
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, steps),
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, steps),
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
        "inverse_sqrt": lambda: get_inverse_sqrt_schedule(optimizer, warmup, timescale=warmup + 1),
    }[name.value]().lr_lambdas[0]
    ours = schedule(name, steps=steps, warmup_ratio=warmup / steps)
    for step in range(warmup, steps):  # before, theirs starts at rate 0
        assert ours(step) == pytest.approx(theirs(step), abs=1e-12), step


def test_vocabulary_of_the_random_rows_fits_the_tokenizer():
    from paft.model.base import byte_tokenizer

    assert len(byte_tokenizer()) == VOCABULARY
