"""A generated answer ends where the template ends it: a taught model scores 1 in batches of any size."""

from pathlib import Path

import pytest
from taught import NUM_ITEMS, config, teach, tokenizer_for

from paft.evaluate.stage import score_tasks


@pytest.mark.parametrize(
    ("template", "adds_bos"),
    [("chatml", False), ("llama3", True), ("zephyr", True), ("mistral_v3", False), ("phi3", False)],
)
def test_right_answers_score_one_in_batches_of_any_size(
    template: str, adds_bos: bool, tmp_path: Path
) -> None:
    tokenizer = tokenizer_for(template, adds_bos=adds_bos)
    model = teach(tokenizer, tmp_path)
    for batch_size in (1, 2, NUM_ITEMS):
        scores, _ = score_tasks(model, tokenizer, config(batch_size))
        assert scores["calls"].score == 1.0
