"""Whose tokenizer the model of a recipe gets, where mergekit would keep every row of the embedding as it is."""

from pathlib import Path

from paft.chat.vocabulary import vocabulary_of
from paft.files.jsonfile import read_object
from paft.merge.mergekit.recipe import Recipe
from paft.merge.mergekit.reference import Reference


def tokenizer_of(recipe: Recipe, root: Path) -> Path | None:
    """The folder whose tokenizer goes out; None: that of `root`, which is rewritten.

    Raises `ValueError` where mergekit would cut, fill or reorder embeddings for the tokenizer that is asked for.
    """
    if recipe.tokenizer is None:
        return None
    if recipe.tokenizer == "base" and recipe.base is None:
        raise ValueError("tokenizer_source=base needs a base_model")
    named = recipe.tokenizer not in ("base", "union")
    source = Reference.parse(recipe.tokenizer).model.folder() if named else root
    folders = dict.fromkeys([root, source, *(model.model.folder() for model in recipe.models)])
    vocabularies = [vocabulary_of(folder / "tokenizer.json") for folder in folders]
    rows = read_object(root / "config.json").get("vocab_size")
    if any(vocabulary != vocabularies[0] for vocabulary in vocabularies) or rows != len(vocabularies[0]):
        raise ValueError(
            f"tokenizer_source={recipe.tokenizer} would change the embedding: it has {rows} rows, the tokenizers have "
            f"{', '.join(str(len(vocabulary)) for vocabulary in vocabularies)} tokens; merges here keep it as it is: "
            "leave tokenizer_source out"
        )
    return source if named else None
