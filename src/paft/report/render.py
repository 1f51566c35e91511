"""A table as Markdown and in the terminal; no character of a name is read as markup."""

import re
import sys

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table as RichTable

from paft.report.tables import Entry, Table

WIDTH = 160
"""Characters of a line where the output is no terminal and has no width of its own."""
MARKS = re.compile(r"[\\|*`\[\]]|<(?=[A-Za-z/!])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What Markdown would not print as it is."""


def markdown(table: Table, *, align: bool = True) -> str:
    """A Markdown table; headings of sections are strong lines."""
    rule = ["---:" if head.numeric and align else "---" for head in table.head]
    lines = [[escaped(head.text) for head in table.head], rule]
    for part in table.sections:
        if part.heading:
            lines.append([f"**{escaped(part.heading)}**", *[""] * (len(table.head) - 1)])
        lines += [[_markdown(entry) for entry in line.entries] for line in part.lines]
    caption = ["", escaped(table.caption)] if table.caption else []
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), *caption])


def escaped(text: str) -> str:
    """`text` for a Markdown table, line breaks and all."""
    return MARKS.sub(lambda match: f"\\{match[0]}", text).replace("\n", "<br>")


def _markdown(entry: Entry) -> str:
    text = escaped(entry.text) + (f" ± {entry.error}" if entry.error else "")
    return f"**{text}**" if entry.strong and entry.text else text


def console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def show_table(out: Console, table: Table) -> None:
    """Print a table. Where a line is too narrow errors stand below their values and names break into several; where it
    still is, lines are longer than the terminal's: no number is cut."""
    out.print(in_terminal(table, out.width), crop=False)


def in_terminal(table: Table, width: int) -> RichTable:
    """For a console of so many characters a line."""
    title, caption = escape(table.title), escape(table.caption)
    printed = RichTable(title=title, title_justify="left", caption=caption, caption_justify="left")
    between = " " if sum(least + 3 for least in _least(table, " ")) < width else "\n"
    for head, least in zip(table.head, _least(table, between), strict=True):
        side: JustifyMethod = "right" if head.numeric else "left"
        printed.add_column(escape(head.text), justify=side, min_width=least, overflow="fold", no_wrap=False)
    for part in table.sections:
        printed.add_section()
        if part.heading:
            printed.add_row(f"[dim]{escape(part.heading)}[/dim]")
        for line in part.lines:
            printed.add_row(*(_rich(entry, between) for entry in line.entries))
    return printed


def _least(table: Table, between: str) -> list[int]:
    """Characters that each column takes at least: of numbers all, of names some."""
    widest = [
        max((len(part) for line in table.lines for part in _bare(line.entries[place], between)), default=0)
        for place in range(len(table.head))
    ]
    return [
        max(most if head.numeric else min(most, 12), *map(len, head.text.split() if head.numeric else [""]))
        for head, most in zip(table.head, widest, strict=True)
    ]


def _bare(entry: Entry, between: str) -> list[str]:
    """The lines of an entry, `between` its text and its error."""
    return (entry.text + (f"{between}± {entry.error}" if entry.error else "")).split("\n")


def _rich(entry: Entry, between: str) -> str:
    text = f"[bold]{escape(entry.text)}[/bold]" if entry.strong else escape(entry.text)
    return text + (f"{between}[dim]± {entry.error}[/dim]" if entry.error else "")
