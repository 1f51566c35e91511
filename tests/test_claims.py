"""The paper's claims on stores whose scores are set: what is planted must be found, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_store import PAFT, fill, grid, with_lambda

from paft.config import L1Config, L1Of, Paradigm, PreferenceConfig, SFTConfig
from paft.merge.methods import Linear, Ties
from paft.objectives import ORPO
from paft.report.build import studies
from paft.report.claims import CLAIMS
from paft.report.findings import Finding, Verdict
from paft.report.paper import printed, printed_effects, read_paper
from paft.report.representatives import representatives
from paft.report.row import Row
from paft.report.table import row, rows

PAPER = Path(__file__).parents[1] / "docs" / "paper_tables.csv"
ITEMS = 300


def plant(
    store: Path,
    right: dict[tuple[str, float | None, str], float],
    seeds: tuple[int, ...] = (0, 1, 2),
    preference: PreferenceConfig = PAFT.preference,
) -> None:
    """A store where a cell answers a share `right[paradigm, lambda, merge]` of its items (else 0.5), little noise."""
    table = grid(lambdas=(0.0, 1e-4))
    cells = [replace(c, seed=s, preference=preference) for c in table for s in seeds]
    for number, stage in enumerate(fill(store, cells)):
        folder = store / "evaluate" / stage.key
        found = row(folder)
        rewrite(
            folder,
            right.get((found["paradigm"], found["lambda"], found["merge"]), 0.5) + 0.004 * (number % 3),
        )


def rewrite(folder: Path, share: float) -> None:
    results, correct = json.loads((folder / "results.json").read_text()), round(share * ITEMS)
    lines = []
    for name in ("tool_call", "honesty", "mmlu_dev"):
        values = [float((item * 7) % ITEMS < correct) for item in range(ITEMS)]
        lines += [json.dumps({"column": name, "item": i, "value": v}) for i, v in enumerate(values)]
        results["tasks"][name]["score"] = correct / ITEMS
    results["average"] = correct / ITEMS
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "samples.jsonl").write_text("\n".join(lines))


def by_name(store: Path) -> dict[str, Finding]:
    (study,) = studies(store, rows(store))
    return {f.claim: f for f in study.findings}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """PAFT 10 points above all, TIES and DARE TIES gain from L1 what the others do not; SLERP is the best merge."""
    store = tmp_path_factory.mktemp("planted")
    sparse = {("parallel", 1e-4, m): 0.7 for m in ("task_arithmetic", "ties", "dare", "linear")}
    dense = {("parallel", 0.0, m): 0.7 for m in ("task_arithmetic", "linear", "slerp")}
    plant(store, sparse | dense | {("parallel", 1e-4, "slerp"): 0.8, ("sequential", 1e-4, ""): 0.6})
    return by_name(store)


def test_planted_effects_are_found_with_their_size(planted):
    found = planted["Parallel beats sequential"]

    assert found.verdict is Verdict.held
    assert 100 * found.effect.value == pytest.approx(12, abs=0.5)
    assert found.effect.low < found.effect.value < found.effect.high
    assert (found.effect.num_items, found.effect.num_seeds) == (3 * ITEMS, 3)
    assert len(found.keys) == 5 * 3 + 3


@pytest.mark.parametrize(
    ("claim", "verdict", "contrast"),
    [
        ("Parallel beats sequential with every merge", Verdict.held, None),
        ("Parallel beats each branch alone", Verdict.held, None),
        ("L1 helps merging", Verdict.held, None),
        ("L1 helps every merge", Verdict.cannot_tell, None),
        ("L1 helps TIES and DARE TIES most", Verdict.held, None),
        ("L1 helps sequential training", Verdict.held, None),
        ("TIES is the best merge", Verdict.did_not_hold, "over SLERP"),
        ("L1 gives over 90 % sparsity", Verdict.did_not_hold, None),
        ("SFT is dense, preference training sparse", Verdict.held, None),
        ("ORPO shows the same", Verdict.cannot_tell, None),
    ],
)
def test_verdicts(planted, claim, verdict, contrast):
    assert planted[claim].verdict is verdict
    assert contrast in (None, planted[claim].contrast)


def test_every_claim_is_in_the_table_once_for_its_lambda(planted):
    assert set(planted) == {c.name for c in CLAIMS} | {"ORPO shows the same"}


def test_equal_cells_cannot_tell(tmp_path):
    plant(tmp_path, {})

    found = by_name(tmp_path)["Parallel beats sequential"]

    assert found.verdict is Verdict.cannot_tell
    assert found.effect.low == 0 == found.effect.high, "all of them answer alike"
    assert found.corrected >= 0.05


def test_one_seed_shows_the_effect_and_cannot_tell(tmp_path):
    plant(tmp_path, {("sequential", 1e-4, ""): 0.1}, seeds=(0,))

    found = by_name(tmp_path)["Parallel beats sequential"]

    assert found.effect.low > 0
    assert (found.verdict, found.p) == (Verdict.cannot_tell, None)
    assert "one seed" in found.why


def test_missing_cells_are_named_and_no_weaker_claim_holds_in_their_place(tmp_path):
    cells = [
        replace(with_lambda(PAFT, w), seed=s, merge=m)
        for w in (0.0, 1e-4)
        for s in (0, 1)
        for m in (Ties(), Linear())
    ]
    fill(tmp_path, [*cells, replace(PAFT, paradigm=Paradigm.base)])

    found = by_name(tmp_path)

    assert "SLERP DPO λ=1e-4" in found["L1 helps merging"].why
    assert found["L1 helps merging"].effect is None
    assert found["L1 helps every merge"].effect is not None
    assert found["L1 helps every merge"].verdict is not Verdict.held


# --- which cells speak -------------------------------------------------------------------------------


def test_plain_cells_are_the_commonest_recipe_and_the_default_variant(tmp_path):
    main = [with_lambda(PAFT, w) for w in (0.0, 1e-4)]
    factors = replace(PAFT, sft=SFTConfig(lr=1e-3, l1=L1Config(1e-4, of=L1Of.factors)))
    fill(tmp_path, [*main, *(replace(c, merge=Ties(density=0.2)) for c in main), factors])

    found = representatives(rows(tmp_path))

    assert [(r["lambda"], r["merge.density"], r["l1_of"]) for r in found] == [
        (1e-4, 0.5, "delta"),
        (0.0, 0.5, "delta"),
    ]


# --- the paper's own numbers -------------------------------------------------------------------------


def a_row(**values: object) -> Row:
    return Row({"paradigm": "parallel", "preference": "dpo", "lambda": 1e-4, "merge": "dare"}) | values


def test_printed_averages_of_the_paper():
    paper = read_paper(PAPER)

    assert printed(paper, a_row()) == {"Mistral-7B-v0.1": 0.64792, "Llama-3-8B": 0.65732}
    assert printed(paper, a_row(preference="orpo", **{"lambda": 0.0})) == {"Llama-3-8B": 0.6208}
    sft = a_row(paradigm="sft", preference="", merge="")
    assert printed(paper, sft) == {"Mistral-7B-v0.1": 0.6055, "Llama-3-8B": 0.6283}
    base = a_row(paradigm="base", preference="", merge="", **{"lambda": None})
    assert printed(paper, base) == {"Mistral-7B-v0.1": 0.6085, "Llama-3-8B": 0.62522}


def test_claims_on_the_papers_own_averages():
    paper, claims = read_paper(PAPER), {c.name: c for c in CLAIMS}

    best = printed_effects(paper, claims["TIES is the best merge"], "dpo")
    every = printed_effects(paper, claims["L1 helps every merge"], "dpo")

    # Table 1: TIES .65243 against Task Arithmetic .64949; on Llama .66023 against .66301
    assert best == pytest.approx({"Mistral-7B-v0.1": 0.00294, "Llama-3-8B": -0.00278})
    # Linear: .64091 against .64166 without L1; on Llama .65166 against .65277
    assert every == pytest.approx({"Mistral-7B-v0.1": -0.00075, "Llama-3-8B": -0.00111})
    assert printed_effects(paper, claims["L1 gives over 90 % sparsity"], "") == {}


def test_paper_file_that_is_none_is_refused_by_name(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")

    with pytest.raises(ValueError, match=r"no file .*absent"):
        read_paper(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="no column table, base"):
        read_paper(tmp_path / "other.csv")


def test_orpo_that_comes_out_otherwise_is_said(tmp_path):
    plant(tmp_path, {("sequential", 1e-4, ""): 0.3})
    plant(tmp_path, {("sequential", 1e-4, ""): 0.9}, preference=ORPO(lr=2e-4))

    found = by_name(tmp_path)["ORPO shows the same"]

    assert found.verdict is Verdict.did_not_hold
