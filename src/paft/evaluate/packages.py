"""Packages that some of lm-eval's tasks need and PAFT does not, asked for before a model is loaded."""

from collections.abc import Iterable
from importlib.util import find_spec

NEEDS = {
    "ifeval": ("langdetect", "immutabledict", "nltk"),
    "leaderboard_ifeval": ("langdetect", "immutabledict", "nltk"),
    "leaderboard_math_": ("math_verify", "latex2sympy2_extended", "sympy"),
}
"""How names of tasks begin -> modules that they import."""
PACKAGES = {"math_verify": "'math-verify[antlr4_9_3]'", "latex2sympy2_extended": "'math-verify[antlr4_9_3]'"}
"""Module -> what pip installs it as, where that is not its name. Hydra needs ANTLR 4.9."""
SENTENCES = "tokenizers/punkt_tab"
"""What IFEval counts sentences with: data of nltk, which is fetched when it is first used."""


def require_packages(names: Iterable[str]) -> None:
    """Raise `ValueError` with the line that installs what tasks of these names lack."""
    needed = {name: modules for name in names for start, modules in NEEDS.items() if name.startswith(start)}
    for name, modules in needed.items():
        if missing := [module for module in modules if find_spec(module) is None]:
            install = " ".join(dict.fromkeys(PACKAGES.get(module, module) for module in missing))
            raise ValueError(
                f"lm-eval's task {name} needs {', '.join(missing)}, which this machine lacks; pip install {install}"
            )
    if any("nltk" in modules for modules in needed.values()):
        _require_sentences()


def _require_sentences() -> None:
    """Fetch nltk's data as lm-eval would, and refuse to go on without, as it would not."""
    import nltk

    try:
        nltk.data.find(SENTENCES)
    except LookupError:
        if not nltk.download("punkt_tab", quiet=True):
            raise ValueError(
                "IFEval counts sentences with nltk's punkt_tab, which is not here and cannot be fetched; run "
                "python -m nltk.downloader punkt_tab where there is a network, and copy its nltk_data to this home"
            ) from None


def lacking(what: str, error: ModuleNotFoundError) -> ValueError:
    """The error to raise for tasks that need another package."""
    return ValueError(f"{what} needs a package that this machine lacks: {error}; install it with pip")
