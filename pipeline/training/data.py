"""Training data: files of aligned uint8 crops, and the seeded sample order of batches."""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from pipeline.errors import InputError
from pipeline.storage import Store
from pipeline.storage.file_types import without_image_suffix


def random_batches(
    count: int,
    batch: int,
    seed: int,
    first: int = 0,
    shuffled: Callable[[torch.Generator], Tensor] | None = None,  # default: uniform permutation
) -> Iterator[Tensor]:
    """Yield index tensors [batch] from batch `first` on.

    Each epoch has a new order; samples that do not fill its last batch are left out. Raises
    `ValueError` when there are fewer than `batch` samples.
    """
    per_epoch = count // batch
    if not per_epoch:
        raise ValueError(f"{count} samples do not fill a batch of {batch}")
    epochs, skip = divmod(first, per_epoch)
    for epoch in itertools.count(epochs):
        generator = torch.Generator().manual_seed(seed + epoch)
        order = shuffled(generator) if shuffled else torch.randperm(count, generator=generator)
        yield from order[skip * batch : per_epoch * batch].split(batch)
        skip = 0


WINDOW = 8  # files whose crops are shuffled together; this many are in memory
INDEX = "index.json"
PAIRS = "pairs.safetensors"
FACTS = "facts"


@dataclass(frozen=True)
class CropFile:
    """Crops of one part."""

    name: str
    count: int


def put_crops(
    store: Store, name: str, images: Tensor, facts: Mapping[str, Any] | None = None
) -> None:
    """Write crops, uint8 [n, 3, h, w], as one file; `facts` is plain JSON for its header."""
    metadata = {FACTS: json.dumps(dict(facts or {}))}
    store.put(name, save_safetensors({"images": images.contiguous()}, metadata=metadata))


def read_header(store: Store, name: str) -> tuple[CropFile, dict[str, Any]]:
    """Return a file's name and number of crops, and its facts, without reading the crops."""
    with store.open(name) as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    facts: dict[str, Any] = json.loads(header["__metadata__"][FACTS])
    return CropFile(name, int(header["images"]["shape"][0])), facts


def put_index(store: Store, files: Sequence[CropFile], facts: dict[str, Any]) -> None:
    """Write the index, which marks the crops as complete.

    The order of `files` decides the order of samples: it must depend on the input alone.
    """
    listed = [[file.name, file.count] for file in files]
    store.put(INDEX, json.dumps({**facts, "files": listed}).encode())


def read_index(store: Store) -> dict[str, Any] | None:
    """Return what `put_index` wrote; None when the crops are not complete."""
    if not store.exists(INDEX):
        return None
    index: dict[str, Any] = json.loads(store.get(INDEX))
    return index


class Crops:
    """Crops by number; keeps the files used last in memory."""

    def __init__(self, store: Store, window: int = WINDOW) -> None:
        index = read_index(store)
        if index is None:
            raise InputError(f"'{store.root}' has no complete set of crops: '{INDEX}' is missing")
        self.store, self.window = store, window
        self.files = [CropFile(name, count) for name, count in index["files"]]
        self.counts = [file.count for file in self.files]
        self._starts = torch.tensor([0, *self.counts]).cumsum(0)
        self._loaded: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return sum(self.counts)

    def pairs(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets at `index` [b]: both are the crops, one tensor."""
        images = self.images(index)
        return images, images

    @property
    def name(self) -> str:
        """Name of the folder: a digest of the input and of the crop settings."""
        return self.store.root.rsplit("/", 1)[-1]

    def images(self, index: Tensor) -> Tensor:
        """Return the crops at `index` [b], uint8 [b, 3, h, w]."""
        files = torch.searchsorted(self._starts, index, right=True) - 1
        rows = index - self._starts[files]
        return torch.stack(
            [self._file(file)[row] for file, row in zip(files.tolist(), rows.tolist(), strict=True)]
        )

    def _file(self, number: int) -> Tensor:
        if number in self._loaded:
            self._loaded.move_to_end(number)
        else:
            content = self.store.get(self.files[number].name)
            self._loaded[number] = load_safetensors(content)["images"]
            while len(self._loaded) > self.window + 1:
                self._loaded.popitem(last=False)
        return self._loaded[number]


class CropPairs:
    """Pairs of crops from two sets.

    `numbers` is int64 [n, 2]: numbers in `sources` and in `targets`, in the order of the sources.
    Crops without a partner are left out.
    """

    def __init__(self, sources: Crops, targets: Crops, numbers: Tensor) -> None:
        self.sources, self.targets, self.numbers = sources, targets, numbers
        self.window = sources.window
        edges = torch.tensor(sources.counts).cumsum(0)
        files = torch.searchsorted(edges, numbers[:, 0].contiguous(), right=True)
        self.counts: list[int] = torch.bincount(files, minlength=len(edges)).tolist()

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def name(self) -> str:
        """Names of both folders, each a digest of input and crop settings."""
        return f"{self.sources.name}+{self.targets.name}"

    def pairs(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets at `index` [b], both uint8 [b, 3, h, w]."""
        source, target = self.numbers[index].T.contiguous()
        return self.sources.images(source), self.targets.images(target)


def put_pairs(store: Store, numbers: Tensor) -> None:
    """Write pair numbers, int64 [n, 2], to the sources' folder of crops."""
    store.put(PAIRS, save_safetensors({"numbers": numbers.contiguous()}))


def read_pairs(sources: Crops, targets: Crops) -> CropPairs:
    """Read the pairs that `put_pairs` wrote."""
    numbers = load_safetensors(sources.store.get(PAIRS))["numbers"]
    return CropPairs(sources, targets, numbers)


def match_keys(
    sources: Sequence[str], targets: Sequence[str]
) -> tuple[Tensor, dict[str, list[str]]]:
    """Pair crops whose image keys are equal up to an image extension.

    Returns the pairs' numbers, int64 [n, 2], and the ambiguous names: each name that more than one
    image of a set has, with the keys of these. They are not paired.
    """
    by_name: list[dict[str, list[int]]] = []
    for keys in (sources, targets):
        numbers_of: dict[str, list[int]] = {}
        for number, key in enumerate(keys):
            numbers_of.setdefault(without_image_suffix(key), []).append(number)
        by_name.append(numbers_of)
    ambiguous = {
        name: [keys[number] for number in numbers]
        for keys, numbers_of in zip((sources, targets), by_name, strict=True)
        for name, numbers in numbers_of.items()
        if len(numbers) > 1
    }
    first, second = by_name
    pairs = [
        (numbers[0], second[name][0])
        for name, numbers in first.items()
        if name in second and name not in ambiguous
    ]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), ambiguous


def windowed(counts: Sequence[int], window: int = WINDOW) -> Callable[[torch.Generator], Tensor]:
    """Return a shuffle of all samples that needs only `window` files at a time.

    It shuffles the files, and then the samples of each `window` files.
    """
    offsets = torch.tensor([0, *counts]).cumsum(0)[:-1].tolist()

    def shuffled(generator: torch.Generator) -> Tensor:
        files = torch.randperm(len(counts), generator=generator).tolist()
        pieces = []
        for first in range(0, len(files), window):
            chosen = files[first : first + window]
            inside = torch.cat([torch.arange(counts[f]) + offsets[f] for f in chosen])
            pieces.append(inside[torch.randperm(len(inside), generator=generator)])
        return torch.cat(pieces)

    return shuffled
