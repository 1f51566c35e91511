"""A merge of ours as a mergekit YAML, where mergekit has its like."""

from collections import Counter
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from paft.config import Election, ElectOn, MergeConfig, Norm, Normalize, Rescale, Scope, Space
from paft.delta.checkpoint import is_checkpoint
from paft.delta.full import is_full_delta
from paft.files.safetensors import read_checkpoint
from paft.merge.apply import variant
from paft.merge.layout import STORED
from paft.merge.methods import DareTies, Linear, Slerp, TaskArithmetic, Ties
from paft.merge.methods.breadcrumbs import Breadcrumbs
from paft.merge.methods.dare import DareMerge
from paft.merge.methods.della import DellaMerge
from paft.merge.methods.ram import Ram, RamPlus

SPARSE = (Ties, DareMerge, Breadcrumbs, DellaMerge)
"""Methods with a density for each branch."""
Expressed = tuple[str, list[dict[str, float]], dict[str, Any]]
"""mergekit's method, the parameters of each model, those of all."""


def write_config(path: Path, base: Path, branches: Mapping[str, Path], method: MergeConfig) -> None:
    """Write the merge of two branches into `base` as a mergekit YAML with absolute paths.

    mergekit computes in float32 with it, as merges here do, and stores what they store. Raises `ValueError` naming the
    options that mergekit has not, and for a file that is there.
    """
    if path.exists():
        raise ValueError(
            f"{path} is there already; choose another name, or remove it first if it is not needed"
        )
    content = mergekit_config(base.resolve(), {b: folder.resolve() for b, folder in branches.items()}, method)
    remarks = [variant(method), "mergekit-yaml THIS_FILE OUT --lora-merge-cache SCRATCH"]
    if isinstance(method, DareMerge | DellaMerge):
        remarks.append("what is dropped is drawn anew each time; mergekit takes --random-seed")
    text = "".join(f"# {remark}\n" for remark in remarks) + yaml.safe_dump(content, sort_keys=False)
    path.write_text(text, encoding="utf-8")


def mergekit_config(base: Path, branches: Mapping[str, Path], method: MergeConfig) -> dict[str, Any]:
    """The content of the file; raises as `write_config`."""
    if options := _not_in_mergekit(method):
        raise ValueError(f"no mergekit file says {', '.join(options)} as it is meant here: {variant(method)}")
    for folder in filter(is_full_delta, branches.values()):
        raise ValueError(
            f"mergekit reads whole models and LoRA adapters, and {folder} is the delta of full fine-tuning; merge it "
            "here, or give the model that train.py paradigm=sft or paradigm=preference makes of it"
        )
    name, of_model, shared = _expressed(method)
    models = [_model(base, folder) for folder in branches.values()]
    # slerp's base is its end at t = 0; nuslerp, as every method on deltas, has one of its own
    start = models[0] if name == "slerp" else _model(base, base)
    return {
        "merge_method": name,
        "base_model": start,
        "models": [{"model": model, "parameters": p} for model, p in zip(models, of_model, strict=True)],
        "parameters": shared,
        "dtype": "float32",
        "out_dtype": method.dtype.value if method.dtype else _dtype(base),
    }


def _expressed(method: MergeConfig) -> Expressed:
    match method:
        case TaskArithmetic():
            return "task_arithmetic", _weights(method.weights), {"normalize": False, "lambda": method.scale}
        case Linear():
            # on deltas, where weights need not sum to 1; mergekit's linear is one on whole models
            shared = {"normalize": method.normalize, "lambda": method.scale}
            return "task_arithmetic", _weights(method.weights), shared
        case Slerp(space=Space.delta):
            return "nuslerp", _weights([1 - method.t, method.t]), {"nuslerp_flatten": True}
        case Slerp():
            return "slerp", [{}, {}], {"t": method.t}
        case RamPlus():
            return "ramplus_tl", [{}, {}], {"r": method.r, "alpha": method.alpha, "epsilon": method.epsilon}
        case Ram():
            return "ram", [{}, {}], {"epsilon": method.epsilon}
    assert isinstance(method, SPARSE)
    shared = {"normalize": vars(method)["normalize"] is Normalize.weights, "lambda": method.scale}
    weights, more = method.weights, dict[str, float]()
    match method:
        case Breadcrumbs():
            more = {"gamma": method.gamma}
        case DellaMerge():
            more = {"epsilon": method.epsilon}
    if isinstance(method, DareMerge | DellaMerge):
        shared["rescale"] = method.rescale is Rescale.l1
        if method.rescale is Rescale.inverse_density:
            weights = [weight / density for weight, density in zip(weights, method.densities, strict=True)]
    each = zip(weights, method.densities, strict=True)
    name = "dare_ties" if isinstance(method, DareTies) else method.name
    return name, [{"weight": weight, "density": density, **more} for weight, density in each], shared


def _weights(weights: list[float]) -> list[dict[str, float]]:
    return [{"weight": weight} for weight in weights]


def _not_in_mergekit(method: MergeConfig) -> list[str]:
    """The options of a method, or the method itself, that no mergekit YAML says."""
    if not isinstance(method, (*SPARSE, Slerp, TaskArithmetic, Linear, Ram)):
        return [f"method {method.name}"]
    options = vars(method)
    normalize = options.get("normalize")
    missing = {
        "space": not isinstance(method, Slerp) and method.space is not Space.delta,
        "weights_by": bool(options.get("weights_by")),
        "weights": isinstance(method, Ram) and options["weights"] != [1, 1],
        "scale": isinstance(method, Ram) and options["scale"] != 1,
        "norm": method.norm is not Norm.own,
        "prune_sft": bool(method.prune_sft),
        "prune_preference": bool(method.prune_preference),
        "scope": options.get("scope") is Scope.all,
        "election": options.get("election") is Election.count,
        "elect_on": options.get("elect_on") is ElectOn.unweighted and not _alike(options["weights"]),
        "normalize": normalize is Normalize.count,
        "rescale": options.get("rescale") is Rescale.inverse_density and normalize is Normalize.weights,
    }
    named = ((name, options[name]) for name, is_missing in missing.items() if is_missing)
    return [f"{name}={value.value if isinstance(value, Enum) else value}" for name, value in named]


def _alike(weights: list[float]) -> bool:
    """Whether weights change no election."""
    return weights[0] > 0 and len(set(weights)) == 1


def _model(base: Path, folder: Path) -> Any:
    """A branch as mergekit names it; in full where + and @ of a path would be read as its own."""
    adapter = None if is_checkpoint(folder) else folder
    model = base if adapter else folder
    if any(mark in f"{model}{adapter}" for mark in '+@ "'):
        lora = {"lora": {"path": str(adapter)}} if adapter else {}
        return {"model": {"path": str(model)}, **lora}
    return f"{model}+{adapter}" if adapter else str(model)


def _dtype(base: Path) -> str:
    """The type that most tensors of a model are stored as."""
    types = Counter(s.dtype for tensors in read_checkpoint(base).values() for s in tensors.values())
    names = {kind: name for name, kind in STORED.items()}
    return next((names[kind] for kind, _ in types.most_common() if kind in names), "float32")
