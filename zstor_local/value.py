"""Values that are made for every request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(*, order: bool = False) -> Callable[[type[T]], type[T]]:
    """A frozen dataclass with slots, for values that are made by the thousand.

    That nothing is assigned to them is the type checker's to see: what a frozen dataclass does to refuse it at run time makes its
    construction four times as slow.
    """
    return dataclass(slots=True, unsafe_hash=True, order=order)
