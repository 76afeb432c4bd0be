"""Text tables by rich, which Keras requires."""

import rich.box
from rich.console import Console
from rich.table import Table


def new_table(*headers: str, title: str | None = None) -> Table:
    """Returns a table whose columns but the first stand to the right; without headers it has two."""
    table = Table(title=title, box=rich.box.ASCII, show_header=bool(headers), title_style="", header_style="")
    for index, header in enumerate(headers or ("", "")):
        table.add_column(header, justify="right" if index else "left")
    return table


def as_text(table: Table) -> str:
    """Returns the table as wide as its cells, whatever it is printed on, and its cells as they are."""
    console = Console(width=10_000, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
