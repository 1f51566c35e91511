"""The plan as a table: every stage with key, hit or miss, and what running it takes."""

from collections.abc import Iterable
from dataclasses import fields

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from paft.config import PreferenceConfig, RunConfig
from paft.config.judge import JUDGES
from paft.cost.device_memory import memory_limit
from paft.graph import soup
from paft.graph.configs import BranchStage, SoupStage, TakenStage
from paft.graph.stage import Stage, canonical
from paft.plan.estimate import Estimate, Figure
from paft.plan.judged import CellEstimator
from paft.plan.precedents import Precedents
from paft.proof.record import describe as describe_base
from paft.proof.record import device_of, known, proof_file
from paft.store.store import Store

WIDTH = 110
"""Columns of a table that is not printed to a terminal."""
COSTS = ("FLOPs", "tokens", "time", "memory")
CERTAIN = "certain: steps, shapes and FLOPs per token, and the tokens of finished data stages"
Planned = tuple[Stage, RunConfig]


def show_plan(cells: list[tuple[RunConfig, Stage]]) -> None:
    """Print every stage of the cells once, inputs first, and what running the missing ones would take."""
    first, _ = cells[0]
    store = Store(first.store, verify=False)
    needed = {s.key for _, cell in cells for s in store.missing(cell)}
    stages = {s.key: (s, config) for config, cell in cells for s in cell.walk()}
    estimates = estimate({key: planned for key, planned in stages.items() if key in needed}, store)
    title = f"{len(cells)} cell{'s' * (len(cells) > 1)}, store {first.store}, hardware {first.hardware.name}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "key", "state", *COSTS, "what"):
        side: JustifyMethod = "right" if column in COSTS else "left"
        table.add_column(column, no_wrap=column != "what", overflow="fold", justify=side)
    for key, (stage, _) in stages.items():
        state = "miss" if key in needed else "hit" if store.complete(stage) else "not needed"
        table.add_row(stage.name, key, state, *shown(estimates.get(key)), describe(stage))
    console = Console()
    Console(width=None if console.is_terminal else max(WIDTH, console.width)).print(table)
    print_summary(stages, estimates)
    print_bases([planned for key, planned in stages.items() if key in needed])


def print_bases(missing: Iterable[Planned]) -> None:
    """How each base that is to be run will be run, or that it has to be found out."""
    bases = {
        proof_file(stage.config.model, device): (stage.config.model, device)
        for stage, config in missing
        if stage.kind.runs_base and (device := device_of(config.trainer))
    }
    for model, device in bases.values():
        print(f"base: {describe_base(model, known(model, device))}")


def estimate(planned: dict[str, Planned], store: Store) -> dict[str, Estimate]:
    """Key -> estimate of each stage, under the config of a cell that needs it."""
    configs = {config.hardware.name: config.hardware for _, config in planned.values()}
    past = {name: Precedents.read(store.root, hardware) for name, hardware in configs.items()}
    return {
        key: CellEstimator(config, store, past[config.hardware.name])(stage)
        for key, (stage, config) in planned.items()
    }


def print_summary(stages: dict[str, Planned], estimates: dict[str, Estimate]) -> None:
    """Totals, what they rest on, and which stages do not fit their device."""
    estimated = list(estimates.values())
    seconds, flops = (total(getattr(e, name) for e in estimated) for name in ("seconds", "flops"))
    unknown = sum(e.seconds is None for e in estimated)
    text = f"{len(estimated)} of {len(stages)} stages to run"
    if estimated:
        text += f": {duration(seconds)} one after another, {si(flops)}FLOP"
    if any(e.devices > 1 for e in estimated):
        hours = sum(e.seconds.value * e.devices for e in estimated if e.seconds) / 3600
        text += f", {mark(seconds)}{hours:.3g} device hours"
    if any(e.usd for e in estimated):
        usd = total(e.usd for e in estimated)
        text += f", {mark(usd)}{usd.value:.2f} USD"
    print(text + (f", and {unknown} of unknown duration" if unknown else ""))
    if estimated:
        print(CERTAIN)
    for title, sentences in (
        ("measured on this store", (s for e in estimated for s in e.measured)),
        ("assumed (~)", (s for e in estimated for s in e.assumed)),
    ):
        if unique := list(dict.fromkeys(sentences)):
            print(f"{title}:", *unique, sep="\n  ")
    for key, each in estimates.items():
        warn_if_too_large(*stages[key], each)


def warn_if_too_large(stage: Stage, config: RunConfig, estimate: Estimate) -> None:
    limit = memory_limit(config.hardware)
    if estimate.memory is not None and estimate.memory.value > limit:
        print(
            f"warning: {stage} needs about {estimate.memory.value / 1e9:.0f} GB on a device, {config.hardware.name} "
            f"has {limit / 1e9:.0f}: lower trainer.micro_batch_size, set trainer.gradient_checkpointing=true "
            "or strategy=fsdp"
        )


# --- words -------------------------------------------------------------------------------------------


def total(figures: Iterable[Figure | None]) -> Figure:
    known = [f for f in figures if f is not None]
    return Figure(sum(f.value for f in known), any(f.assumed for f in known))


def shown(estimate: Estimate | None) -> list[str]:
    """The four cost cells of a row; a question mark for a missing stage of unknown duration."""
    if estimate is None:
        return [""] * len(COSTS)
    memory = estimate.memory and f"{mark(estimate.memory)}{estimate.memory.value / 1e9:.1f} GB"
    return [
        si(estimate.flops) if estimate.flops else "",
        si(estimate.tokens) if estimate.tokens else "",
        duration(estimate.seconds) if estimate.seconds else "?",
        memory or "",
    ]


def mark(figure: Figure) -> str:
    return "~" if figure.assumed else ""


def si(figure: Figure) -> str:
    """Three digits and a prefix: `~1.23 P`."""
    value, prefixes = figure.value, " kMGTPEZ"
    while value >= 999.5 and len(prefixes) > 1:
        value, prefixes = value / 1000, prefixes[1:]
    return f"{mark(figure)}{value:.3g} {prefixes[0]}".rstrip()


def duration(figure: Figure) -> str:
    for seconds, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if figure.value >= 2 * seconds:
            return f"{mark(figure)}{figure.value / seconds:.3g} {unit}"
    return f"{mark(figure)}{figure.value:.0f} s"


def own_options(objective: PreferenceConfig) -> list[str]:
    """`name=value` of what a preference objective has beside what all of them have."""
    shared = {f.name for f in fields(PreferenceConfig)}
    values = {name: value for name, value in canonical(objective).items() if name not in {*shared, "type"}}
    return [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    ]


def trained(stage: Stage[BranchStage]) -> str:
    """The base, and that all of its weights are trained if they are."""
    return stage.config.model.title + (", tuning=full" if stage.config.branch.is_full else "")


def describe(stage: Stage) -> str:
    """One line a person can tell stages apart by."""
    config = stage.identity["config"]
    if isinstance(stage.config, TakenStage):
        content = stage.config.hub.partition("@")[2] or stage.config.sha256
        return f"taken: {stage.config.title}, {stage.config.kind.value} {content[:8]} of {stage.config.model.title}"
    if isinstance(stage.config, SoupStage):
        return soup.title(stage)
    match stage.name:
        case "data":
            source = config["source"]
            label = source.get("skill") or source.get("repo") or "file"
            return f"{config['branch']} rows of {label}, template {config['template']}"
        case "sft":
            branch = stage.config.branch
            return f"{trained(stage)}, lambda={branch.l1.weight:g}, lr={branch.lr:g}"
        case "preference":
            branch = stage.config.branch
            return f"{trained(stage)}, {' '.join([branch.title, *own_options(branch)])}, lr={branch.lr:g}"
        case "reference":
            only = config.get("only")
            row = "row" if stage.inputs["data"].config.unpaired else "pair"
            rows = f"{only['max_steps'] * only['global_batch_size']:,} {row}s" if only else f"every {row}"
            return f"{stage.config.model.title}, log-probabilities of {rows}"
        case "statistics":
            return f"{config['statistic']} of {config['num_rows']} {config['branch']} rows, {stage.config.model.title}"
        case "coefficients":
            return f"{config['steps']} steps on {config['num_rows']} rows of each branch, {stage.config.model.title}"
        case "merge":
            method = {k: v for k, v in config["method"].items() if k != "type" and v is not None}
            return " ".join([config["method"]["type"], *(f"{k}={v}" for k, v in method.items())])
        case "generate":
            tokens = stage.config.sampling.max_new_tokens
            return f"{stage.config.model.title}, answers of at most {tokens:,} tokens"
        case "judge":
            judge = stage.config.judge
            name = next(name for name, kind in JUDGES.items() if type(judge) is kind)
            return " ".join(filter(None, (f"judge={name}", getattr(judge, "model", ""))))
        case _:
            return f"{stage.config.model.title} on {', '.join(config['evaluate']['tasks'])}"
