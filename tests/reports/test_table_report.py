"""A report is one file that loads nothing, runs no text of a table, and says what it holds."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import report
from pipeline.errors import RequestError
from pipeline.models import load_model
from pipeline.reports import table_report
from pipeline.reports.face_pictures import FacePicture
from pipeline.reports.report_extras import MOST_COMPARED, ReportExtras, similar_faces
from pipeline.reports.table_report import DEFAULT_ROWS, read_report_data, report_html
from pipeline.storage import Store
from pipeline.table import Columns, open_table
from pipeline.table.selection import Selection
from tests.conftest import Bucket
from tests.reports.report_table import HOSTILE, faces, write_faces
from tests.table.rows import N_STYLES


class Page(HTMLParser):
    """Elements of a page: (tag, attributes) in order, and its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.code: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.code.setdefault(self.elements[-1][0], data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(root: object, **selection: Any) -> str:
    chosen = Selection(open_table(str(root)), **selection)
    return report_html(read_report_data(chosen))


def test_the_page_loads_nothing_and_runs_only_its_script(tmp_path: Path) -> None:
    write_faces(tmp_path / "table", faces(12))
    text = page_of(tmp_path / "table")
    page = Page(text)
    links = [value for _, attributes in page.elements for value in
             (attributes.get("src"), attributes.get("href")) if value]  # fmt: skip
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert not re.search(r"url\(|@import|//[a-z]+\.[a-z]", page.code["style"] + page.code["script"])
    assert not {name for _, attributes in page.elements for name in attributes} & {
        "style",
        "onload",
    }
    (policy,) = [meta["content"] or "" for meta in page.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy
    for kind in ("script", "style"):
        (element,) = [name for name, _ in page.elements if name == kind]
        digest = base64.b64encode(hashlib.sha256(page.code[element].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    rows = faces(5)
    for index, row in enumerate(rows):
        row |= {"key": f"{HOSTILE}{index}", "source_sha256": "ab" * 32}
    write_faces(tmp_path / "table", rows, model={"name": HOSTILE, "licence": HOSTILE})
    text = page_of(tmp_path / "table", where=f"key <> '{HOSTILE.replace(chr(39), chr(39) * 2)}'")
    page = Page(text)
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "stolen=1" in text
    assert "\u202e" not in text
    assert "{{7*7}}" in text


def test_pictures_are_embedded_only_on_request(
    tiny_bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = faces(3)
    for index, row in enumerate(rows):
        row["w_plus"] = np.full((10, 512), index, np.float16)
        row["aligned_jpeg"] = jpeg(index)
    # The source of the best face is read again, and is not there.
    min(rows, key=lambda row: row["lpips"])["aligned_jpeg"] = None
    spec = {
        "columns": Columns(10, aligned_jpeg=True),
        "config": {"model": tiny_bundle},
        "settings": {"model": load_model(tiny_bundle).fingerprint, "alignment": {}},
    }
    write_faces(tmp_path / "table", rows, **spec)
    arguments = ["--table", str(tmp_path / "table"), "--output", str(tmp_path / "report.html")]
    for more, pictures, images in (([], 0, 0), (["--faces"], 3, 2 * 4 - 1)):
        assert report.main([*arguments, "--duplicates", "0", *more]) == 0
        line = json.loads(capsys.readouterr().out.splitlines()[-1])
        text = (tmp_path / "report.html").read_text()
        assert line["bytes"] == len(text.encode())
        page = Page(text)
        assert (line["pictures"], len(page.all("img"))) == (pictures, images)
        assert ("holds no pictures of people" in text) is (not more)
        assert "Licence of the model: MIT" in text
        assert text.count('class="absent"') == len(more)
    drawn = {str(image["src"]).partition(",")[2] for image in page.all("img")}
    assert {Image.open(io.BytesIO(base64.b64decode(each))).size for each in drawn} == {(64, 64)}
    assert len(drawn) == 5


def jpeg(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (40 * level, 90, 160)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_file_is_bounded_whatever_the_names(tmp_path: Path) -> None:
    """Names may have 4,096 bytes, of characters that HTML writes in five."""
    rows = faces(100)
    for row in rows:
        row["key"] += "&" * 4000
    write_faces(tmp_path / "table", rows)
    chosen = Selection(open_table(str(tmp_path / "table")))
    few, more = (read_report_data(chosen, limit) for limit in (16, 96))
    assert (len(few.rows), len(more.rows), more.numbers.faces) == (16, 96, 100)
    sizes = [len(report_html(data).encode()) for data in (few, more)]
    assert sizes[0] + (DEFAULT_ROWS - 16) * (sizes[1] - sizes[0]) / 80 < 5_000_000
    assert "96 of 100 faces" in report_html(more)


def test_a_map_of_too_many_faces_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_faces(tmp_path / "table", faces(12))
    assert 'id="map"' in page_of(tmp_path / "table")
    monkeypatch.setattr(table_report, "MOST_MAPPED", 11)
    text = page_of(tmp_path / "table")
    assert 'id="map"' not in text
    assert "The map of codes is left out: it has at most 11 faces." in text


def test_a_table_in_a_bucket_is_reported(s3: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    write_faces(f"{s3.uri}/table", faces(5), parts=2)
    flags = ["--table", f"{s3.uri}/table", "--rows", "3", "--where", "lpips < 1"]
    assert report.main([*flags, "--output", f"{s3.uri}/out/r.html", "--duplicates", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 3
    assert b"3 of 5 faces" in Store(f"{s3.uri}/out").get("r.html")


def test_a_selection_without_faces_is_refused(tmp_path: Path) -> None:
    write_faces(tmp_path / "table", faces(2))
    with pytest.raises(RequestError, match="selects no face"):
        page_of(tmp_path / "table", where="lpips > 9")


@pytest.mark.parametrize("flags", [["--rows", "0"], ["--duplicates", "2"], ["--duplicates", "x"]])
def test_a_wrong_number_ends_with_code_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        report.main(["--table", "t", "--output", "r.html", *flags])
    assert ended.value.code == 2


def test_similar_faces_are_grouped(tmp_path: Path) -> None:
    rows = faces(6)
    for index, row in enumerate(rows):
        row["identity"] = np.eye(6)[index]
    rows[4]["identity"] = 0.98 * rows[1]["identity"] + 0.2 * rows[4]["identity"]
    write_faces(tmp_path / "table", rows, columns=Columns(N_STYLES, identity=True))
    chosen = Selection(open_table(str(tmp_path / "table")))
    similar = similar_faces(chosen, 6, 0.95)
    (group,) = similar.groups
    assert (group.size, group.similarity) == (2, pytest.approx(0.98 / 1.0002, abs=1e-3))
    assert group.ids == ("s-0/photos/001.jpg#0", "s-0/photos/004.jpg#0")
    assert "identity vectors of 6 faces" in similar.text
    assert "Not searched" in similar_faces(chosen, MOST_COMPARED + 1, 0.95).text


def test_a_table_without_metrics_is_reported(tmp_path: Path) -> None:
    """Such a table is made from codes alone, without images."""
    known = {*("key", "face_index", "n_faces", "source_uri", "w_plus", "method")}
    rows = [{name: row[name] if name in known else None for name in row} for row in faces(3)]
    for row in rows:
        row["source_sha256"] = ""
    write_faces(tmp_path / "table", rows)
    text = page_of(tmp_path / "table")
    assert "All 3 faces." in text
    assert 'id="codes"' in text
    assert 'id="extremes"' not in text, "examples are shown with pictures alone"
    assert 'id="steps"' not in text
    data = read_report_data(Selection(open_table(str(tmp_path / "table"))))
    assert data.pictured_ids == [row["image_id"] for row in data.rows]
    picture = FacePicture(None, b"jpeg")
    text = report_html(data, ReportExtras(dict.fromkeys(data.pictured_ids, picture)))
    assert "<h2>Examples</h2>" in text
    assert text.count(base64.b64encode(b"jpeg").decode()) == 3
