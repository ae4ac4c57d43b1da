"""What was measured: rows with a figure each, beside its budget, as a table, as Markdown, as JSON."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Literal

from rich.table import Table

_NOT_MEASURED: Final = "not measured"
_COLUMNS: Final = ("work", "here", "beside", "figure", "budget", "")


@dataclass(frozen=True, slots=True)
class Budget:
    """What a figure may be at the least or at the most."""

    least: float | None = None
    most: float | None = None

    def kept(self, figure: float) -> bool:
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work, measured once a round here and, where there is one, beside it.

    The figure is the median here, or its ratio to the median beside, or the difference of the two. `note` tells what is beside, or
    why nothing was measured.
    """

    work: str
    unit: str
    here: Sequence[float]
    beside: Sequence[float] = ()
    note: str = ""
    figure_is: Literal["value", "ratio", "difference"] = "value"
    budget: Budget = field(default_factory=Budget)

    @property
    def figure(self) -> float | None:
        if not self.here or (self.figure_is != "value" and not self.beside):
            return None
        if self.figure_is == "ratio":
            return median(self.here) / median(self.beside)
        return median(self.here) - (median(self.beside) if self.figure_is == "difference" else 0)

    @property
    def kept(self) -> bool | None:
        """Whether the budget is kept; None where there is none, or no figure."""
        if self.figure is None or self.budget == Budget():
            return None
        return self.budget.kept(self.figure)

    def cells(self) -> tuple[str, ...]:
        """The row as text: medians with the range of the rounds."""
        figure = "" if self.figure is None else self._figure_text(self.figure)
        mark = {True: "✓", False: "✗", None: ""}[self.kept]
        beside = f"{_spread(self.beside, self.unit)}, {self.note}" if self.beside else self.note
        return self.work, _spread(self.here, self.unit) or _NOT_MEASURED, beside, figure, self._budget_text(), mark

    def _figure_text(self, figure: float) -> str:
        return f"{figure:.2f} ×" if self.figure_is == "ratio" else f"{_number(figure)} {self.unit}".rstrip()

    def _budget_text(self) -> str:
        unit = "×" if self.figure_is == "ratio" else self.unit
        bounds = (("≥", self.budget.least), ("≤", self.budget.most))
        return ", ".join(f"{sign} {bound:,g} {unit}" for sign, bound in bounds if bound is not None)

    def json(self) -> dict[str, object]:
        """The row for programs."""
        return {
            "work": self.work,
            "unit": self.unit,
            "here": list(self.here),
            "beside": list(self.beside),
            "note": self.note,
            "figure_is": self.figure_is,
            "figure": self.figure,
            "least": self.budget.least,
            "most": self.budget.most,
            "kept": self.kept,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All rows, and where they were measured."""

    rows: Sequence[Row]
    about: Mapping[str, str]
    warnings: Sequence[str] = ()

    def table(self) -> Table:
        """For a terminal."""
        table = Table(*_COLUMNS, title="How fast it is here", caption="; ".join([*self._about(), *self.warnings]), header_style="bold")
        for row in self.rows:
            style = {True: None, False: "yellow", None: "dim" if row.figure is None else None}[row.kept]
            table.add_row(*row.cells(), style=style)
        return table

    def markdown(self) -> str:
        """For a file."""
        lines = ["# How fast it is here", "", *self._about(), *self.warnings, ""]
        cells = [_COLUMNS, tuple("---" for _ in _COLUMNS), *(row.cells() for row in self.rows)]
        return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in cells), ""])

    def json(self) -> dict[str, object]:
        """For programs."""
        return {"about": dict(self.about), "warnings": list(self.warnings), "rows": [row.json() for row in self.rows]}

    def _about(self) -> list[str]:
        return [", ".join(f"{name} {value}" for name, value in self.about.items())]


def machine(cores: int) -> dict[str, str]:
    """What the figures depend on."""
    return {"cores": str(cores), "processor": platform.machine(), "Linux": platform.release(), "Python": platform.python_version()}


def _spread(values: Sequence[float], unit: str) -> str:
    """The median, and in brackets the lowest and highest."""
    if not values:
        return ""
    text = f"{_number(median(values))} {unit}".rstrip()
    return text if len(values) == 1 else f"{text} ({_number(min(values))}–{_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
