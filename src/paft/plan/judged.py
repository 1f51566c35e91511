"""What a judged evaluation takes: tokens to be written, calls of a judge and their price. All of it assumed."""

from dataclasses import dataclass, replace

from paft.config import JudgedConfig, ModelShape, OpenAIJudge
from paft.config.judged import MTBenchQuestions, Questions, Reference
from paft.cost.flops_and_bytes import Batch, forward_flops, forward_memory, item_bytes, parameters
from paft.cost.work import sequence_work
from paft.graph.configs import GreedySoupStage
from paft.graph.stage import Stage
from paft.judge.judging import usd
from paft.judge.questions import read_questions
from paft.plan.estimate import EVALUATION_BATCH, STEP_SECONDS, Estimate, Estimator, Figure
from paft.plan.measured import bytes_of, flops_of
from paft.plan.rows import length_factor
from paft.plan.speed import STARTUP_SECONDS, Batches


@dataclass(frozen=True)
class Size:
    """Conversations, their turns, tokens of a turn's prompt and answer, and of a call of the judge and its answer."""

    items: int
    turns: int
    prompt: float
    answer: float
    call: float
    judgement: float


ALPACA_EVAL = Size(805, 1, 45, 350, 924, 1)
"""A call has 924 tokens in the public judgements: 885 of phi-2, 963 of gemma-2b-it."""
MT_BENCH = Size(80, 2, 90, 300, 1_000, 250)
CALL_SECONDS, TOKENS_PER_SECOND = 1.0, 50.0
"""Of a call up to its first token, and of the others."""


def size_of(questions: Questions) -> Size:
    """What is usual, and as many conversations as there are in files on this disk."""
    size = MT_BENCH if isinstance(questions, MTBenchQuestions) else ALPACA_EVAL
    if isinstance(questions, Reference) and questions.file is None:
        return size
    return replace(size, items=len(read_questions(questions)))


class CellEstimator(Estimator):
    """`Estimator`, also of the stages around a judge, and of those that measure on rows for a merge or a soup."""

    def __call__(self, stage: Stage) -> Estimate:
        if stage.name == "judge":
            return self.judgement(stage)
        if stage.name == "evaluate" and isinstance(stage.config.evaluate, JudgedConfig):
            return Estimate(seconds=Figure(STARTUP_SECONDS["judge"], True))
        return super().__call__(stage)

    def other(self, stage: Stage, shape: ModelShape) -> Estimate:
        if isinstance(stage.config, GreedySoupStage):
            return self.measuring(stage, shape)
        match stage.name:
            case "generate":
                return self.generation(stage, shape)
            case "statistics" | "coefficients":
                return self.measuring(stage, shape)
        return super().other(stage, shape)

    def measuring(self, stage: Stage, shape: ModelShape) -> Estimate:
        """Passes over a few rows for a merge or a soup that looks at data."""
        flops, rows = flops_of(stage, shape, self.store)
        tokens = rows.prompt + rows.answer
        speed = self.speed(stage, Batches(tokens, tokens))
        return replace(
            self.estimate(stage, rows, 1, (0.0, flops), speed, bytes_of(stage, shape, self.hardware)),
            tokens=None,
        )

    def generation(self, stage: Stage, shape: ModelShape) -> Estimate:
        """Prompts at the device's rate; each written token of a batch also reads all weights."""
        config, model = stage.config, stage.config.model
        size, factor = size_of(config.questions), length_factor(model)
        items = min(size.items, config.limit or size.items) * size.turns
        prompt = factor * size.prompt
        written = min(factor * size.answer, config.sampling.max_new_tokens)
        work = (sequence_work(prompt, 0) + sequence_work(written, written, past=prompt)) * items
        speed = self.speed(stage, Batches(EVALUATION_BATCH, EVALUATION_BATCH))
        step = STEP_SECONDS + parameters(shape) * item_bytes(model, self.hardware) / (
            1e9 * self.hardware.bandwidth_gb_s
        )
        flops = forward_flops(shape, work)
        seconds = flops / speed.forward + items / min(config.at_once, items) * written * step
        batch = Batch(config.at_once * (prompt + written), prompt + written)
        memory = forward_memory(shape, batch, item_bytes=item_bytes(model, self.hardware)) + self.runtime
        return Estimate(
            Figure(work.tokens, True),
            Figure(flops, True),
            Figure(seconds + speed.startup, True),
            Figure(memory, True),
            1,
            speed.measured,
            (f"generate: {items} answers of {written:.0f} tokens", *speed.assumed),
        )

    def judgement(self, stage: Stage) -> Estimate:
        """Calls, their tokens and their price. Answers that are kept already are not asked for, and not known here."""
        judge, size = stage.config.judge, size_of(stage.config.questions)
        calls = min(size.items, stage.inputs["answers"].config.limit or size.items) * size.turns
        each = CALL_SECONDS + size.judgement / TOKENS_PER_SECOND
        if not isinstance(judge, OpenAIJudge):
            return Estimate(seconds=Figure(calls * each, True))
        seconds = calls * each / judge.concurrency
        if judge.requests_per_minute:
            seconds = max(seconds, 60 * calls / judge.requests_per_minute)
        tokens = size.call * calls
        price = usd(judge, tokens, size.judgement * calls)
        cost = "price unknown: judge.input_price, judge.output_price" if price is None else f"{price:.2f} USD"
        said = f"judge: {calls} calls of {judge.model} with {size.call:.0f} tokens each, {cost}"
        paid = None if price is None else Figure(price, True)
        return Estimate(Figure(tokens, True), seconds=Figure(seconds, True), assumed=(said,), usd=paid)
