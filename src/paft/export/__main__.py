"""A finished cell as a Hugging Face folder with a model card.

    python -m paft.export merge=ties lambda=1e-4 --to DIR [--push USER/NAME] [--gguf]

The words are those that train.py made the cell with. The folder holds weights, tokenizer, chat template, generation
settings and a README.md made from the store: base, data, recipe, scores, command, keys, licence. A model that
merge.keep=false has deleted is merged again.
"""

import argparse
from pathlib import Path

from paft.command.finished import FinishedCell, finished_cell
from paft.command.words import train_command
from paft.export.card import Card
from paft.export.folder import copy_legal, copy_model, licence_of
from paft.export.gguf import convert, converter
from paft.export.push import push, refuse_unpushable
from paft.files.appearing import appearing
from paft.files.jsonfile import read_object
from paft.report.build import Report

PLACES = ("logs=", "store=")
"""Words of a command that change no result, and that a card of the public does not tell."""


def main(arguments: list[str] | None = None) -> None:
    """Parse, export, say what was written; exits with code 2 and a message where it cannot be done."""
    parser = _parser()
    given = parser.parse_intermixed_args(arguments)
    try:
        script = converter() if given.gguf else None
        if given.push:
            refuse_unpushable(given.push)
        cell = finished_cell(given.words)
        if "model" not in cell.stage.inputs:
            raise ValueError(
                "paradigm=base has no model of its own to export; its base is where it came from"
            )
        cell.require_scores()
        write(cell, given.to, script, given.push)
        print(f"{given.to}: {', '.join(sorted(path.name for path in given.to.iterdir()))}")
        if given.push:
            print(f"pushed to {push(given.to, given.push, public=given.public)}")
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m paft.export", description=__doc__, formatter_class=raw)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="of the cell, as train.py takes them")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--push",
        metavar="USER/NAME",
        help="also upload it to the Hugging Face hub, with the token in HF_TOKEN",
    )
    parser.add_argument("--public", action="store_true", help="of a new repository; it is private otherwise")
    parser.add_argument("--gguf", action="store_true", help="also model.gguf, by llama.cpp's converter")
    return parser


def write(cell: FinishedCell, to: Path, script: Path | None = None, repo: str | None = None) -> None:
    """Write the folder, whole or not at all; with llama.cpp's `script` also as GGUF. `repo` is where it goes to."""
    with appearing(to) as out, cell.model() as merged:
        copy_model(merged, out)
        copy_legal(cell.base, out)
        card = card_of(cell, repo or to.name, is_adapter=(merged / "adapter").is_dir())
        (out / "README.md").write_text(card, encoding="utf-8")
        if script is not None:
            convert(script, out)


def card_of(cell: FinishedCell, place: str, *, is_adapter: bool) -> str:
    """The README.md of a cell."""
    folder, model = cell.require_scores(), cell.config.model
    shown = [r for _, block in Report(cell.store.root).of_run({cell.stage.key}) for r in block]
    (own,) = (r for r in shown if r.paradigm != "base")
    return Card(
        cell=cell.stage,
        row=own,
        base=next((r for r in shown if r.paradigm == "base"), None),
        merge=read_object(folder / "merge.json"),
        record=read_object(folder / "stage.json"),
        command=train_command(word for word in cell.words if not word.startswith(PLACES)),
        licence=licence_of(model, cell.base, offline=cell.config.offline),
        place=place,
        is_adapter=is_adapter,
    ).text()


if __name__ == "__main__":
    main()
