"""Results of a search: rows for a file, lines for people, facts for the JSON line of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.errors import printable
from pipeline.search.clusters import find_clusters
from pipeline.search.duplicates import find_duplicates, find_most_duplicates
from pipeline.search.neighbours import nearest
from pipeline.search.vectors import Vectors

SHOWN_GROUPS, SHOWN_FACES = 20, 5
_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Findings:
    """Result of one search; `batches` yields all rows, of `schema`."""

    facts: dict[str, Any]
    lines: list[str]
    schema: pa.Schema
    batches: Callable[[], Iterator[pa.RecordBatch]]


def of_neighbours(vectors: Vectors, queries: Sequence[str], values: Tensor, k: int) -> Findings:
    """Find the `k` nearest faces of `queries`, image ids or other names, with vectors `values`."""
    schema = pa.schema(
        [
            ("query", pa.string()),
            ("rank", pa.int32()),
            ("image_id", pa.string()),
            ("similarity", pa.float32()),
        ]
    )
    result = nearest(vectors, values, k, queries)
    rows: list[tuple[Any, ...]] = []
    lines: list[str] = []
    listed: list[dict[str, Any]] = []
    for query, neighbours in zip(queries, result, strict=True):
        lines.append(f"like {printable(query)}")
        shown = []
        for rank, (name, similarity) in enumerate(neighbours, 1):
            rows.append((query, rank, name, similarity))
            lines.append(f"  {similarity:7.4f}  {printable(name)}")
            shown.append({"image_id": name, "similarity": round(similarity, 6)})
        listed.append({"query": query, "neighbours": shown})
    facts = {**_compared(vectors), "like": listed}
    return Findings(facts, lines, schema, lambda: _batches(schema, [*zip(*rows, strict=True)]))


def of_duplicates(vectors: Vectors, threshold: float, *, approximate: bool = False) -> Findings:
    """Find the groups of faces that are similar by at least `threshold`; most, if `approximate`."""
    schema = pa.schema(
        [("group", pa.int64()), ("image_id", pa.string()), ("similarity", pa.float32())]
    )
    find = find_most_duplicates if approximate else find_duplicates
    result = find(vectors, threshold)
    first_rows = np.flatnonzero(np.diff(result.groups, prepend=-1))
    ends = np.append(first_rows[1:], len(result.groups))
    lines = []
    for group, (start, end) in enumerate(zip(first_rows[:SHOWN_GROUPS], ends, strict=False)):
        lines.append(f"group {group}: {end - start} faces")
        names = result.ids.slice(start, min(SHOWN_FACES, end - start)).to_pylist()
        for name, similarity in zip(names, result.similarities[start:], strict=False):
            lines.append(f"  {similarity:7.4f}  {printable(name)}")
        lines += [f"  … {end - start - SHOWN_FACES} more"] if end - start > SHOWN_FACES else []
    if result.count > SHOWN_GROUPS:
        lines.append(f"… {result.count - SHOWN_GROUPS} more groups")
    lines.append(
        f"{len(result.groups):,} of {result.rows:,} faces are in {result.count:,} groups of at "
        f"least {threshold:g}"
    )
    facts = {
        **_compared(vectors),
        "threshold": threshold,
        "approximate": approximate,
        "groups": result.count,
        "faces_in_groups": len(result.groups),
        "largest_group": int((ends - first_rows).max(initial=0)),
    }
    columns = [result.groups, result.ids, result.similarities]
    return Findings(facts, lines, schema, lambda: _batches(schema, columns))


def of_clusters(vectors: Vectors, count: int, seed: int) -> Findings:
    """Sort the faces into `count` clusters."""
    schema = pa.schema(
        [("cluster", pa.int32()), ("image_id", pa.string()), ("similarity", pa.float32())]
    )
    result = find_clusters(vectors, count, seed)

    def batches() -> Iterator[pa.RecordBatch]:
        for ids, clusters, similarities in result.assign(vectors):
            yield from _batches(schema, [clusters, ids, similarities])

    examples: dict[int, tuple[float, str]] = {}
    for ids, clusters, similarities in result.assign(vectors):
        for cluster in range(min(count, SHOWN_GROUPS)):
            places = np.flatnonzero(clusters == cluster)
            if len(places):
                best = places[similarities[places].argmax()]
                face = (float(similarities[best]), ids[int(best)].as_py())
                examples[cluster] = max(examples.get(cluster, face), face)
    lines = [
        f"cluster {cluster}: {result.sizes[cluster]:,} faces, such as {printable(name)}"
        for cluster, (_, name) in sorted(examples.items())
    ]
    if count > SHOWN_GROUPS:
        lines.append(f"… {count - SHOWN_GROUPS} more clusters")
    end = "no face changes its cluster any more" if result.converged else "stopped there"
    lines.append(f"mean similarity {result.similarity:.4f} after {result.iterations} passes; {end}")
    facts = {
        **_compared(vectors),
        "clusters": count,
        "seed": seed,
        "sizes": result.sizes,
        "mean_similarity": round(result.similarity, 6),
        "iterations": result.iterations,
        "converged": result.converged,
    }
    return Findings(facts, lines, schema, batches)


def _compared(vectors: Vectors) -> dict[str, int]:
    """Return how many faces were compared, and how many have no vector."""
    return {"faces": vectors.faces, "without_vector": vectors.missing}


def _batches(schema: pa.Schema, columns: Sequence[Iterable[Any]]) -> Iterator[pa.RecordBatch]:
    """Yield columns of equal length in batches."""
    if columns:
        whole = pa.Table.from_pydict(dict(zip(schema.names, columns, strict=True)), schema)
        yield from whole.to_batches(max_chunksize=_BATCH_ROWS)
