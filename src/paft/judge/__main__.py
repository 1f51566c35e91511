"""AlpacaEval 2 of answers made anywhere.

python -m paft.judge score --outputs FILE --reference FILE --annotations FILE [--data DIR] [--json]
python -m paft.judge run --outputs FILE --reference FILE judge=openai judge.base_url=URL judge.model=NAME

`score` reads judgements that are there, `run` asks a judge first: `train.py --help judge` lists its settings, and
plan=true says what it would ask and at what price.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from paft.config.judge import JUDGES, JudgeConfig
from paft.files.jsonfile import write_json
from paft.judge.judging import annotate, planned
from paft.judge.metrics import length_controlled_rate, mean, win_rate
from paft.judge.outputs import Pair, Row, pairs, read_annotations, read_outputs, refuse_other
from paft.judge.preflight import require_judge

WHY_NOT = "length_controlled_reason"


def main(arguments: list[str] | None = None) -> None:
    """Score, or judge and score; exits with code 2 and a message where it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m paft.judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    score_parser = commands.add_parser("score", help="the figures of judgements that are there")
    run_parser = commands.add_parser("run", help="judge, then score")
    for each in (score_parser, run_parser):
        each.add_argument("--outputs", type=Path, required=True, help="answers: instruction, output")
        each.add_argument("--reference", type=Path, required=True, help="the answers they are compared with")
        each.add_argument("--data", type=Path, help="folder with alpaca-eval's df_gamed.csv; else the hub")
        each.add_argument("--json", action="store_true", help="print one JSON object")
    score_parser.add_argument(
        "--annotations", type=Path, required=True, help="judgements in alpaca-eval's format"
    )
    run_parser.add_argument("--annotations", type=Path, help="where the judgements are written")
    store = "where the judge's answers are kept"
    run_parser.add_argument("--store", type=Path, default=Path("logs/stages"), help=store)
    run_parser.add_argument("words", nargs="+", help="judge=NAME judge.KEY=VALUE ... plan=true")
    given = parser.parse_args(arguments)
    try:
        figures = _score(given) if given.command == "score" else _run(given)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped: answers so far are kept, the same command goes on with the rest\n")
    print(json.dumps(figures, indent=1) if given.json else "\n".join(_lines(figures)))


def _score(given: argparse.Namespace) -> dict[str, Any]:
    reference, answered = _read(given)
    annotations = read_annotations(given.annotations, "--annotations")
    refuse_other(annotations, answered, f"--annotations {given.annotations}")
    return figures_of(reference, answered, annotations, given.data)


def _run(given: argparse.Namespace) -> dict[str, Any]:
    reference, answered = _read(given)
    words = [word for word in given.words if word != "plan=true"]
    config = judge_config(words)
    if len(words) < len(given.words):
        return planned(answered, config, given.store)
    require_judge(config, compares=True)
    names = (
        _generator(reference, "reference"),
        _generator(read_outputs(given.outputs, "--outputs"), "model"),
    )
    judged = annotate(answered, config, given.store, names)
    if given.annotations:
        given.annotations.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.annotations, judged.rows)
    return figures_of(reference, answered, judged.rows, given.data) | judged.counts


def _read(given: argparse.Namespace) -> tuple[dict[str, Row], list[Pair]]:
    reference = read_outputs(given.reference, "--reference")
    return reference, pairs(read_outputs(given.outputs, "--outputs"), reference)


def _generator(rows: dict[str, Row], otherwise: str) -> str:
    return str(next(iter(rows.values())).get("generator") or otherwise)


def figures_of(
    reference: dict[str, Row], answered: Sequence[Pair], annotations: Sequence[Row], data: Path | None
) -> dict[str, Any]:
    """Every figure and count, in percent; where there is no length-controlled rate, one sentence says why."""
    figures = win_rate(annotations)
    figures |= {"length_controlled_winrate": None, "lc_standard_error": None}
    try:
        rates, _ = length_controlled_rate(annotations, data)
        figures |= rates
    except ValueError as error:
        figures[WHY_NOT] = str(error)
    lengths = [len(pair.second) for pair in answered]
    counts = {"instructions": len(reference), "outputs": len(answered), "annotations": len(annotations)}
    return figures | {"avg_length": int(mean(lengths))} | counts


def judge_config(words: Sequence[str]) -> JudgeConfig:
    """The judge of `judge=NAME judge.KEY=VALUE ...`. Raises `ValueError` naming what there is."""
    chosen = [word.removeprefix("judge=") for word in words if word.startswith("judge=")]
    options = [word.removeprefix("judge.") for word in words if word.startswith("judge.")]
    if len(chosen) != 1 or len(chosen) + len(options) < len(words):
        raise ValueError(
            f"give judge=NAME, of {', '.join(JUDGES)}, and judge.KEY=VALUE; got {' '.join(words)}"
        )
    if chosen[0] not in JUDGES:
        raise ValueError(f"judge must be one of {', '.join(JUDGES)}, got {chosen[0]!r:.60}")
    try:
        config = OmegaConf.merge(OmegaConf.structured(JUDGES[chosen[0]]), OmegaConf.from_dotlist(options))
        judge = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"judge.{getattr(error, 'full_key', '')}: {first}") from None
    assert isinstance(judge, JudgeConfig)
    return judge


def _lines(figures: dict[str, Any]) -> list[str]:
    width = max(map(len, figures))
    return [f"{name:{width}}  {_text(value)}" for name, value in figures.items() if value is not None]


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
