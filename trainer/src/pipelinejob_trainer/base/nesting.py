"""Nestings: what a layer may hand to the next one, if it is not a single tensor.

A nesting is a tuple, list, dict with string keys, named tuple or simple dataclass of tensors,
constants (None, bool, int, float, str) and further nestings. It is taken apart into **leaves**,
its tensors, and a **structure**, which says where they belong. A tensor that stands in two places
is one leaf. A **path** names a place: `output[1]["mask"]`.

    ({"x": a, "mask": b}, None, a)  ->  (a, b)  and  ({"x": 0, "mask": 1}, None, 0)
"""

import importlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any

import torch

OUTPUT = "output"
_CONSTANTS = (NoneType, bool, int, float, str)
_PLAIN: dict[str, type] = {each.__name__: each for each in (tuple, list, dict, OrderedDict, torch.Size)}
_MAX_DEPTH = 64
_MAY_BE = (
    "between layers go tensors, and tuples, lists, dicts with string keys, named tuples and simple dataclasses of"
    " tensors, None, bool, int, float and str"
)


class NestingError(Exception):
    """A value that no border can carry; the text names its path."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """The place of a tensor."""

    index: int

    def __str__(self) -> str:
        return "a tensor"


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value that is the same for every micro-batch."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[type, str]:
        return type(self.value), repr(self.value)  # so that 1, True and 1.0 differ, and a NaN is equal to itself

    def __str__(self) -> str:
        return f"{self.value!r:.80}"


@dataclass(frozen=True, slots=True)
class Branch:
    """A container: its class, the keys or positions of its parts, and their structures."""

    kind: type
    keys: tuple[str | int, ...]
    parts: "tuple[Structure, ...]"

    def __str__(self) -> str:
        return f"{self.kind.__name__} of {len(self.parts)}"


Structure = Leaf | Constant | Branch
TENSOR = Leaf(0)  # of what is no nesting, but a tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A nesting on its way from one stage to the next.

    `is_wanted` says which leaves need a gradient, `is_shared` which use memory of another leaf.
    """

    structure: Structure
    leaves: tuple[torch.Tensor, ...]
    is_wanted: tuple[bool, ...]
    is_shared: tuple[bool, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors, each once."""
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def wanted(self) -> tuple[torch.Tensor, ...]:
        """The leaves that need a gradient."""
        return tuple(leaf for leaf, is_wanted in zip(self.leaves, self.is_wanted, strict=True) if is_wanted)

    def nested(self, leaves: Sequence[torch.Tensor]) -> Any:
        """Return the nesting, of these leaves."""
        return unflatten(self.structure, leaves)


Passed = torch.Tensor | Parcel  # what one stage gives to the next
Gradients = torch.Tensor | tuple[torch.Tensor, ...]  # what it is given back: of the tensor, or of each wanted leaf


def flatten(value: Any) -> tuple[Structure, tuple[torch.Tensor, ...]]:
    """Take a nesting apart. Raises NestingError."""
    leaves: list[torch.Tensor] = []
    structure = _flatten(value, OUTPUT, leaves, {}, _MAX_DEPTH)
    return structure, tuple(leaves)


def tensors(value: Any) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a nesting, each once; what no border can carry is passed over."""
    found: dict[int, torch.Tensor] = {}
    _collect(value, found, _MAX_DEPTH)
    return tuple(found.values())


def unflatten(structure: Structure, leaves: Sequence[torch.Tensor]) -> Any:
    """Put a nesting together again."""
    if isinstance(structure, Leaf):
        return leaves[structure.index]
    if isinstance(structure, Constant):
        return structure.value
    parts = [unflatten(part, leaves) for part in structure.parts]
    kind: Any = structure.kind
    if issubclass(kind, dict):
        return kind(zip(structure.keys, parts, strict=True))
    if kind in _PLAIN.values():
        return kind(parts)
    return kind(**dict(zip(map(str, structure.keys), parts, strict=True)))


def parcel(structure: Structure, leaves: Sequence[torch.Tensor], is_wanted: Sequence[bool]) -> Parcel:
    """Return a parcel of tensors that have a graph no more."""
    return Parcel(
        structure=structure,
        leaves=tuple(leaf.detach() for leaf in leaves),
        is_wanted=tuple(is_wanted),
        is_shared=tuple(_is_shared(leaves)),
    )


def paths(structure: Structure, path: str = OUTPUT) -> dict[int, str]:
    """Return the first path of each leaf, by its index."""
    if isinstance(structure, Leaf):
        return {structure.index: path}
    found: dict[int, str] = {}
    if isinstance(structure, Branch):
        for key, part in zip(structure.keys, structure.parts, strict=True):
            found = paths(part, _below(path, structure.kind, key)) | found
    return found


def difference(now: Structure, before: Structure, path: str = OUTPUT) -> str | None:
    """Say where two structures first differ, and how; None where they are equal."""
    if now == before:
        return None
    if isinstance(now, Branch) and isinstance(before, Branch) and now.kind is before.kind:
        if now.keys != before.keys:
            return f"{path} has {_keys(now)} where it had {_keys(before)}"
        pairs = zip(now.keys, now.parts, before.parts, strict=True)
        found = (difference(one, other, _below(path, now.kind, key)) for key, one, other in pairs)
        return next(filter(None, found), None)
    if isinstance(now, Leaf) and isinstance(before, Leaf):
        return f"{path} is another tensor's, or its own, where it was not"
    return f"{path} is {now} where it was {before}"


def as_json(structure: Structure) -> Any:
    """Return a structure as JSON has it. Raises NestingError for a class that the other end cannot find."""
    if isinstance(structure, Leaf):
        return structure.index
    if isinstance(structure, Constant):
        value = structure.value
        return [type(value).__name__, value.hex() if type(value) is float else value]
    return {
        "kind": _name(structure.kind),
        "keys": list(structure.keys),
        "parts": [as_json(part) for part in structure.parts],
    }


def from_json(value: Any) -> Structure:
    """Return the structure that was written."""
    if isinstance(value, int):
        return Leaf(value)
    if isinstance(value, list):
        kind, constant = value
        return Constant(float.fromhex(constant) if kind == "float" else constant)
    return Branch(_kind(value["kind"]), tuple(value["keys"]), tuple(from_json(part) for part in value["parts"]))


def described(value: object) -> str:
    """Say what a nesting holds, for messages."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    try:
        structure, leaves = flatten(value)
    except NestingError:
        return type(value).__name__
    named = sorted((place, path.removeprefix(OUTPUT)) for place, path in paths(structure).items())
    inside = ", ".join(f"{path}: {described(leaves[place])}" for place, path in named[:_MAX_DESCRIBED])
    more = ", ..." if len(named) > _MAX_DESCRIBED else ""
    return f"{type(value).__name__} ({inside}{more})" if inside else type(value).__name__


_MAX_DESCRIBED = 6


def _flatten(value: Any, path: str, leaves: list[torch.Tensor], seen: dict[int, int], depth: int) -> Structure:
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_meta or value.is_nested:
            what = "on the meta device" if value.is_meta else "nested" if value.is_nested else f"{value.layout}"
            raise NestingError(f"{path} is a tensor that is {what}; give a dense one, as to_dense() makes")
        if id(value) not in seen:
            seen[id(value)] = len(leaves)
            leaves.append(value)
        return Leaf(seen[id(value)])
    if type(value) in _CONSTANTS:
        return Constant(value)
    if not depth:
        raise NestingError(f"{path[:200]}... lies deeper than {_MAX_DEPTH} containers; flatten it")
    keys, parts = _parts(value, path)
    kind = type(value)
    inside = (
        _flatten(part, _below(path, kind, key), leaves, seen, depth - 1) for key, part in zip(keys, parts, strict=True)
    )
    return Branch(kind, keys, tuple(inside))


def _collect(value: Any, found: dict[int, torch.Tensor], depth: int) -> None:
    if isinstance(value, torch.Tensor):
        found[id(value)] = value
    elif depth and type(value) not in _CONSTANTS:
        try:
            _, parts = _parts(value, OUTPUT)
        except NestingError:
            return
        for part in parts:
            _collect(part, found, depth - 1)


def _parts(value: Any, path: str) -> tuple[tuple[str | int, ...], Sequence[Any]]:
    kind = type(value)
    if kind in (tuple, list, torch.Size):
        return tuple(range(len(value))), value
    if kind in (dict, OrderedDict):
        strange = next((key for key in value if type(key) is not str), None)
        if strange is not None:
            raise NestingError(f"{path} has the key {strange!r:.80}, a {type(strange).__name__}; keys must be str")
        return tuple(value), list(value.values())
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return kind._fields, value
    if is_dataclass(value) and not isinstance(value, type):
        _check_simple(value, path)
        names = tuple(field.name for field in fields(value))
        return names, [getattr(value, name) for name in names]
    raise NestingError(f"{path} is {kind.__module__}.{kind.__qualname__}; {_MAY_BE}")


def _check_simple(value: Any, path: str) -> None:
    """Refuse a dataclass that its fields alone do not make again."""
    kind = type(value)
    own = [field for field in fields(value) if field.init]
    is_simple = (
        kind.__dataclass_params__.init
        and not hasattr(kind, "__post_init__")
        and len(own) == len(fields(value))
        and not isinstance(value, (dict, list, tuple))
        and len(getattr(value, "__dict__", own)) in (0, len(own))
    )
    if not is_simple:
        raise NestingError(
            f"{path} is {kind.__qualname__}, a dataclass that is more than its fields (__post_init__, init=False, a"
            " dict's heir, attributes beside them); give a dict"
        )


def _is_shared(leaves: Sequence[torch.Tensor]) -> Iterator[bool]:
    """Return, for each leaf, whether another one may use some of its memory."""
    extents = [_extent(leaf) for leaf in leaves]
    for mine, (storage, first, end) in enumerate(extents):
        yield any(
            storage == other and first < last and begin < end
            for place, (other, begin, last) in enumerate(extents)
            if place != mine
        )


def _extent(leaf: torch.Tensor) -> tuple[int, int, int]:
    if not leaf.numel():
        return 0, 0, 0
    first = int(leaf.storage_offset()) * leaf.itemsize
    reach = sum((size - 1) * int(stride) for size, stride in zip(leaf.shape, leaf.stride(), strict=True))
    return leaf.untyped_storage()._cdata, first, first + (reach + 1) * leaf.itemsize  # noqa: SLF001 # its identity


def _below(path: str, kind: type, key: str | int) -> str:
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f'{path}["{key}"]' if issubclass(kind, dict) else f"{path}.{key}"


def _keys(branch: Branch) -> str:
    if branch.kind in (tuple, list, torch.Size):
        return f"{len(branch.keys)} parts"
    return f"the keys {', '.join(map(str, branch.keys)):.200}"


def _name(kind: type) -> str:
    if _PLAIN.get(kind.__name__) is kind:
        return kind.__name__
    name = f"{kind.__module__}:{kind.__qualname__}"
    try:
        is_found = _kind(name) is kind
    except (ImportError, AttributeError):
        is_found = False
    if not is_found:
        raise NestingError(
            f"{OUTPUT} holds a {kind.__qualname__}, which the next stage cannot find as {name}; define the class at the"
            " top of a module, or give a dict"
        )
    return name


def _kind(name: str) -> type:
    if name in _PLAIN:
        return _PLAIN[name]
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    kind: type = found
    return kind
