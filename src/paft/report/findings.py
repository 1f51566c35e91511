"""What a table of cells says of each claim of the paper.

A claim is tested once for every preference objective and every lambda there are cells for. It may need several
contrasts at once ("TIES beats every other method"): then the least of them is shown, the claim is as uncertain as
its most uncertain contrast (an intersection-union test; Berger 1982), and it fails as soon as one contrast is surely
below zero (Bonferroni over the contrasts). All tests of a table are corrected together by Holm's method.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from paft.objectives import OBJECTIVES
from paft.report.cells import Term, combine, members
from paft.report.claims import AGREEMENT, CLAIMS, Claim, Pick
from paft.report.items import Scores
from paft.report.names import merge_title, objective_place, objective_title
from paft.report.numbers import short
from paft.report.representatives import representatives
from paft.report.row import Row
from paft.report.statistics import Estimate, holm

ALPHA = 0.05


class Verdict(str, Enum):
    held = "held"
    did_not_hold = "did not hold"
    cannot_tell = "cannot tell here"


@dataclass(frozen=True)
class Finding:
    """One claim for one preference objective and lambda."""

    claim: str
    says: str
    source: str
    preference: str
    weight: float | None
    """lambda"""
    verdict: Verdict = Verdict.cannot_tell
    why: str = ""
    effect: Estimate | None = None
    """Of the least contrast, and of as many units as the column has: shares, not percent."""
    contrast: str = ""
    """Which one that is, where the claim has several."""
    p: float | None = None
    corrected: float | None = None
    """p after Holm's correction over the table."""
    keys: tuple[str, ...] = ()
    """Evaluations it was computed from."""


def findings(rows: Sequence[Row], scores: Scores) -> list[Finding]:
    """Every claim, tested on the cells of `paft.report.representatives` of rows that may be compared."""
    chosen = representatives(rows)
    weights: list[float | None] = [*sorted({r.weight for r in chosen if r.weight})] or [None]
    names = {r.preference for r in chosen if r.preference} or {next(iter(OBJECTIVES))}
    objectives = sorted(names, key=lambda name: (objective_place(name), name))
    tested = []
    for claim in CLAIMS:
        for preference in [""] if claim.of_sft_alone else objectives:
            for weight in weights if claim.needs_lambda else [None]:
                tested.append(_test(claim, preference, weight, chosen, scores))
    decided = _decide(tested)
    return [*decided, _agreement(decided)]


def flat(finding: Finding) -> dict[str, Any]:
    """One row of claims.csv; the effect, its error and interval in percentage points."""
    e = finding.effect
    points = {name: _points(getattr(e, name, None)) for name in ("value", "stderr", "low", "high")}
    return {
        "claim": finding.claim,
        "preference": finding.preference,
        "lambda": finding.weight,
        "verdict": finding.verdict.value,
        "effect": points["value"],
        **{name: points[name] for name in ("stderr", "low", "high")},
        "p": finding.p,
        "p_corrected": finding.corrected,
        "contrast": finding.contrast,
        "num_items": e.num_items if e else None,
        "num_seeds": e.num_seeds if e else None,
        "why": finding.why,
        "says": finding.says,
        "source": finding.source,
        "evaluate_keys": " ".join(finding.keys),
    }


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def cell_of(rows: Sequence[Row], pick: Pick, preference: str, weight: float | None) -> list[Row]:
    """The seeds of the cell that is meant; an adapter's own numbers are also in the cells merged from it."""
    paradigms = [pick.paradigm] if pick.column == "average" else [pick.paradigm, "parallel"]
    for paradigm in paradigms:
        fitting = [r for r in rows if r.paradigm == paradigm and _fits(r, pick, preference, weight)]
        if groups := members(fitting):
            return max(groups.values(), key=lambda group: (len(group), str(group[0].get("finished"))))
    return []


def _fits(row: Row, pick: Pick, preference: str, weight: float | None) -> bool:
    """Whether a row has the number that is meant: what the branch it is of was trained with counts, and no more."""
    return (
        (pick.paradigm == "sft" or row.preference == preference)
        and (pick.paradigm == "preference" or row.weight == (weight if pick.l1 else 0.0))
        and (not pick.merge or row.merge == pick.merge)
        and row.get(pick.column) is not None
    )


def _test(
    claim: Claim, preference: str, weight: float | None, rows: Sequence[Row], scores: Scores
) -> Finding:
    finding = Finding(claim.name, claim.says, claim.source, preference, weight)
    tested: dict[str, Estimate] = {}
    missing: list[str] = []
    keys: list[str] = []
    for label, contrast in claim.contrasts.items():
        terms = [Term(w, cell_of(rows, p, preference, weight), p.column) for w, p in contrast]
        absent = [
            name(p, preference, weight) for (_, p), t in zip(contrast, terms, strict=True) if not t.rows
        ]
        missing += absent
        try:
            effect = None if absent else combine(terms, scores, minus=claim.above)
        except ValueError as error:
            return replace(finding, why=str(error))
        if effect is not None:
            tested[label] = effect
            keys += [r["evaluate_key"] for t in terms for r in t.rows]
    return _judge(replace(finding, keys=tuple(dict.fromkeys(keys))), tested, list(dict.fromkeys(missing)))


def _judge(finding: Finding, tested: dict[str, Estimate], missing: list[str]) -> Finding:
    """Effect and uncorrected p; `why` says what keeps a claim from being tested."""
    lacks = f"no cell: {', '.join(missing)}" if missing else ""
    if not tested:
        return replace(finding, why=lacks or "no numbers")
    label, least = min(tested.items(), key=lambda pair: pair[1].value)
    finding = replace(finding, effect=least, contrast=label, why=lacks)
    sides = [
        (e.p_above, e.p_below) for e in tested.values() if e.p_above is not None and e.p_below is not None
    ]
    if min(e.num_seeds for e in tested.values()) < 2 or len(sides) < len(tested):
        return replace(finding, why="; ".join(filter(None, (lacks, _unsure(list(tested.values()))))))
    holds = max(above for above, _ in sides) if not missing else 1.0
    fails = min(1.0, len(sides) * min(below for _, below in sides))
    verdict = Verdict.held if holds <= fails else Verdict.did_not_hold
    return replace(finding, p=min(1.0, 2 * min(holds, fails)), verdict=verdict)


def _unsure(tested: Sequence[Estimate]) -> str:
    if min(e.num_seeds for e in tested) < 2:
        return "one seed in common: an interval over items says nothing of other trainings"
    return "nothing says how sure it is: a task or subtask has one item, or its items are not known"


def _decide(findings: Sequence[Finding]) -> list[Finding]:
    """Verdicts after the correction: what is not significant cannot be told."""
    tested = [f for f in findings if f.p is not None]
    corrected = dict(zip(map(id, tested), holm([f.p for f in tested if f.p is not None]), strict=True))
    decided = []
    for finding in findings:
        p = corrected.get(id(finding))
        if p is None or p >= ALPHA:
            why = finding.why or f"p after the correction is not below {ALPHA}"
            decided.append(replace(finding, corrected=p, verdict=Verdict.cannot_tell, why=why))
        else:
            decided.append(replace(finding, corrected=p))
    return decided


def _agreement(findings: Sequence[Finding]) -> Finding:
    """Whether every claim comes out with one objective as with the other, as the paper's appendix says."""
    first, other = AGREEMENT.first, AGREEMENT.other
    by = {(f.claim, f.weight, f.preference): f for f in findings}
    pairs = [(f, by.get((f.claim, f.weight, other))) for f in findings if f.preference == first]
    of = f"{first}, {other}"
    summary = Finding(AGREEMENT.name, AGREEMENT.says, AGREEMENT.source, of, None)
    both = [(a.verdict, b.verdict) for a, b in pairs if b is not None]
    decided = [(a, b) for a, b in both if Verdict.cannot_tell not in (a, b)]
    same = sum(a is b for a, b in decided)
    why = f"the same in {same} of {len(decided)} tests decided with both; {len(pairs)} tests"
    if same < len(decided):
        return replace(summary, verdict=Verdict.did_not_hold, why=why)
    verdict = Verdict.held if decided and len(decided) == len(pairs) else Verdict.cannot_tell
    return replace(summary, verdict=verdict, why=why)


def name(pick: Pick, preference: str, weight: float | None) -> str:
    """The cell that is meant, in words."""
    penalty = f"λ={'> 0' if weight is None else short(weight)}" if pick.l1 else "λ=0"
    aligned = objective_title(preference)
    match pick.paradigm:
        case "parallel":
            return f"{merge_title(pick.merge)} {aligned} {penalty}"
        case "sequential":
            return f"sequential {aligned} {penalty}"
        case "sft":
            return f"SFT alone {penalty}"
    return f"{aligned} alone"
