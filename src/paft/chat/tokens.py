"""Rows as tokens: which are learnt, and what goes when a row is too long."""

from typing import NamedTuple

from paft.config import Source

IGNORE = -100
"""Label of a token that is not learnt; torch's cross entropy skips it."""


class Encoded(NamedTuple):
    """One SFT row. `labels` are `input_ids` (not shifted), or IGNORE outside the answers."""

    input_ids: list[int]
    labels: list[int]

    @property
    def prompt_length(self) -> int:
        """Tokens before the last answer."""
        return len(self.labels) - self.labels[::-1].index(IGNORE)

    @property
    def answer_lengths(self) -> dict[str, int]:
        return {"answer": len(self.labels) - self.prompt_length}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence that a training step reads."""
        return [len(self.input_ids)]

    @property
    def row_tokens(self) -> int:
        """Tokens it puts through the model."""
        return len(self.input_ids)

    @property
    def num_labels(self) -> int:
        return len(self.labels) - self.labels.count(IGNORE)

    def fitted(self, source: Source, bos_token_id: int | None) -> "Encoded":
        """The row within `max_length` tokens, itself if it is so; see `kept_lengths`.

        Earlier answers are part of the prompt.
        """
        start, (answer,) = self.prompt_length, self.answer_lengths.values()
        keep_prompt, keep_answer = kept_lengths(start, answer, source.max_length, source)
        if (keep_prompt, keep_answer) == (start, answer):
            return self
        bos = self.input_ids[0] == bos_token_id
        ids, labels = (
            _newest(values[:start], keep_prompt, keep_first=bos) + values[start : start + keep_answer]
            for values in self
        )
        return Encoded(ids, labels)


class EncodedPair(NamedTuple):
    """One preference row: a prompt, then either answer, each ending with its end-of-turn token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def prompt_length(self) -> int:
        return len(self.prompt_ids)

    @property
    def answer_lengths(self) -> dict[str, int]:
        return {"chosen": len(self.chosen_ids), "rejected": len(self.rejected_ids)}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence that a training step reads."""
        return [self.prompt_length + answer for answer in self.answer_lengths.values()]

    @property
    def row_tokens(self) -> int:
        """Tokens it puts through the model, the prompt shared by both answers; see paft.forward.pairs."""
        return len(self.prompt_ids) + len(self.chosen_ids) + 1 + len(self.rejected_ids)

    @property
    def num_labels(self) -> int:
        return sum(self.answer_lengths.values())

    def fitted(self, source: Source, bos_token_id: int | None) -> "EncodedPair":
        """The pair within `max_prompt_length` and `max_length` tokens, itself if it is so.

        Both answers keep the same prompt.
        """
        longest = max(self.answer_lengths.values())
        prompt, answer = kept_lengths(self.prompt_length, longest, source.max_prompt_length, source)
        if (prompt, answer) == (self.prompt_length, longest):
            return self
        prompt_ids = _newest(self.prompt_ids, prompt, keep_first=self.prompt_ids[0] == bos_token_id)
        return EncodedPair(prompt_ids, self.chosen_ids[:answer], self.rejected_ids[:answer])


class EncodedAnswer(NamedTuple):
    """One unpaired row: a prompt, an answer that ends with its end-of-turn token, and whether it is a good one."""

    prompt_ids: list[int]
    answer_ids: list[int]
    label: bool
    mismatched_ids: list[int]
    """The answer of another row, which this prompt is given too (`paft.data.unpaired`); empty before that."""

    @property
    def prompt_length(self) -> int:
        return len(self.prompt_ids)

    @property
    def answer_lengths(self) -> dict[str, int]:
        return {"answer": len(self.answer_ids)}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence that a training step learns from."""
        return [self.row_tokens]

    @property
    def row_tokens(self) -> int:
        """Tokens it puts through the model."""
        return len(self.prompt_ids) + len(self.answer_ids)

    @property
    def num_labels(self) -> int:
        return len(self.answer_ids)

    @property
    def text(self) -> Encoded:
        return Encoded(
            [*self.prompt_ids, *self.answer_ids], [*[IGNORE] * len(self.prompt_ids), *self.answer_ids]
        )

    @property
    def mismatched(self) -> "EncodedAnswer":
        """The prompt with the answer of the other row, of which there is no judgement."""
        return EncodedAnswer(self.prompt_ids, self.mismatched_ids, False, [])

    def fitted(self, source: Source, bos_token_id: int | None) -> "EncodedAnswer":
        """As a pair's `fitted`."""
        answer = len(self.answer_ids)
        kept, length = kept_lengths(self.prompt_length, answer, source.max_prompt_length, source)
        if (kept, length) == (self.prompt_length, answer):
            return self
        prompt_ids = _newest(self.prompt_ids, kept, keep_first=self.prompt_ids[0] == bos_token_id)
        return self._replace(prompt_ids=prompt_ids, answer_ids=self.answer_ids[:length])


def kept_lengths(prompt: int, answer: int, prompt_limit: int, source: Source) -> tuple[int, int]:
    """How many tokens of a prompt (its newest) and of its answer (its first) are kept.

    An answer of up to `max_length - 1` tokens is kept whole, and the prompt loses its oldest tokens, but
    never BOS, until it has at most `prompt_limit` and both together at most `max_length`. A longer answer
    needs `too_long=truncate`: then the prompt keeps up to `max_prompt_length` and the answer fills the rest.
    The limit is `max_prompt_length` for preference pairs and `max_length` for conversations, which are
    therefore kept whole whenever they fit.
    """
    if answer < source.max_length:
        return min(prompt, prompt_limit, source.max_length - answer), answer
    prompt = min(prompt, source.max_prompt_length)
    return prompt, source.max_length - prompt


def _newest(values: list[int], keep: int, *, keep_first: bool) -> list[int]:
    if keep >= len(values):
        return values
    newest = values[len(values) - keep :]
    return values[:1] + newest[1:] if keep_first else newest
