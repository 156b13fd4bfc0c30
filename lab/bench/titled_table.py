"""A table for the terminal with text above and below it."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class TitledTable:
    """A table with a line above it and lines below it, which may be wider than the table."""

    title: str
    caption: str
    table: Table

    @classmethod
    def empty(
        cls, title: str, caption: str, left: Sequence[str] = (), right: Sequence[str] = (), wraps: str | None = None
    ) -> "TitledTable":
        """Return a table without rows; words are aligned left in their columns, numbers right.

        In a narrow terminal the column `wraps`, or else the last one, is wrapped, so that no text is cut off.
        """
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        columns = [*((column, "left") for column in left), *((column, "right") for column in right)]
        for column, side in columns:
            table.add_column(column, justify=side, no_wrap=column != (wraps or columns[-1][0]))  # type: ignore[arg-type]
        return cls(title, caption, table)

    def add(self, *cells: str) -> None:
        """Add a row of plain text: the brackets of p[l] are not markup."""
        self.table.add_row(*(Text(cell) for cell in cells))

    def renderable(self) -> RenderableType:
        """Return the object for a console to print."""
        parts: list[RenderableType] = [Text(f"\n{self.title}", style="bold"), self.table]
        return Group(*parts, Text(self.caption, style="dim")) if self.caption else Group(*parts)
