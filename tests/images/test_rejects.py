from __future__ import annotations

import pickle
import re
from pathlib import Path

from pipeline.images import Rejection, RejectReason


def test_rejections_can_be_pickled() -> None:
    rejection = pickle.loads(pickle.dumps(Rejection(RejectReason.NO_FACE, "none at 512 px")))
    assert rejection.reason is RejectReason.NO_FACE
    assert rejection.detail == "none at 512 px"
    assert str(rejection) == "no_face: none at 512 px"


def test_reasons_are_the_tables_words() -> None:
    assert {reason.value for reason in RejectReason} == {
        "unreadable",
        "undecodable",
        "truncated",
        "no_bytes",
        "unsupported_format",
        "too_large",
        "too_small",
        "key_too_long",
        "no_face",
        "face_too_small",
        "not_finite",
        "no_start",
        "no_target",
        "timed_out",
        "crashed",
        "forgotten",
    }


def test_the_tables_document_lists_every_reason() -> None:
    text = (Path(__file__).resolve().parents[2] / "pipeline/table/README.md").read_text()
    (listed,) = re.findall(r"a `reason`: (.*?)\.\n", text, re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == [reason.value for reason in RejectReason]
