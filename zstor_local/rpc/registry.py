"""The one list of methods: signature, types and docstring make the binding, the checks, the OpenRPC document and the help.

    def register(registry: Registry, service: Service) -> None:
        @registry.method("object.stat", errors=[NotFound])
        async def stat(call: Call, /, *, key: Key, namespace: Namespace | None = None) -> Stat:
            \"\"\"What is known of an object, without reading it.\"\"\"
            return await service.stat(...)

The first parameter is the call, positional only. Parameters work by name and, in the order given, by position; those that several
methods take alike are members of a `TypedDict` (`**more: Unpack[...]`), and come last. Annotations are
compiled when the method is registered (`schema.py` has the table); they must be resolvable from the module.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import typing
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, TypeVar

from zstor_local.errors import InvalidParams, MethodNotFound, ZstorError
from zstor_local.rpc.library import Success
from zstor_local.rpc.schema import Mismatch, Schemas, Type
from zstor_local.rpc.strict_json import Json
from zstor_local.store.later import Later

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., object])
Soon: TypeAlias = Later[T] | Awaitable[T]  # the result of a method that answers at once, or has to wait in a task
_BOUND: Final = Success()  # for jsonrpcserver: the method itself runs later, in a task of its own


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as clients see it."""

    name: str
    type: Type
    required: bool


@dataclass(frozen=True, slots=True)
class Method:
    """A method as clients see it."""

    name: str
    summary: str
    description: str
    parameters: tuple[Parameter, ...]
    variadic: Parameter | None
    result: Type
    errors: tuple[type[ZstorError], ...]
    urgent: bool
    long: bool
    plain: bool

    @property
    def synopsis(self) -> str:
        """`name(key, namespace?)`"""
        texts = [parameter.name if parameter.required else f"{parameter.name}?" for parameter in self.parameters]
        if self.variadic:
            texts.append(f"{self.variadic.name}...")
        return f"{self.name}({', '.join(texts)})"


class Bindable(Protocol):
    """The call that a binding fills."""

    bound: Callable[[], object] | None
    refused: InvalidParams | None


class Registry:
    """Methods by name."""

    def __init__(self) -> None:
        self.schemas: Final = Schemas()
        self.bindings: Final[dict[str, Callable[..., object]]] = {}  # what jsonrpcserver is given
        self._methods: dict[str, Method] = {}

    def method(
        self,
        name: str,
        summary: str | None = None,
        *,
        errors: Sequence[type[ZstorError]] = (),
        urgent: bool = False,
        long: bool = False,
    ) -> Callable[[Function], Function]:
        """Register a function. The summary and description come from its docstring.

        An async one runs in a task of its own. A plain one is called where requests are read, so it must be quick: it answers at
        once, or with a `Later`, or with what has to be awaited in a task.

        `urgent` calls do not wait their turn; `long` ones may be detached, and go on as a job.
        """

        def register(function: Function) -> Function:
            if name in self._methods:
                raise ValueError(f"{name} is taken")
            hints = typing.get_type_hints(function, include_extras=True)
            signature = _positional(_unpacked(inspect.signature(function), hints), name)
            parameters = [self._parameter(parameter, hints) for parameter in [*signature.parameters.values()][1:]]
            text = inspect.getdoc(function) or ""
            first, _, rest = text.partition("\n")
            if not (summary or first):
                raise TypeError(f"{name} has no docstring")
            variadic = parameters.pop() if _is_variadic(signature) else None
            method = Method(
                name=name,
                summary=summary or first,
                description=rest.strip() if summary is None else text,
                parameters=tuple(parameters),
                variadic=variadic,
                result=self.schemas.compile(_result(hints["return"])),
                errors=tuple(sorted({*errors}, key=lambda error: error.code)),
                urgent=urgent,
                long=long,
                plain=not inspect.iscoroutinefunction(function),
            )
            self._methods[name] = method
            self.bindings[name] = _binding(function, method, signature)
            return function

        return register

    def _parameter(self, parameter: inspect.Parameter, hints: Mapping[str, object]) -> Parameter:
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
        return Parameter(parameter.name, self.schemas.compile(hints[parameter.name]), required)

    def __getitem__(self, name: str) -> Method:
        return self._methods[name]

    def __contains__(self, name: str) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[Method]:
        """By name."""
        return iter(sorted(self._methods.values(), key=lambda method: method.name))

    def unknown(self, name: str) -> MethodNotFound:
        """The error for a name that is not registered."""
        close = nearest(name, self._methods)
        return MethodNotFound(f'no method "{name[:64]}"', hint=f'did you mean "{close}"?' if close else "rpc.methods lists them")


def nearest(name: str, known: Sequence[str] | Mapping[str, object]) -> str | None:
    """The known name most like another."""
    return next(iter(difflib.get_close_matches(name[:64], known, n=1)), None)


def explain(method: Method, params: Json) -> InvalidParams:
    """Why parameters do not fit a signature, in words: jsonrpcserver's own are those of Python."""
    known = [parameter.name for parameter in method.parameters]
    required = [parameter.name for parameter in method.parameters if parameter.required]
    if isinstance(params, list):
        if len(params) > len(known):
            return InvalidParams(f"{method.name} takes at most {len(known)} parameters, {len(params)} given", hint=method.synopsis)
        missing = [name for name in required if name not in known[: len(params)]]
    else:
        given = params if isinstance(params, dict) else {}
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            close = nearest(unknown, known)
            hint = f'did you mean "{close}"?' if close else method.synopsis
            return InvalidParams(f'{method.name} has no parameter "{unknown[:64]}"', hint=hint, parameter=unknown[:64])
        missing = [name for name in required if name not in given]
    return InvalidParams(f"{method.name} needs {', '.join(missing)}", hint=method.synopsis)


def _unpacked(signature: inspect.Signature, hints: dict[str, object]) -> inspect.Signature:
    """The signature with the members of the `TypedDict` that a function takes as `**name: Unpack[…]`: parameters that may be left out.
    Their types are put into `hints`.
    """
    *others, last = signature.parameters.values()
    if last.kind is not last.VAR_KEYWORD or typing.get_origin(hints.get(last.name)) is not typing.Unpack:
        return signature
    members = typing.get_type_hints(typing.get_args(hints[last.name])[0], include_extras=True)
    hints.update(members)
    return signature.replace(parameters=[*others, *(inspect.Parameter(each, last.KEYWORD_ONLY, default=None) for each in members)])


def _positional(signature: inspect.Signature, name: str) -> inspect.Signature:
    """The signature with its keyword-only parameters usable by position too."""
    first, *others = signature.parameters.values()
    if first.kind is not first.POSITIONAL_ONLY:
        raise TypeError(f"{name}: the first parameter is the call, positional only")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in others):
        raise TypeError(f"{name}: parameters have names")
    named = [
        parameter.replace(kind=parameter.POSITIONAL_OR_KEYWORD) if parameter.kind is parameter.KEYWORD_ONLY else parameter
        for parameter in others
    ]
    try:
        return signature.replace(parameters=[first, *named])
    except ValueError as error:
        raise TypeError(f"{name}: required parameters come first, so that positions mean something") from error


class NamedFirst(inspect.Signature):
    """A signature that sees at once whether the call and named arguments alone fit; everything else is bound as ever.

    jsonrpcserver binds only to learn whether it can, and drops the result: naming the parameters again costs as much as a small call.
    """

    __slots__ = ("_known", "_needed")

    _known: frozenset[str]
    _needed: frozenset[str]

    @classmethod
    def of(cls, signature: inspect.Signature) -> NamedFirst:
        made = cls([*signature.parameters.values()], return_annotation=signature.return_annotation)
        _, *named = [each for each in signature.parameters.values() if each.kind is not each.VAR_POSITIONAL]
        made._known = frozenset(each.name for each in named)
        made._needed = frozenset(each.name for each in named if each.default is each.empty)
        return made

    def bind(self, /, *args: object, **kwargs: object) -> inspect.BoundArguments:
        """TypeError where `inspect.Signature.bind` raises it; the arguments are listed only where it is asked."""
        if len(args) == 1 and self._needed <= kwargs.keys() <= self._known:
            return inspect.BoundArguments(self, OrderedDict())
        return super().bind(*args, **kwargs)


def _result(hint: object) -> object:
    """The type of the result itself, of a method that gives it `Soon`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        for each in typing.get_args(hint):
            if typing.get_origin(each) is Later:
                return typing.get_args(each)[0]
    return hint


def _is_variadic(signature: inspect.Signature) -> bool:
    *_, last = signature.parameters.values()
    return last.kind is last.VAR_POSITIONAL


def _binding(function: Callable[..., object], method: Method, signature: inspect.Signature) -> Callable[..., object]:
    """What jsonrpcserver calls: checks the arguments and leaves the method, ready to run, on the call."""
    names = [parameter.name for parameter in method.parameters]
    checks = {parameter.name: parameter.type.check for parameter in method.parameters}
    variadic = method.variadic

    def bind(call: Bindable, /, *positional: Json, **named: Json) -> object:
        for name, value in zip(names, positional, strict=False):
            named[name] = value
        arguments: dict[str, object] = {}
        for name, value in named.items():
            try:
                arguments[name] = checks[name](value)
            except Mismatch as mismatch:
                return _refuse(call, name, mismatch)
        if variadic is None:
            call.bound = functools.partial(function, call, **arguments)
            return _BOUND
        rest = []
        for value in positional[len(names) :]:
            try:
                rest.append(variadic.type.check(value))
            except Mismatch as mismatch:
                return _refuse(call, variadic.name, mismatch)
        call.bound = functools.partial(function, call, *(arguments[name] for name in names if name in arguments), *rest)
        return _BOUND

    bind.__signature__ = NamedFirst.of(signature)  # type: ignore[attr-defined]  # kept: working it out costs 20 µs a call
    return bind


def _refuse(call: Bindable, name: str, mismatch: Mismatch) -> object:
    """A value on the call, not an exception: jsonrpcserver would log it, and answer with its text."""
    call.refused = InvalidParams(f"{name} {mismatch}", parameter=name)
    return _BOUND
