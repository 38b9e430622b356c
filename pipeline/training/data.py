"""Training data: files of aligned uint8 crops, and the seeded order of samples in batches."""

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
from pipeline.storage.file_types import IMAGE_SUFFIXES


def random_batches(
    count: int,
    batch: int,
    seed: int,
    first: int = 0,
    shuffled: Callable[[torch.Generator], Tensor] | None = None,  # default: all samples alike
) -> Iterator[Tensor]:
    """Index tensors [batch] from batch `first` on; each epoch in a fresh order, its rest left out.

    Raises `ValueError` where there are fewer than `batch` samples.
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


WINDOW = 8  # files whose crops are mixed; so many are in memory
INDEX = "index.json"
PAIRS = "pairs.safetensors"
FACTS = "facts"


@dataclass(frozen=True)
class CropFile:
    """One part's crops."""

    name: str
    count: int


def put_crops(
    store: Store, name: str, images: Tensor, facts: Mapping[str, Any] | None = None
) -> None:
    """Write crops, uint8 [n, 3, h, w], as one file, with plain `facts` about them in its header."""
    told = {FACTS: json.dumps(dict(facts or {}))}
    store.put(name, save_safetensors({"images": images.contiguous()}, metadata=told))


def read_header(store: Store, name: str) -> tuple[CropFile, dict[str, Any]]:
    """A file of crops and the facts about them, without reading the crops."""
    with store.open(name) as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    facts: dict[str, Any] = json.loads(header["__metadata__"][FACTS])
    return CropFile(name, int(header["images"]["shape"][0])), facts


def put_index(store: Store, files: Sequence[CropFile], facts: dict[str, Any]) -> None:
    """Say that the crops are complete; files in an order that the input alone decides."""
    listed = [[file.name, file.count] for file in files]
    store.put(INDEX, json.dumps({**facts, "files": listed}).encode())


def read_index(store: Store) -> dict[str, Any] | None:
    """What `put_index` wrote; None where the crops are not complete."""
    if not store.exists(INDEX):
        return None
    index: dict[str, Any] = json.loads(store.get(INDEX))
    return index


class Crops:
    """Crops by their number, the last few files in memory."""

    def __init__(self, store: Store, window: int = WINDOW) -> None:
        index = read_index(store)
        if index is None:
            raise InputError(f"'{store.root}' holds no complete set of crops")
        self.store, self.window = store, window
        self.files = [CropFile(name, count) for name, count in index["files"]]
        self.counts = [file.count for file in self.files]
        self._starts = torch.tensor([0, *self.counts]).cumsum(0)
        self._loaded: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return sum(self.counts)

    def wanted(self, index: Tensor) -> Tensor:
        """What the encoder is to give for the crops at `index`: these."""
        return self.images(index)

    @property
    def name(self) -> str:
        """That of their folder, which tells what they were cut from and how."""
        return self.store.root.rsplit("/", 1)[-1]

    def images(self, index: Tensor) -> Tensor:
        """Crops at `index` [b], uint8 [b, 3, h, w]."""
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


class Pairs:
    """Two sets of crops, and which of the one belongs to which of the other.

    `numbers` is int64 [n, 2]: numbers in `sources` and in `targets`, in the order of the sources.
    What has no partner is left out.
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
        """What tells what both were cut from and how."""
        return f"{self.sources.name}+{self.targets.name}"

    def images(self, index: Tensor) -> Tensor:
        """What the encoder is shown, uint8 [b, 3, h, w]."""
        return self.sources.images(self.numbers[index, 0])

    def wanted(self, index: Tensor) -> Tensor:
        """What it is to give for them, uint8 [b, 3, h, w]."""
        return self.targets.images(self.numbers[index, 1])


def put_pairs(store: Store, numbers: Tensor) -> None:
    """Keep which crops belong together, int64 [n, 2], beside the sources' crops."""
    store.put(PAIRS, save_safetensors({"numbers": numbers.contiguous()}))


def read_pairs(sources: Crops, targets: Crops) -> Pairs:
    """The pairs that `put_pairs` wrote."""
    numbers = load_safetensors(sources.store.get(PAIRS))["numbers"]
    return Pairs(sources, targets, numbers)


def match_keys(
    sources: Sequence[str], targets: Sequence[str]
) -> tuple[Tensor, dict[str, list[str]]]:
    """Pair crops by the keys of their images, without an image's extension: numbers [n, 2].

    Also the names that several images of one set have, with their keys: such have no partner that
    can be told.
    """
    places: list[dict[str, list[int]]] = []
    for keys in (sources, targets):
        found: dict[str, list[int]] = {}
        for number, key in enumerate(keys):
            found.setdefault(without_image_suffix(key), []).append(number)
        places.append(found)
    several = {
        name: [keys[number] for number in numbers]
        for keys, found in zip((sources, targets), places, strict=True)
        for name, numbers in found.items()
        if len(numbers) > 1
    }
    first, second = places
    pairs = [
        (numbers[0], second[name][0])
        for name, numbers in first.items()
        if name in second and name not in several
    ]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), several


def without_image_suffix(key: str) -> str:
    """`key` without the extension of an image; members of archives have none."""
    stem, dot, suffix = key.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else key


def windowed(counts: Sequence[int], window: int = WINDOW) -> Callable[[torch.Generator], Tensor]:
    """An order of all samples that stays within `window` files at a time.

    The files are shuffled, and then what each `window` of them holds.
    """
    starts = torch.tensor([0, *counts]).cumsum(0)[:-1].tolist()

    def shuffled(generator: torch.Generator) -> Tensor:
        files = torch.randperm(len(counts), generator=generator).tolist()
        pieces = []
        for first in range(0, len(files), window):
            chosen = files[first : first + window]
            inside = torch.cat([torch.arange(counts[f]) + starts[f] for f in chosen])
            pieces.append(inside[torch.randperm(len(inside), generator=generator)])
        return torch.cat(pieces)

    return shuffled
