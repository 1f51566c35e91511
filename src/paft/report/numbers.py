"""How the report writes numbers, wherever it prints them."""

DASH = "–"
"""Stands where there is no number."""


def short(value: float | None) -> str:
    """A number as one writes it on the command line, 0, 0.5, 1e-4, to four significant digits; a dash for None."""
    if value is None:
        return DASH
    if not 0 < abs(value) < 1e-2:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def plain_text(value: object) -> str:
    """Any value of a table: numbers as `short`, also in a list with commas; a dash for None and for empty text."""
    if value in (None, ""):
        return DASH
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return short(value)
    return ",".join(map(_shortened, str(value).split(",")))


def _shortened(text: str) -> str:
    """`text`, with fewer digits if it is a number of more than six."""
    try:
        return short(float(text)) if len(text) > 6 and "." in text else text
    except ValueError:
        return text


def percent(share: float | None, unit: str = "") -> str:
    """A share in [0, 1] in percent with one decimal."""
    return DASH if share is None else f"{100 * share:.1f}{unit}"


def p_value(p: float | None) -> str:
    """Three decimals; below what they show, that."""
    return DASH if p is None else f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def signed(value: float | None, digits: str = ".2f") -> str:
    return DASH if value is None else f"{value:+{digits}}"


def interval(low: float | None, high: float | None, digits: str = ".2f") -> str:
    """Both ends with their signs, `-1.20 to +3.40`."""
    return DASH if low is None or high is None else f"{signed(low, digits)} to {signed(high, digits)}"
