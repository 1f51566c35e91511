"""What a judged evaluation needs, asked before the first stage of its cell runs."""

from collections.abc import Iterable

from paft.config import AlpacaEvalConfig, JudgedConfig, RunConfig
from paft.graph.stage import Stage


def require_judged_cell(config: RunConfig, missing: Iterable[Stage]) -> None:
    """Raise `ValueError` for what the `missing` stages of a judged evaluation would fail of; nothing of another."""
    evaluate, names = config.evaluate, {stage.name for stage in missing}
    if not isinstance(evaluate, JudgedConfig):
        return
    assert config.judge is not None, "the config refuses such an evaluation without a judge"
    from paft.judge.preflight import require_judge, require_judged, require_room

    if "judge" in names:
        require_judge(config.judge, compares=isinstance(evaluate, AlpacaEvalConfig))
    if "evaluate" in names:
        require_judged(evaluate, offline=config.offline)
    if "generate" in names:  # last, as it may fetch the base
        from paft.chat.limits import max_positions
        from paft.model.base import base_folder

        folder = base_folder(config.model, offline=config.offline)
        require_room(evaluate, max_positions(folder), config.model.title)
