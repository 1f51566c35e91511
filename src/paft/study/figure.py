"""The study's one figure: what each way to a sparse SFT delta adds to the merged model, with its interval."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from paft.report.style import BLACK, BLUE, ORANGE, add_legend, clean, new_figure

SHOWN = {
    "average": ("mean of both skills", BLACK, "o"),
    "gsm8k_choice": ("GSM8K (SFT)", BLUE, "s"),
    "hh_reward": ("HH reward accuracy (preference)", ORANGE, "D"),
}
"""Column -> its label, colour and marker."""


def effects(answers: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Differences to the dense delta with 95 % intervals: a panel for each topic, a line for each question.

    `answers` are rows of comparisons; those of columns that are not shown are passed over. None without any.
    """
    shown = [row for row in answers if row["column"] in SHOWN and row["low"] is not None]
    if not shown:
        return None
    topics, questions = (list(dict.fromkeys(row[name] for row in shown)) for name in ("topic", "question"))
    title = "A sparse SFT delta against the dense one, both merged with DPO's"
    figure = new_figure(4.6 * len(topics) + 1.5, 1.8 + 0.55 * len(questions), title)
    panels = list(figure.subplots(1, len(topics), sharex=True, sharey=True, squeeze=False).flat)
    for topic, ax in zip(topics, panels, strict=True):
        for row in shown:
            if row["topic"] == topic:
                label, colour, marker = SHOWN[row["column"]]
                place = questions.index(row["question"]) + 0.22 * (list(SHOWN).index(row["column"]) - 1)
                arms = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
                ax.errorbar(
                    row["difference"], place, xerr=arms, color=colour, marker=marker, ms=5, label=label
                )
        ax.axvline(0, color=BLACK, linewidth=0.8)
        ax.set_title(topic, fontsize=11)
        ax.set_xlabel("difference, percentage points, 95 % interval")
        clean(ax, "x")
    panels[0].set_yticks(range(len(questions)), questions)
    panels[0].set_ylim(len(questions) - 0.5, -0.5)
    add_legend(figure, panels)
    return figure
