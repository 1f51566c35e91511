"""What is taken from the package alpaca-eval: its annotators' prompts and settings, and its length-controlled rate.

Its texts are read from its folder; only the rate imports it. 0.6.6 asks setuptools for `pkg_resources`, which it
no longer has, and would write fitted weights into its own folder.
"""

import importlib
import importlib.util
import logging
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import yaml

from paft.config.judged import COMMIT, REPO
from paft.files.hub import unavailable

INSTALL = "pip install alpaca-eval==0.6.6 brings it"
GAMED = "df_gamed.csv"
"""Judgements of two models that were made to be long or short, and the difficulty of each instruction."""
RATE = "alpaca_eval.metrics.glm_winrate"


def folder() -> Path:
    """Where the package is installed. Raises `ValueError` saying how it is had."""
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package alpaca-eval is not installed; {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def annotator(name: str) -> dict[str, Any]:
    """The settings of an annotator, with the text of its prompt as `prompt`.

    Raises `ValueError` naming those there are for one that does not read a preference off the first token's
    log-probabilities.
    """
    configs = folder() / "evaluators_configs"
    usable = {path.parent.name: path for path in sorted(configs.glob("*/configs.yaml"))}
    settings = _settings(usable[name], name) if name in usable else {}
    if not _reads_first_token(settings):
        names = [other for other, path in usable.items() if _reads_first_token(_settings(path, other))]
        raise ValueError(f"judge.annotator must be one of {', '.join(names)}, got {name!r:.80}")
    return settings | {"prompt": (configs / settings["prompt_template"]).read_text(encoding="utf-8")}


def _settings(path: Path, name: str) -> dict[str, Any]:
    settings: dict[str, Any] = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get(name) or {}
    return settings


def _reads_first_token(settings: Mapping[str, Any]) -> bool:
    options = settings.get("completion_parser_kwargs") or {}
    plain = "log_prob_index" not in options and not options.get("is_binarize", True)
    return settings.get("fn_completion_parser") == "logprob_parser" and plain


# --- the length-controlled rate ----------------------------------------------------------------------


def length_data(given: Path | None) -> Path:
    """The data file of the rate, from a folder or from the hub. Raises `ValueError` saying why it cannot be had."""
    if given is not None:
        if not (given / GAMED).is_file():
            raise ValueError(f"there is no file {given / GAMED}; it is in the data set {REPO} on the hub")
        return given / GAMED
    from huggingface_hub import constants, hf_hub_download

    try:
        # a name that nobody knows is asked for six times, for half a minute
        here = not _is_known(constants.ENDPOINT)
        return Path(hf_hub_download(REPO, GAMED, repo_type="dataset", revision=COMMIT, local_files_only=here))
    except (OSError, ValueError) as error:
        instead = f"give a folder that holds {GAMED}"
        raise unavailable(f"{GAMED} of {REPO}", f"datasets/{REPO}", error, instead) from None


def _is_known(url: str) -> bool:
    """Whether the host of a URL has an address, or a proxy is to find it."""
    if getproxies():
        return True
    try:
        return bool(socket.getaddrinfo(urlsplit(url).hostname, None))
    except OSError:
        return False


def require_rate() -> None:
    """Raise `ValueError` where alpaca-eval's own function cannot be had."""
    imported(RATE)


@contextmanager
def length_controlled(data: Path) -> Iterator[Any]:
    """Inside, alpaca-eval's `get_length_controlled_winrate`, which reads `data` and leaves nothing behind.

    Raises `ValueError` where it cannot be imported.
    """
    module = imported(RATE)
    import sklearn

    download = module.hf_hub_download
    module.hf_hub_download = lambda **_: str(data)  # type: ignore[attr-defined]
    try:
        # it switches on metadata routing, for the whole process
        with sklearn.config_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield module.get_length_controlled_winrate
    finally:
        module.hf_hub_download = download  # type: ignore[attr-defined]


def imported(name: str) -> ModuleType:
    """A module of alpaca-eval. Raises `ValueError` where it cannot be imported."""
    folder()
    level = logging.getLogger().level
    try:
        with _pkg_resources():
            return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"alpaca-eval {version('alpaca-eval')} cannot be imported: {error}; {INSTALL}"
        ) from error
    finally:
        logging.getLogger().setLevel(level)


@contextmanager
def _pkg_resources() -> Iterator[None]:
    """What alpaca-eval asks of `pkg_resources`, where setuptools has none any more."""
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        yield
        return
    sys.modules["pkg_resources"] = ModuleType(
        "pkg_resources"
    )  # it is asked for versions by functions we never call
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]
