"""Checkpoints and bundles as bad input: false sizes, and code that must not be executed."""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from pipeline.errors import ModelError, PipelineError
from pipeline.models import Architecture, ModelCard, RestyleModel, load_model, save_bundle
from pipeline.models.checkpoint import load_checkpoint
from tests.fuzz import words
from tests.fuzz.archives import json_text
from tests.fuzz.kind import BrokenPromiseError, Case, Kind, write_case
from tests.fuzz.mutate import mutated
from tests.fuzz.tables import changed_json
from tests.models.nvlabs_pickle import network, pickled, saved_by_torch
from tests.models.tiny import CHANNELS, tiny_checkpoint


class _Command:
    """Object whose unpickling would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch planted",)


def _odd_value(draw: Random) -> Any:
    tensors = (
        torch.zeros(0),
        torch.zeros(3, 3),
        torch.full((18, 512), float("nan")),
        torch.zeros(2, 512, dtype=torch.complex64),
        torch.zeros(4, 512, dtype=torch.int8),
        torch.zeros(1).expand(2**40),
        torch.zeros(4, 4).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.quint8),
        torch.zeros(5, device="meta"),
    )
    return draw.choice((*tensors, None, "text", [1], {"a": 1}, 2**70, -1, 1.5, json_text(draw)))


def _small_file(draw: Random) -> bytes:
    """Return a `.pt` of a few kilobytes whose dictionary is almost a valid one."""
    options: Any = {"encoder_type": "BackboneEncoder", "output_size": 8, "input_nc": 6}
    options = argparse.Namespace(**options) if draw.random() < 0.5 else options
    content: dict[str, Any] = {
        "state_dict": {"encoder.input_layer.0.weight": torch.zeros(4, 6, 3, 3)},
        "latent_avg": torch.zeros(4, 512),
        "opts": options,
    }
    for _ in range(draw.randrange(3)):
        name = draw.choice((*content, words.text(draw)))
        content[name] = _odd_value(draw)
    sink = io.BytesIO()
    if draw.random() < 0.1:
        content["opts"] = _Command()
    protocol = draw.choice((2, 2, 2, 4))
    torch.save(
        content, sink, pickle_protocol=protocol, _use_new_zipfile_serialization=draw.random() < 0.7
    )
    return sink.getvalue()


def _rezipped(draw: Random, content: bytes) -> bytes:
    """Return the archive with one member damaged, and a valid checksum."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(sink, "w") as new:
        chosen = draw.choice(old.namelist())
        for name in old.namelist():
            body = old.read(name)
            if name == chosen:
                body = mutated(draw, body, most=3)
            if draw.random() < 0.97:
                new.writestr(name if draw.random() < 0.97 else f"../{name}", body)
    return sink.getvalue()


def _make_file(draw: Random) -> Case:
    way = draw.random()
    if way < 0.05:
        plain = draw.choice((_Command(), {"state_dict": _Command()}, json_text(draw), np.zeros(3)))
        return {"model.pt": pickle.dumps(plain, protocol=draw.choice((0, 2, 4)))}
    content = _small_file(draw)
    if way < 0.5:
        content = mutated(draw, content)
    elif way < 0.9 and zipfile.is_zipfile(io.BytesIO(content)):
        content = _rezipped(draw, content)
    return {"model.pt": content}


def _run_file(case: Case, folder: Path) -> str:
    write_case(case, folder)
    load_model(str(folder / "model.pt"))
    return "model"


@functools.cache
def _whole() -> dict[str, Any]:
    return tiny_checkpoint()


def _make_dictionary(draw: Random) -> Case:
    """Return only the seed: the dictionary of tensors is created where it is used."""
    return {"seed": str(draw.getrandbits(60)).encode()}


def _run_dictionary(case: Case, _: Path) -> str:
    draw = Random(case["seed"])
    checkpoint = dict(_whole())
    checkpoint["opts"] = copy.deepcopy(checkpoint["opts"])
    state = checkpoint["state_dict"] = dict(checkpoint["state_dict"])
    for _ in range(draw.randint(1, 2)):
        way, key = draw.random(), draw.choice(sorted(state) or ["none"])
        if way < 0.3:
            state[key] = _odd_value(draw)
        elif way < 0.45:
            state.pop(key, None)
        elif way < 0.6:
            state[draw.choice((words.text(draw), key + ".x", "decoder.convs.99.conv.weight"))] = (
                state.get(key)
            )
        elif way < 0.8:
            options = checkpoint["opts"]
            if isinstance(options, argparse.Namespace) and vars(options):
                setattr(options, draw.choice(sorted(vars(options))), _odd_value(draw))
        else:
            checkpoint[draw.choice(("opts", "latent_avg", "state_dict"))] = _odd_value(draw)
    load_checkpoint(checkpoint)
    return "model"


@functools.cache
def _networks() -> tuple[bytes, ...]:
    """Return NVIDIA's pickles of the smallest generator, without a mapping network."""
    generator = network(mapping_layers=0, channels={4: 2, 8: 2})
    plain = [pickled(generator, protocol) for protocol in (2, 4)]
    return (*plain, *(saved_by_torch(generator, zipped=zipped) for zipped in (True, False)))


def _make_network(draw: Random) -> Case:
    content = draw.choice(_networks())
    if draw.random() < 0.5:
        return {"model.pkl": mutated(draw, content)}
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] = draw.randrange(256)
    return {"model.pkl": bytes(changed)}


def _run_network(case: Case, folder: Path) -> str:
    write_case(case, folder)
    load_model(str(folder / "model.pkl"), domain="faces")
    return "model"


# --- bundles


@functools.cache
def bundle() -> dict[str, bytes]:
    """Return the two files of a valid bundle with the smallest model."""
    arguments = {"n_styles": 2 * len(CHANNELS), "input_size": 32, "input_channels": 6, "width": 4}
    architecture = Architecture("CompactEncoder", arguments, dict.fromkeys((4, 8), 4), 0, (32, 32))
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_bundle(RestyleModel(architecture, ModelCard(name="tiny")), folder, stored="float16")
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _lying_header(draw: Random, content: bytes) -> bytes:
    """Return weights with a header of wrong lengths, types, shapes, offsets and names."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for _ in range(draw.randint(1, 2)):
        entry = header[draw.choice(sorted(header))]
        if not isinstance(entry, dict) or "shape" not in entry:
            continue
        match draw.randrange(5):
            case 0:
                entry["shape"] = draw.choice(([2**62, 4], [-1], [], [0], [2**31] * 3, "x", [1.5]))
            case 1:
                entry["data_offsets"] = draw.choice(([0, 2**62], [8, 0], [-8, 8], [0, 8], [0]))
            case 2:
                entry["dtype"] = draw.choice(("F64", "BF16", "F8_E4M3", "I8", "BOOL", "X", 3))
            case 3:
                header[words.text(draw)] = dict(entry)
            case _:
                entry.pop(draw.choice(sorted(entry)))
    text = json.dumps(header).encode()
    if draw.random() < 0.2:
        text = mutated(draw, text, most=2)
    claimed = draw.choice((len(text),) * 8 + (0, len(text) - 1, 2**63, 2**40, 100_000_001))
    return struct.pack("<Q", claimed) + text + content[8 + length :]


def _make_bundle(draw: Random) -> Case:
    case = dict(bundle())
    weights, record = case["model.safetensors"], case["model.json"]
    way = draw.random()
    if way < 0.35:
        weights = _lying_header(draw, weights)
    elif way < 0.45:
        weights = mutated(draw, weights)
    elif way < 0.9:
        record = changed_json(draw, record)
    else:
        record = mutated(draw, record)
    if draw.random() < 0.9:  # the record has the sha256 of the damaged weights
        try:
            content = json.loads(record)
            content["sha256"] = hashlib.sha256(weights).hexdigest()
            record = json.dumps(content).encode()
        except (ValueError, TypeError):
            pass
    return {"model.safetensors": weights, "model.json": record}


def _run_bundle(case: Case, folder: Path) -> str:
    write_case(case, folder)
    model = load_model(str(folder))
    _ = model.metadata, model.fingerprint
    return "model"


def _strict(run: Any, case: Case, folder: Path) -> str:
    """Check that a model that does not load raises `ModelError` and no other error."""
    try:
        outcome: str = run(case, folder)
    except ModelError:
        raise
    except PipelineError as error:
        raise BrokenPromiseError(
            f"{type(error).__name__} instead of ModelError: {error}"
        ) from error
    return outcome


KINDS = [
    Kind("checkpoint", _make_file, functools.partial(_strict, _run_file), share=2, limit_s=180),
    Kind(
        "dictionary",
        _make_dictionary,
        functools.partial(_strict, _run_dictionary),
        share=1,
        limit_s=180,
    ),
    Kind("network", _make_network, functools.partial(_strict, _run_network), share=1, limit_s=180),
    Kind("bundle", _make_bundle, functools.partial(_strict, _run_bundle), share=1, limit_s=180),
]
