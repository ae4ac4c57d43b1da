"""A TOML file read key by key, so that every refusal names the file and the line.

tomllib keeps no positions: the line of a key is found again in the text, only when something is wrong.
"""

from __future__ import annotations

import difflib
import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar

T = TypeVar("T")

_NAME: Final = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED: Final = rf"({_NAME}(?:\s*\.\s*{_NAME})*)"
_HEADER: Final = re.compile(rf"\s*(\[\[?)\s*{_DOTTED}\s*\]")
_ASSIGNMENT: Final = re.compile(rf"\s*{_DOTTED}\s*=")
_POSITION: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)\Z")

Place = tuple[str | int, ...]  # keys from the top of the file down; a number says which one of an array of tables


class ConfigError(Exception):
    """A setting that cannot be used. The message names the setting and, where it came from a file, the file and line."""

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        place = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        super().__init__(place + message)
        self.file = file
        self.line = line


class Source:
    """The text of one file, and where its keys stand."""

    def __init__(self, file: str, text: str, *, home: str) -> None:
        self._file = file
        self._text = text
        self.home = home

    def top(self) -> Table:
        """The file as a table; ConfigError if the text is not TOML."""
        try:
            return Table(self, (), tomllib.loads(self._text))
        except (ValueError, RecursionError) as error:  # tomllib's own is a ValueError, and so is that of a number without end
            message = str(error)
            position = _POSITION.search(message)
            line = int(position[1]) if position and position[1] else self._text.count("\n") + 1
            raise ConfigError(f"this is not TOML: {_POSITION.sub('', message)}", file=self._file, line=line) from None

    def error(self, place: Place, message: str) -> ConfigError:
        """What is wrong, with the line of that key, or of the nearest table around it."""
        lines = list(self._assignments())
        for depth in range(len(place), 0, -1):
            for number, found in lines:
                if found == place[:depth]:
                    return ConfigError(message, file=self._file, line=number)
        return ConfigError(message, file=self._file)

    def _assignments(self) -> Iterator[tuple[int, Place]]:
        """Line number and place of each header and each `key =`."""
        table: Place = ()
        arrays: dict[Place, int] = {}
        for number, line in enumerate(self._text.splitlines(), start=1):
            if header := _HEADER.match(line):
                table = _split(header[2])
                if header[1] == "[[":
                    arrays[table] = arrays.get(table, -1) + 1
                    table = (*table, arrays[table])
                yield number, table
            elif assignment := _ASSIGNMENT.match(line):
                yield number, table + _split(assignment[1])


def _split(dotted: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


class Table:
    """One table: each method takes a key (None if it is absent) and refuses a wrong type; `refuse_the_rest` names unknown keys."""

    def __init__(self, source: Source, place: Place, values: Mapping[str, object]) -> None:
        self._source = source
        self._place = place
        self._values = values
        self._known: list[str] = []

    def error(self, key: str, message: str) -> ConfigError:
        return self._source.error((*self._place, key), message)

    def text(self, key: str) -> str | None:
        return self._typed(key, str, "a string")

    def integer(self, key: str, *, low: int, high: int) -> int | None:
        value = self._typed(key, int, "an integer")
        if value is not None and (isinstance(value, bool) or not low <= value <= high):
            raise self.error(key, f"{key} is an integer from {low} to {high}, not {_show(value)}")
        return value

    def choice(self, key: str, choices: Mapping[str, T]) -> T | None:
        value = self.text(key)
        if value is None:
            return None
        if value not in choices:
            raise self.error(key, f"{key} is {' or '.join(map(repr, choices))}, not {value!r}")
        return choices[value]

    def path(self, key: str) -> str | None:
        value = self.text(key)
        return None if value is None else self._absolute(key, value)

    def paths(self, key: str) -> tuple[str, ...]:
        values = self._typed(key, list, "a list of strings") or []
        return tuple(self._absolute(key, value) for value in values)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; one string stands for a list of it."""
        value = self._typed(key, object, "a string or a list of strings")
        values = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            raise self.error(key, f"{key} is a string or a list of strings, not {_show(value)}")
        return tuple(values)

    def url(self, key: str, schemes: tuple[str, ...]) -> str | None:
        """A URL with one of the schemes. Where `file` is one of them an absolute path may stand for it, and what is given back is the
        path: all that is behind `file://`, as it stands there.
        """
        value = self.text(key)
        if value is None:
            return None
        of_file = "file" in schemes
        if of_file and value.startswith(("/", "~/")):
            return self._absolute(key, value)
        scheme, _, rest = value.partition("://")
        if scheme not in schemes or not rest:
            kinds = ("an absolute path or " if of_file else "") + f"a URL ({', '.join(f'{name}://' for name in schemes)})"
            raise self.error(key, f"{key} is {kinds}, not {value!r}")
        return self._absolute(key, rest) if scheme == "file" else value

    def table(self, key: str) -> Table:
        """The table of that name; an empty one if it is absent."""
        return Table(self._source, (*self._place, key), self._typed(key, dict, "a table") or {})

    def tables(self, key: str) -> list[Table]:
        """The array of tables of that name."""
        values = self._typed(key, list, f"an array of tables ([[{key}]])") or []
        if not all(isinstance(value, dict) for value in values):
            raise self.error(key, f"{key} is an array of tables ([[{key}]])")
        return [Table(self._source, (*self._place, key, number), value) for number, value in enumerate(values)]

    def refuse_the_rest(self) -> None:
        """Raise ConfigError if the table has a key that no method asked for."""
        for key in self._values:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(self._known))}"
                raise self.error(key, f"unknown key {key}; {hint}")

    def _typed(self, key: str, kind: type[T], name: str) -> T | None:
        self._known.append(key)
        value = self._values.get(key)
        if value is not None and not isinstance(value, kind):
            raise self.error(key, f"{key} is {name}, not {_show(value)}")
        return value

    def _absolute(self, key: str, value: object) -> str:
        path = posixpath.join(self._source.home, value[2:]) if isinstance(value, str) and value.startswith("~/") else value
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise self.error(key, f"{key} is an absolute path, not {_show(value)}")
        return posixpath.normpath(path)


def _show(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    return repr(value).lower() if isinstance(value, bool) else repr(value)
