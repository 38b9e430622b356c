"""Import W+ codes of another program as a table.

Without images only the code's own metrics are computed: variance and distance to the average. All
other metrics are null. With images each code is rendered and measured as in every other table,
under the same shards and keys as an inversion of these images, so that both tables can be compared
face by face.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline.alignment import AlignedFace
from pipeline.choices import CodeType
from pipeline.errors import InputError
from pipeline.interop.code_files import CodeFiles, FaceName, faces_of
from pipeline.interop.lineage import Lineage
from pipeline.interop.measuring import Measuring, match_images
from pipeline.interop.pickled_codes import Codes
from pipeline.metrics.latent_stats import residual_norm, w_avg_distance, w_plus_variance
from pipeline.metrics.registry import QUALITY
from pipeline.models import RestyleModel
from pipeline.storage import FILES_PER_SHARD, LeftOut, ReadOptions, Shard, list_shards, read_samples
from pipeline.table.card import write_card
from pipeline.table.cleanup import Orphans
from pipeline.table.local_run import LocalRun
from pipeline.table.reader import open_table
from pipeline.table.resume import ShardState
from pipeline.table.runs import RunRecord
from pipeline.table.schema import Columns
from pipeline.table.spec import TableSpec
from pipeline.table.writer import TableWriter, open_for_writing

IMPORT_VERSION = 1
_NO_STEPS = "nobody knows how many led to a code: what was measured stands under step 1"


@dataclass(frozen=True)
class ImportSettings:
    """Settings of an import; `method` is the value of that column."""

    model: str  # name or URI of the model that renders the codes
    method: str = "imported"
    latent_dtype: CodeType = "float16"
    part_size: int = 256
    files_per_shard: int = FILES_PER_SHARD  # codes or, with images, files of a folder per shard
    images: str | None = None
    sniff: bool = True  # read images without a known extension
    # Arguments of `load_model` for facts that the model's file does not have.
    encoder_type: str | None = None
    domain: str | None = None
    estimate_latent_avg: bool = False


@dataclass(frozen=True)
class Item:
    """Codes of one image, with its encoded content in an import with images."""

    key: str
    faces: Sequence[FaceName]
    uri: str
    content: bytes | None = None


# A shard of the input and its samples that have codes; None for a shard without any.
_Work = tuple[Shard, Iterable[Item] | None]


@dataclass
class Importing:
    """Import of codes with their model and the measuring against images."""

    codes: CodeFiles
    model: RestyleModel
    settings: ImportSettings
    measuring: Measuring | None = None
    lineage: Lineage | None = None  # rows of another table that the codes were refined from
    unmeasured: int = 0  # faces of this run that were not found in their image
    left_out: LeftOut = field(default_factory=LeftOut)  # by the listing of the images
    notes: list[str] = field(default_factory=list)  # messages for the user

    def __post_init__(self) -> None:
        schema = self.spec().columns.latents_schema()
        self._columns = [name for name in schema.names if name not in ("image_id", "shard")]

    def run(self, root: str) -> dict[str, Any]:
        """Write the table at `root`, or complete it; return its counts.

        Raises a `RequestError` before anything is written when names are ambiguous, codes have no
        image, or the table was made from other codes or settings.
        """
        record = RunRecord()
        faces = faces_of(self.codes.names)
        work = self._with_images(faces) if self.settings.images else self._without_images(faces)
        first = faces[0][1][0].name
        self._checked(self.codes.read(first), first)
        writer = open_for_writing(root, self.spec(), part_size=self.settings.part_size)
        record.listed = self.left_out
        with LocalRun(writer, record) as run:
            self._write(writer, work, run)
            table = open_table(root)
            if note := write_card(table, listed=self.left_out):
                self.notes.append(note)
            counts = {
                **table.verify(checksums=False),
                "unmeasured": self.unmeasured,
                "icc_ignored": record.counts.icc_ignored,
                "left_out": self.left_out.ordered(),
            }
            if self.lineage:
                counts["refined_from"] = len(self.lineage.image_ids)
                counts["without_ancestor"] = self.lineage.unmatched
            run.file.facts["imported"] = counts
        return counts

    @property
    def _icc_ignored(self) -> int:
        return self.measuring.icc_ignored if self.measuring else 0

    def spec(self) -> TableSpec:
        """Return the table's spec; its setting `codes` is the digest of the input."""
        measured: dict[str, Any] = {}
        metrics = {"best_step": "the last one: nothing was measured"}
        if self.measuring:
            measured = {
                "alignment": self.measuring.settings.result_settings(),
                "identity": self.measuring.meter.definitions["id_similarity"],
                "images": "rendered" if self.measuring.results is None else "given",
            }
            metrics = dict(self.measuring.meter.definitions)
            if not self.codes.has_steps:
                metrics["steps"] = _NO_STEPS
        settings = {
            "import": IMPORT_VERSION,
            "model": self.model.fingerprint,
            "codes": self.codes.digest,
            "method": self.settings.method,
            "measured": measured,
        }
        config = {"codes": self.codes.uri, **asdict(self.settings)}
        if self.lineage:
            settings["refined_from"] = self.lineage.digest
            config["refined_from"] = self.lineage.uri
        columns = Columns(
            self.model.n_styles,
            self.settings.latent_dtype,
            all_steps=self.codes.has_steps,
            turn_deg=bool(self.measuring and self.measuring.settings.records_turns),
        )
        layout: dict[str, Any] = {"files_per_shard": self.settings.files_per_shard}
        if self.settings.images:
            layout["sniff"] = self.settings.sniff
        return TableSpec(columns, settings, layout, config, self.model.metadata, metrics)

    def _without_images(self, faces: Sequence[tuple[str, list[FaceName]]]) -> Iterator[_Work]:
        """Yield shards of consecutive keys, without images."""
        for index, chosen in enumerate(_runs(faces, self.settings.files_per_shard)):
            names = "\n".join(face.name for _, names in chosen for face in names)
            etag = hashlib.sha256(f"{self.codes.digest}\n{names}".encode("utf-8", "replace"))
            shard = Shard(
                f"codes-{index:05d}", self.codes.uri, "folder", len(chosen), etag.hexdigest()[:32]
            )
            yield (
                shard,
                (Item(key, names, self.codes.uri_of(names[0].name)) for key, names in chosen),
            )

    def _with_images(self, faces: Sequence[tuple[str, list[FaceName]]]) -> Iterator[_Work]:
        """Return the shards of the images with their samples that have codes."""
        options = ReadOptions(sniff=self.settings.sniff)
        listing = list_shards(
            str(self.settings.images),
            files_per_shard=self.settings.files_per_shard,
            options=options,
        )
        shards = list(listing)
        self.left_out = listing.left_out
        owners = match_images(faces, shards, options)
        with_codes = {shard_id for shard_id, _ in owners}
        return (
            (shard, self._samples(shard, owners, options) if shard.shard_id in with_codes else None)
            for shard in shards
        )

    @staticmethod
    def _samples(
        shard: Shard, owners: dict[tuple[str, str], list[FaceName]], options: ReadOptions
    ) -> Iterator[Item]:
        for sample in read_samples(shard, None, options):
            faces = owners.get((shard.shard_id, sample.key))
            if faces:
                yield Item(sample.key, faces, sample.uri, sample.content)

    def _write(self, writer: TableWriter, work: Iterable[_Work], run: LocalRun) -> None:
        """Write the missing parts and delete orphaned files."""
        shards, orphans = list(work), Orphans(writer.store)
        orphans.began = run.began
        try:
            states = list(writer.states((shard for shard, _ in shards), orphans=orphans))
            pairs = list(zip(states, (items for _, items in shards), strict=True))
            run.planned(state for state, items in pairs if items is not None)
            for state, items in pairs:
                orphans.add_input(state.shard)
                if items is None:
                    # The folder has changed, and its images are in other slices now.
                    writer.clear(state.without(state.parts))
                elif not state.done:
                    self._write_shard(writer, state, items, run)
            orphans.remove(whole_input=True)
        finally:
            orphans.stop()

    def _write_shard(
        self, writer: TableWriter, state: ShardState, items: Iterable[Item], run: LocalRun
    ) -> None:
        writer.clear(state)
        shard, parts = state.shard, []
        for number, batch in enumerate(_runs(items, self.settings.part_size)):
            part = state.parts.get(number)
            if part is None:
                before = self._icc_ignored
                rows = [row for item in batch for row in self._rows(item)]
                part = writer.write_part(
                    shard, number, samples=len(batch), latents=rows, rejects=[]
                )
                run.add(part, self._icc_ignored - before)
            parts.append(part)
        writer.commit_shard(shard, parts)

    def _rows(self, item: Item) -> Iterator[dict[str, Any]]:
        aligned: dict[int, AlignedFace] = {}
        if self.measuring and item.content is not None:
            aligned = self.measuring.align(item.content)
        sha256 = hashlib.sha256(item.content).hexdigest() if item.content is not None else None
        for face in item.faces:
            codes = self._checked(self.codes.read(face.name), face.name)
            row = self._unmeasured_row(item, face, codes) | {"source_sha256": sha256}
            if face.face_index in aligned and self.measuring:
                measured = self.measuring.columns(face.name, codes, aligned[face.face_index])
                row |= measured if self.codes.has_steps else _without_steps(measured)
            elif self.measuring:
                self.unmeasured += 1
            yield self._with_best_code(row, codes)

    def _unmeasured_row(self, item: Item, face: FaceName, codes: Codes) -> dict[str, Any]:
        """Return a row with the columns known without an image; all others are null."""
        row = dict.fromkeys(self._columns)
        row |= {
            "key": item.key,
            "face_index": face.face_index,
            "n_faces": max(other.face_index for other in item.faces) + 1,
            "source_uri": item.uri,
            "method": self.settings.method,
            "refined_from": self.lineage and self.lineage.image_ids.get(face.name),
        }
        if self.codes.has_steps:
            unknown = [None] * len(codes)
            row |= {"steps": len(codes), "best_step": len(codes)}
            row |= {f"{metric}_per_step": unknown for metric in QUALITY}
            w_plus = torch.tensor(codes)[None]
            average = self.model.latent_avg.cpu()
            row["residual_norm_per_step"] = residual_norm(w_plus, average)[0].tolist()
            row["w_plus_per_step"] = codes
        return row

    def _with_best_code(self, row: dict[str, Any], codes: Codes) -> dict[str, Any]:
        best = codes[(row["best_step"] or len(codes)) - 1]
        code = torch.tensor(best)[None]
        row["w_plus"] = best
        row["w_plus_variance"] = float(w_plus_variance(code)[0])
        row["w_avg_distance"] = float(w_avg_distance(code, self.model.latent_avg.cpu())[0])
        return row

    def _checked(self, codes: Codes, name: str) -> Codes:
        """Return codes with the model's number of rows; a W code is repeated in each."""
        if codes.shape[1] == 1:
            return np.repeat(codes, self.model.n_styles, axis=1)
        if codes.shape[1] != self.model.n_styles:
            raise InputError(
                f"the code of '{name}' has {codes.shape[1]} rows, but the model "
                f"'{self.model.name}' takes {self.model.n_styles}: choose the model of the codes"
            )
        return codes


def _without_steps(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a code whose number of steps is unknown."""
    return {
        name: None if name == "best_step" or name.endswith("_per_step") else value
        for name, value in row.items()
    }


def _runs(items: Iterable[Any], length: int) -> Iterator[list[Any]]:
    source = iter(items)
    while run := list(itertools.islice(source, length)):
        yield run
