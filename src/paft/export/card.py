"""The model card of a cell, out of what its store knows: nothing in it is from anywhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from paft.config import HubModel, HubSource
from paft.graph import soup
from paft.graph.configs import BranchStage, DataStage, SoupStage, TakenStage
from paft.graph.stage import Stage
from paft.graph.stages import TRAINED
from paft.report.columns import score_columns
from paft.report.labels import method, section
from paft.report.numbers import DASH, plain_text, short
from paft.report.render import escaped, markdown
from paft.report.row import Row
from paft.report.tables import Head, plain_table

BRANCHES = {"sft": "SFT", "preference": "preference"}


@dataclass(frozen=True)
class Card:
    """What a card is made from."""

    cell: Stage
    """The evaluate stage."""
    row: Row
    """Of the report."""
    base: Row | None
    """The row of the base on the same items, where the store has one."""
    merge: Mapping[str, Any]
    """merge.json"""
    record: Mapping[str, Any]
    """stage.json of the evaluation."""
    command: str
    licence: str | None
    """As the base states it."""
    place: str
    """What the folder is loaded by."""
    is_adapter: bool

    def text(self) -> str:
        """The whole README.md."""
        parts = [
            f"---\n{self.front_matter().to_yaml()}\n---",
            f"# {escaped(self.title)}",
            escaped(self.about()),
        ]
        sections = {
            "Use": self.use(),
            "Scores": self.scores(),
            "Recipe": self.recipe(),
            "Made by": self.made_by(),
            "Licence": self.licence_line(),
        }
        parts += [f"## {heading}\n\n{body}" for heading, body in sections.items()]
        return "\n\n".join(parts) + "\n"

    @property
    def title(self) -> str:
        weight = f", lambda {short(self.row.weight)}" if self.row.weight else ""
        return f"{self.row.base}: {section(self.row)}, {method(self.row)}{weight}"

    def front_matter(self) -> ModelCardData:
        model = self.cell.config.model
        sources = [s.config.source for s in self.cell.walk() if isinstance(s.config, DataStage)]
        data = sorted({source.repo for source in sources if isinstance(source, HubSource)})
        kinds = [
            "merge",
            *([] if all(map(_is_full, self.branches.values())) else ["lora"]),
            self.row.merge,
            *(["sft"] if self.row["sft_key"] else []),
            self.row.preference,
        ]
        return ModelCardData(
            base_model=model.repo if isinstance(model, HubModel) else None,
            license=self.licence or "other",
            library_name="peft" if self.is_adapter else "transformers",
            pipeline_tag="text-generation",
            datasets=data or None,
            tags=list(dict.fromkeys(["paft", *filter(None, kinds)])),
        )

    def about(self) -> str:
        branches = [f"{'an' if name == 'sft' else 'a'} {BRANCHES[name]} delta" for name in self.branches]
        trained = " and ".join(branches)
        how = f" merged by {method(self.row)}" if self.row.merged else " added up" * (len(branches) > 1)
        what = "One LoRA adapter" if self.is_adapter else "A model"
        return f"{what} of {self.row.base} with {trained}{how}."

    def use(self) -> str:
        if self.is_adapter:
            rank, error = self.merge.get("rank"), self.merge.get("adapter_error")
            lines = [
                "```python",
                "from peft import AutoPeftModelForCausalLM",
                f'model = AutoPeftModelForCausalLM.from_pretrained("{self.place}")',
                "```",
                "",
                f"Rank {rank} in every layer; it lacks {100 * float(error or 0):.2g} % of the merged delta's norm.",
            ]
            return "\n".join(lines)
        lines = [
            "```python",
            "from transformers import pipeline",
            f'answer = pipeline("text-generation", "{self.place}")',
            'answer([{"role": "user", "content": "..."}])',
            "```",
            "",
            f"The chat template ({self.cell.config.template.value}) and the ends of a turn are in the folder.",
        ]
        return "\n".join(lines)

    def scores(self) -> str:
        """A line for each column, ± its standard error, beside the base's where it is known."""
        columns = score_columns([self.row])
        heads = ["column", "this model", *(["its base"] if self.base else [])]
        lines = [
            [
                f"{column.title}{' (%)' if column.percent else ''}",
                column.written(self.row),
                *([column.written(self.base)] if self.base else []),
            ]
            for column in columns
        ]
        unknown = (
            "; ? where nothing shows it" if any(" ± ?" in text for line in lines for text in line) else ""
        )
        limit = f", the first {self.row['limit']} items of each task" if self.row["limit"] else ""
        said = f"`{self.row['evaluate']}`{limit}, by lm-eval; ± one standard error over items{unknown}."
        return "\n\n".join([table(heads, lines), said])

    @property
    def branches(self) -> dict[str, Stage]:
        """The trainings, and what was taken in place of one."""
        return {stage.name: stage for stage in self.cell.walk() if stage.name in TRAINED}

    def recipe(self) -> str:
        facts = {name: _facts(stage) for name, stage in self.branches.items()}
        keys = list(dict.fromkeys(key for of in facts.values() for key in of))
        lines = [[key, *(of.get(key, DASH) for of in facts.values())] for key in keys]
        rows = {name: self.row[f"{name}_data"] for name in facts if self.row[f"{name}_data"]}
        data = [f"{BRANCHES[name]} data: {escaped(said)}" for name, said in rows.items()]
        merge = f"Merge: {escaped(self.merge.get('variant', DASH))}"
        return "\n\n".join(
            [table(["", *(BRANCHES[name] for name in facts)], lines), *data, merge, *self.proved()]
        )

    def proved(self) -> list[str]:
        """What reading the folder back has shown."""
        proof = self.merge.get("proof") or {}
        if "max_logit_difference" not in proof:
            return []
        costs = {"its type": "rounding_logit_difference", "its rank": "rank_logit_difference"}
        said = [
            f"{what} costs up to {proof[key]:.2g}"
            for what, key in costs.items()
            if proof.get(key) is not None
        ]
        changes = f"the merge changes them by up to {proof['logit_change']:.2g}"
        return [
            f"Read back, its logits on random tokens are within {proof['max_logit_difference']:.1e} of the merged "
            f"weights' (bound {proof['bound']:.1e}); {'; '.join([*said, changes])}."
        ]

    def made_by(self) -> str:
        run = self.record["run"]
        commit = (run.get("git") or {}).get("commit") or "unknown"
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
        keys = [[stage.name, stage.key] for stage in self.cell.walk()]
        said = f"    {self.command}\n\nwith PAFT at commit {commit}; {versions}."
        return "\n\n".join([said, table(["stage", "key"], keys)])

    def licence_line(self) -> str:
        if self.licence:
            return f"That of the base, which states {self.licence}."
        return (
            f"That of the base, {self.row.base}, whose files do not state one: look at where it comes from."
        )


def _is_full(stage: Stage) -> bool:
    return isinstance(stage.config, BranchStage) and stage.config.branch.is_full


def _facts(stage: Stage) -> dict[str, str]:
    config = stage.config
    if isinstance(config, TakenStage):
        return {"taken": config.title, "sha256": config.sha256[:16] or DASH}
    if isinstance(config, SoupStage):
        return {**_facts(soup.members(stage)["0"]), **soup.varied(stage), "soup": soup.title(stage)}
    assert isinstance(config, BranchStage)
    branch: Any = config.branch
    lora = None if branch.is_full else branch.lora
    length = {"steps": branch.max_steps} if branch.max_steps else {"epochs": branch.epochs}
    facts = {
        "objective": getattr(branch, "title", "") or "SFT",
        "learning rate": branch.lr,
        **length,
        "rows a step": branch.global_batch_size,
        "tuning": "all weights" if branch.is_full else None,
        "LoRA rank": lora and lora.rank,
        "LoRA alpha": lora and lora.alpha,
        "beta": getattr(branch, "beta", None),
        "lambda": branch.l1.weight if stage.name == "sft" else None,
        "seed": config.seed,
    }
    return {name: plain_text(value) for name, value in facts.items() if value is not None}


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return markdown(plain_table([Head(head, numeric=False) for head in heads], lines), align=False)
