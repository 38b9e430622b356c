"""Read a pickle without executing it, with a machine for the few opcodes that data need.

Python's own unpickler, even with every name refused, lets a file of a hundred bytes allocate
gigabytes: a memo slot with a huge index, `bytes(10**9)`, one text encoded a thousand times. Here a
file can only create small records and slices of itself.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pipeline.errors import InputError

# Data files have kilobytes of numbers per few opcodes; only small files may be mostly names.
_BYTES_PER_STEP, _FREE_STEPS = 16, 10_000

_VALUES = {
    *("BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINFLOAT", "LONG1"),
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NEW: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME", "STOP"}


class Record(Protocol):
    """Stand-in for an object, which receives the state in the pickle."""

    def __setstate__(self, state: tuple[Any, ...]) -> None: ...


def read_pickle(
    content: bytes,
    names: Mapping[str, Callable[..., Any]],
    records: tuple[type[Record], ...],
    purpose: str = "a dictionary of codes",
) -> Any:
    """Return the object in the pickle `content` (protocol 2 and later).

    `names` maps each name (`module.name`) that the pickle may call to a stand-in; these calls are
    the only code that runs. `records` are the types that may receive a state, and `purpose` says in
    errors what is read. Every other name and opcode is refused with an `InputError`; a damaged
    pickle raises `ValueError`, `LookupError` or `TypeError`.
    """
    machine = _Machine(names, records, purpose)
    left = len(content) // _BYTES_PER_STEP + _FREE_STEPS
    for code, argument, _ in pickletools.genops(content):
        machine.step(code.name, argument)
        left -= 1
        if left < 0:
            raise InputError(f"it has more opcodes than {len(content)} bytes of data need")
    (result,) = machine.stack
    return result


class _Machine:
    def __init__(
        self,
        names: Mapping[str, Callable[..., Any]],
        records: tuple[type[Record], ...],
        purpose: str,
    ) -> None:
        self.stack: list[Any] = []
        self._names, self._records, self._purpose = names, records, purpose
        self._below: list[list[Any]] = []  # stacks below each mark
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            "MARK": self._mark,
            "TUPLE": self._tuple,
            "APPEND": lambda _: self._append([self.stack.pop()]),
            "APPENDS": lambda _: self._append(self._to_mark()),
            "SETITEM": lambda _: self._set([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self._set(self._to_mark()),
            "MEMOIZE": lambda _: self._memo.update({len(self._memo): self.stack[-1]}),
            "BINPUT": lambda slot: self._memo.update({slot: self.stack[-1]}),
            "LONG_BINPUT": lambda slot: self._memo.update({slot: self.stack[-1]}),
            "BINGET": lambda slot: self.stack.append(self._memo[slot]),
            "LONG_BINGET": lambda slot: self.stack.append(self._memo[slot]),
            "GLOBAL": lambda name: self._name(*name.split(" ", 1)),
            "STACK_GLOBAL": lambda _: self._name(self.stack.pop(-2), self.stack.pop()),
            "ADDITEMS": lambda _: self._add(self._to_mark()),
            "REDUCE": self._call,
            "NEWOBJ": self._call,
            "BUILD": self._give_state,
        }

    def step(self, code: str, argument: Any) -> None:
        """Execute one opcode."""
        if code in _VALUES:
            self.stack.append(argument)
        elif code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code])
        elif code in _NEW:
            self.stack.append(_NEW[code]())
        elif code in _TUPLES:
            count = _TUPLES[code]
            if len(self.stack) < count:
                raise ValueError("a tuple of more items than the stack has")
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif code in self._steps:
            self._steps[code](argument)
        elif code not in _NOTHING:
            raise InputError(f"it has the opcode {code}, which {self._purpose} does not need")

    def _mark(self, _: Any) -> None:
        self._below.append(self.stack)
        self.stack = []

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def _tuple(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(tuple(items))

    def _append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("items for something that is not a list")
        self.stack[-1].extend(items)

    def _add(self, items: list[Any]) -> None:
        # Only texts: numbers can be chosen so that all of their hashes collide.
        if type(self.stack[-1]) is not set or not all(type(item) is str for item in items):
            raise TypeError("items for something that is not a set of names")
        self.stack[-1].update(items)

    def _set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise TypeError("items for something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                description = str(key) if isinstance(key, int) else f"a {type(key).__name__}"
                raise InputError(f"it has the key {description}, expected a file's name")
            self.stack[-1][key] = value

    def _name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is not text")
        stand_in = self._names.get(f"{module}.{name}")
        if stand_in is None:
            raise InputError(f"it names {module}.{name}, which {self._purpose} does not need")
        self.stack.append(stand_in)

    def _call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not callable(function) or type(arguments) is not tuple:
            raise TypeError("a call of something that is not callable")
        self.stack.append(function(*arguments))

    def _give_state(self, _: Any) -> None:
        state, record = self.stack.pop(), self.stack[-1]
        if not isinstance(record, self._records) or type(state) is not tuple:
            raise TypeError("a state for an object that has none")
        record.__setstate__(state)
