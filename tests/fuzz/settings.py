"""Config files and flags as bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from pipeline.config import JobConfig, load_config
from pipeline.errors import PipelineError
from pipeline.storage import canonical_uri
from tests.fuzz import words
from tests.fuzz.archives import json_text
from tests.fuzz.kind import BrokenPromiseError, Case, Kind, write_case
from tests.fuzz.mutate import mutated
from tests.test_redaction import SECRET, URIS

_NAMES = [*JobConfig.model_fields, "Input", "part-size", "", "__class__", "model_config"]
_BOMB = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 30))
_ODD: tuple[str, ...] = (
    *("1e400", "-1", "0", "0x10", "0o17", "1_000", "9" * 5000, ".inf", ".nan", "~", "yes", "auto"),
    *("2024-13-45", "2024-01-01", "12:30:45", "2001-12-14t21:59:43.10-05:00", "!!binary AAAA"),
    *("!!python/object/apply:os.system ['touch planted']", "!!python/name:os.system"),
    *("!!set {a}", "!!omap [a: 1]", "!!float many", "!!int x", "!!timestamp soon", "!!bool maybe"),
    *("*nothing", "&a [*a]", "&b {c: *b}", "<<", "|\n  text", "'", '"\\ud800"', '"\\0"', "["),
    *("s3://key:secret@bucket/x", "s3://bucket/x?token=abc", "://", "http://", "gopher://x"),
    *("~nobody-of-this-name/x", "~", "a\\b", "'../../x'", "memory://x", "zip://a.zip::b", "s3:///"),
)  # fmt: skip


def _value(draw: Random) -> str:
    way = draw.random()
    if way < 0.5:
        return draw.choice(_ODD)
    return json.dumps(json_text(draw)) if way < 0.8 else words.text(draw)


def _yaml(draw: Random) -> str:
    lines = ["input: photos", "output: table"] if draw.random() < 0.7 else []
    for _ in range(draw.randint(1, 4)):
        name = draw.choice(_NAMES) if draw.random() < 0.8 else _value(draw)
        lines.append(f"{name}: {_value(draw)}")
    draw.shuffle(lines)
    return "\n".join(lines) + "\n"


def _nested(draw: Random) -> str:
    depth = draw.choice((100, 5000))
    return draw.choice(("input: " + "[" * depth + "]" * depth, "? " * depth, "- " * depth))


def _aliases(draw: Random) -> str:
    """Return a few lines that expand to nine to the power of thirty values."""
    return f"x0: &x0 lol\n{_BOMB}{draw.choice(_NAMES)}: *x{draw.choice((3, 8, 29))}\n"


def _merges(draw: Random) -> str:
    """Return the same by merges, which expand where the mapping is constructed."""
    more = [f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    return "\n".join(
        ["x0: &x0 {a: 1}", *more, f"{draw.choice(_NAMES)}: *x{draw.choice((3, 11))}\n"]
    )


def _credential(draw: Random) -> str:
    """Return a setting with a credential in a URI, which no message may repeat."""
    return f"{draw.choice(_NAMES)}: {json.dumps(draw.choice(URIS))}\n"


_WAYS: tuple[Callable[[Random], str], ...] = (
    *(_yaml,) * 30,
    *(_nested, _aliases, _merges, _credential, _credential),
)


def _make(draw: Random) -> Case:
    if draw.random() < 0.25:  # flags: all text
        names = [draw.choice(list(JobConfig.model_fields)) for _ in range(3)]
        flags = {name: draw.choice((words.text(draw), draw.choice(_ODD))) for name in names}
        return {"flags.json": json.dumps({"input": "in", "output": "out"} | flags).encode()}
    content = draw.choice(_WAYS)(draw)
    encoded = content.encode(draw.choice(("utf-8",) * 8 + ("utf-16", "utf-32")), "surrogatepass")
    return {"run.yaml": mutated(draw, encoded, most=3) if draw.random() < 0.3 else encoded}


def _run(case: Case, folder: Path) -> str:
    try:
        return _loaded(case, folder)
    except PipelineError as error:
        if SECRET in str(error):
            raise BrokenPromiseError(f"a credential in {error}") from error
        raise


def _loaded(case: Case, folder: Path) -> str:
    if "flags.json" in case:
        config = load_config(None, json.loads(case["flags.json"]))
    else:
        write_case(case, folder)
        config = load_config(str(folder / "run.yaml"), {})
    for uri in (config.input, config.output, config.model):
        canonical_uri(uri)
    json.dumps(config.model_dump())
    return "row"


KINDS = [Kind("config", _make, _run, share=10, memory_mib=64)]
