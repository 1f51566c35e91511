"""What a judged evaluation takes: tokens to be written, calls of a judge and their price. All of it assumed."""

from paft.config import JudgedConfig, ModelShape, OpenAIJudge
from paft.cost.flops_and_bytes import Batch, forward_flops, forward_memory, item_bytes, parameters
from paft.cost.work import sequence_work
from paft.graph.stage import Stage
from paft.judge.judging import usd
from paft.plan.estimate import EVALUATION_BATCH, STEP_SECONDS, Estimate, Estimator, Figure
from paft.plan.rows import length_factor
from paft.plan.speed import STARTUP_SECONDS, Batches

INSTRUCTIONS = 805
"""Of AlpacaEval; another reference's are counted when it is read."""
INSTRUCTION_TOKENS, ANSWER_TOKENS = 45, 350
"""Of a mean instruction, and of a mean answer where its limit is no lower."""
CALL_TOKENS = 924
"""Of a mean prompt of AlpacaEval 2's judge: over the public judgements of phi-2 and gemma-2b-it 885 and 963."""
CALL_SECONDS = 1.0
"""From a call to its answer of one token."""


class CellEstimator(Estimator):
    """`Estimator`, also of the stages around a judge."""

    def __call__(self, stage: Stage) -> Estimate:
        match stage.name:
            case "judge":
                return self.judgement(stage)
            case "evaluate" if isinstance(stage.config.evaluate, JudgedConfig):
                return Estimate(seconds=Figure(STARTUP_SECONDS["judge"], True))
        return super().__call__(stage)

    def other(self, stage: Stage, shape: ModelShape) -> Estimate:
        return self.generation(stage, shape) if stage.name == "generate" else super().other(stage, shape)

    def generation(self, stage: Stage, shape: ModelShape) -> Estimate:
        """Prompts at the device's rate; each written token of a batch also reads all weights."""
        config, model, factor = stage.config, stage.config.model, length_factor(stage.config.model)
        items = min(INSTRUCTIONS, config.limit or INSTRUCTIONS)
        prompt = factor * INSTRUCTION_TOKENS
        written = min(factor * ANSWER_TOKENS, config.sampling.max_new_tokens)
        work = (sequence_work(prompt, 0) + sequence_work(written, written, past=prompt)) * items
        speed = self.speed(stage, Batches(EVALUATION_BATCH, EVALUATION_BATCH))
        step = STEP_SECONDS + parameters(shape) * item_bytes(model) / (1e9 * self.hardware.bandwidth_gb_s)
        flops = forward_flops(shape, work)
        seconds = (
            flops / speed.forward + items / min(config.batch_size, items) * written * step + speed.startup
        )
        memory = forward_memory(
            shape,
            Batch(config.batch_size * (prompt + written), prompt + written),
            item_bytes=item_bytes(model),
        )
        assumed = (f"generate: {items} answers of {written:.0f} tokens", *speed.assumed)
        figures = Figure(work.tokens, True), Figure(flops, True), Figure(seconds, True)
        return Estimate(*figures, Figure(memory + self.runtime), 1, speed.measured, assumed)

    def judgement(self, stage: Stage) -> Estimate:
        """Calls, their tokens and their price; answers that are kept already are not asked for."""
        judge, limit = stage.config.judge, stage.inputs["answers"].config.limit
        calls = min(INSTRUCTIONS, limit or INSTRUCTIONS)
        if not isinstance(judge, OpenAIJudge):
            return Estimate(seconds=Figure(calls * CALL_SECONDS, True))
        tokens = CALL_TOKENS * calls
        seconds = calls * CALL_SECONDS / judge.concurrency
        if judge.requests_per_minute:
            seconds = max(seconds, 60 * calls / judge.requests_per_minute)
        price = usd(judge, tokens, calls)
        said = f"judge: {calls} calls of {judge.model}, {tokens / 1e6:.2g} M tokens" + (
            "" if price is None else f", {price:.2f} USD at {judge.input_price:g} USD a million"
        )
        return Estimate(Figure(tokens, True), seconds=Figure(seconds, True), assumed=(said,))
