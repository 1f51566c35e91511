"""What computed the scores of rows; said in words wherever scores of several backends stand together."""

from collections.abc import Iterable

from paft.report.row import Row


def backends(rows: Iterable[Row]) -> list[str]:
    """Each backend with its version, as `hf 5.23.0`, once; none of evaluations whose answers were judged."""
    return list(
        dict.fromkeys(name for row in rows for name in (row.get("backend") or "").split(", ") if name)
    )


def mixed(rows: Iterable[Row]) -> list[str]:
    """A sentence where rows that stand together were not all scored by the same backend, whatever its version."""
    found = backends(rows)
    if len({name.split()[0] for name in found}) < 2:
        return []
    return [
        f"Scores of several backends stand together here: {', '.join(found)}. Each gives the same weights a little "
        "different scores, so a difference between rows of two backends is not one of their models; evaluate all of "
        "them with the same evaluate.backend."
    ]
