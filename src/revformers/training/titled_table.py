"""A table for the terminal with text above and below it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from revformers.streams import readable

GAP = 2
"""Blanks between two columns, and around a table."""


@dataclass(frozen=True)
class TitledTable:
    """A table with a line above it and lines below it, in which no word and no figure is ever cut.

    A console that is too narrow for the table shows a block for every row, with the headings on the left. All text is
    shown as it is: the brackets of p[l] are not markup.

    Attributes:
        title: text above the table; may be empty.
        caption: text below it; may be empty.
        left: headings of the columns of words, which are aligned left.
        right: headings of the columns after them, of numbers, which are aligned right.
        wraps: the column whose cells may be wrapped between words; by default none.
        rows: the cells of every row.
        sections: the indices of the rows that begin a section.

    """

    title: str = ""
    caption: str = ""
    left: Sequence[str] = ()
    right: Sequence[str] = ()
    wraps: str | None = None
    rows: list[tuple[str, ...]] = field(default_factory=list)
    sections: set[int] = field(default_factory=set)

    def add(self, *cells: str) -> None:
        """Add a row."""
        self.rows.append(cells)

    def add_section(self, name: str, note: str) -> None:
        """Begin a section, with its name in the first column and a note in the last one."""
        self.sections.add(len(self.rows))
        self.add(name, *[""] * (len(self._headings) - 2), note)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts for a console of the width that the options name."""
        if self.title:
            yield Text(f"\n{self.title}", style="bold")
        # What stands for a sign that the encoding lacks may be wider than the sign.
        rows = [tuple(readable(cell, options.encoding) for cell in row) for row in self.rows]
        if self._least_width(rows) <= options.max_width:
            yield self._table(rows)
        else:
            yield from self._blocks(rows)
            yield Text()
        if self.caption:
            yield Text(self.caption, style="dim")

    @property
    def _headings(self) -> list[str]:
        return [*self.left, *self.right]

    def _is_wrapped(self, column: int) -> bool:
        return self._headings[column] == self.wraps

    def _least_width(self, rows: Sequence[tuple[str, ...]]) -> int:
        """Return the number of characters that the table needs."""
        width = 0
        for column, heading in enumerate(self._headings):
            texts = [heading, *(row[column] for row in rows)]
            words = [word for text in texts for word in text.split()]
            width += GAP + max(map(cell_len, words if self._is_wrapped(column) else texts))
        return width

    def _table(self, rows: Sequence[tuple[str, ...]]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for column, heading in enumerate(self._headings):
            table.add_column(
                Text(heading),
                justify="left" if column < len(self.left) else "right",
                no_wrap=not self._is_wrapped(column),
            )
        for number, row in enumerate(rows):
            table.add_row(*map(Text, row), style="bold" if number in self.sections else None)
        return table

    def _blocks(self, rows: Sequence[tuple[str, ...]]) -> Iterator[Table | Text]:
        for number, row in enumerate(rows):
            if number in self.sections:
                yield Text(f"\n{', '.join(filter(None, row))}", style="bold")
                continue
            block = Table.grid(padding=(0, GAP, 0, 0))
            block.add_column(no_wrap=True)
            block.add_column(overflow="fold")
            for heading, cell in zip(self._headings, row, strict=True):
                if cell.strip():
                    block.add_row(Text(heading), Text(cell.strip()))
            yield Text()
            yield block
