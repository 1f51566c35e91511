"""What an evaluation asks of a model: how many items each task has and how long they are. All of it assumed.

Items are those of lm-eval 0.4.13; lengths of PAFT's own tasks are counted with SmolLM2's tokenizer, the others are
rounded means of the leaderboard's few-shot prompts with a Llama-like one. The tiny model reads bytes.
"""

from dataclasses import dataclass

from paft.config import EvaluateConfig, ModelConfig, ModelShape, RunConfig
from paft.cost.flops_and_bytes import Batch, item_bytes
from paft.cost.work import Work, sequence_work
from paft.forward.limits import limits
from paft.plan.rows import length_factor
from paft.proof.record import device_of


@dataclass(frozen=True)
class TaskSize:
    """Items, and of each item: tokens forwarded for it alone, labels, tokens generated.

    What its answers begin with is forwarded once, and `past` tokens of examples once for all items; `parts` are the
    subtasks of a group, each with a limit of its own.
    """

    items: int
    tokens: float
    labels: float
    generated: float = 0.0
    past: float = 0.0
    parts: int = 1


TASKS = {
    "paft_tool_call": TaskSize(200, 24, 0, generated=25),
    "paft_honesty": TaskSize(200, 52, 24),
    "paft_mmlu_dev": TaskSize(282, 185, 90),
    "paft_gsm8k_choice": TaskSize(248, 170, 14),
    "paft_gsm8k": TaskSize(256, 69, 0, generated=122),
    "paft_preference": TaskSize(256, 205, 77),
    "arc_challenge": TaskSize(1_172, 1_200, 32),
    "hellaswag": TaskSize(10_042, 1_070, 120),
    "mmlu": TaskSize(14_042, 110, 4, past=600, parts=57),
    "truthfulqa_mc2": TaskSize(817, 120, 100, past=150),
    "winogrande": TaskSize(1_267, 180, 12),
    "gsm8k": TaskSize(1_319, 1_000, 0, generated=128),
    "piqa": TaskSize(1_838, 60, 40),
    "ifeval": TaskSize(541, 55, 0, generated=400),
    "leaderboard_ifeval": TaskSize(541, 55, 0, generated=400),
    "leaderboard_bbh": TaskSize(5_761, 130, 20, past=700, parts=24),
    "leaderboard_math_hard": TaskSize(1_324, 900, 0, generated=400, parts=7),
    "leaderboard_gpqa": TaskSize(1_192, 300, 12, parts=3),
    "leaderboard_musr": TaskSize(756, 1_200, 20, parts=3),
    "leaderboard_mmlu_pro": TaskSize(12_032, 250, 10, past=1_200),
}
ZERO_SHOT = {"arc_challenge": TaskSize(1_172, 64, 25), "hellaswag": TaskSize(10_042, 96, 56)}
"""Without the leaderboard's examples."""
UNKNOWN = TaskSize(1_000, 300, 60)


@dataclass(frozen=True)
class Scoring:
    """What all columns of a table take together, and the decoding steps among it, which come one after another."""

    work: Work
    steps: float


def scoring(config: EvaluateConfig, model: ModelConfig) -> Scoring:
    """Columns that read off the same task with the same number of shots are scored once."""
    work, steps, factor = Work(), 0.0, length_factor(model)
    for task, shots, rows, num_items in dict.fromkeys(
        (t.task, t.num_fewshot, t.rows, t.num_items) for t in config.tasks.values()
    ):
        size = (ZERO_SHOT if shots == 0 else TASKS).get(task) or TASKS.get(task, UNKNOWN)
        there = num_items if rows and num_items else size.items  # so many are held out as are asked for
        items = min(there, num_items or there, (config.limit or there) * size.parts)
        tokens, labels, generated, past = (
            factor * n for n in (size.tokens, size.labels, size.generated, size.past)
        )
        scored = sequence_work(tokens, labels, past=past)
        written = sequence_work(generated, generated, past=past + tokens)
        work += (scored + written) * items
        steps += items / min(config.generation_batch_size or config.batch_size, items) * generated
    return Scoring(work, steps)


def scored_at_once(
    config: RunConfig, shape: ModelShape, model: ModelConfig, *, free: float, most: float
) -> Batch:
    """The largest batch of an evaluation of `most` tokens, with `free` bytes beside the weights."""
    device, size = device_of(config.trainer), config.evaluate.batch_size
    room = limits(device, size, shape, free=free, item_bytes=item_bytes(model, config.hardware))
    longest = min(room.tokens, room.held)
    return Batch(min(longest, most), longest)
