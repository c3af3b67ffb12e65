"""Damaged and hostile files of every format: each is read, or refused with one line, soon, and without being executed.

Some hundreds by default; CUSTOM_DIFFUSION_FUZZ=10000 sets how many.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from lib_custom_diffusion import formats
from lib_custom_diffusion.algebra.factors import QuantizedFactors
from lib_custom_diffusion.algebra.quantization import quantize
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.formats.base import Base
from lib_custom_diffusion.reading import archive

COUNT = int(os.environ.get("CUSTOM_DIFFUSION_FUZZ", "400"))
SECONDS_EACH = 5.0  # a bound on one file; all together take milliseconds each
KEYS = [
    f"model.diffusion_model.input_blocks.{n}.1.transformer_blocks.0.attn2.to_{r}.weight" for n in (1, 2) for r in "kv"
]
BASE = Base({key: torch.ones(8, 8) for key in KEYS}, {})
TRAP = Path("executed")


def example() -> Delta:
    torch.manual_seed(0)
    us_bits, vh_bits = torch.tensor([9, 2], dtype=torch.uint8), torch.tensor([3, 1], dtype=torch.uint8)
    us, vh = quantize(torch.randn(2, 8), us_bits)[0].T, quantize(torch.randn(2, 8), vh_bits)[0]
    entries = {
        KEYS[0]: torch.randn(8, 8),
        KEYS[1]: Factors(torch.randn(8, 2), torch.randn(2, 8)),
        KEYS[2]: QuantizedFactors.of_levels(us, vh, torch.ones(1, 2), us_bits, vh_bits),
        KEYS[3]: QuantizedFactors.of_levels(-us, vh, torch.ones(1, 2), us_bits, vh_bits),  # Vh is stored once
    }
    return Delta(entries, {"<new1>": torch.randn(2, 8)}, Provenance("sd1", "ab", {"<new1>": "cat"}, 5, {"seed": 1}))


def only(delta: Delta, *keys: str) -> Delta:
    return replace(delta, entries={key: delta.entries[key] for key in keys})


def valid_files() -> dict[str, bytes]:
    """One file of every kind that is written, and those that are only read."""
    delta = example()
    files = {
        "delta": delta.to_bytes(),
        "delta in bit planes": only(delta, KEYS[2], KEYS[3]).to_bytes(),
        "delta for the first extension": formats.write(delta, "delta")["delta.delta.safetensors"],
    }
    files |= {
        f"{kind} full": next(iter(formats.write(delta, kind, BASE).values())) for kind in ("adobe", "adobe-diffusers")
    }
    for kind in ("adobe", "adobe-diffusers", "lora", "embedding", "embedding-diffusers"):
        files[kind] = next(iter(formats.write(only(delta, KEYS[1]), kind).values()))
    files["diffusers"] = next(iter(formats.write(delta, "diffusers", BASE).values()))
    files["kv"] = save({key.removeprefix("model."): torch.ones(8, 8) for key in KEYS})
    files["embedding-sdxl"] = save({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)})
    return files


class Trap:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(TRAP), "w")


def flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    start = min(len(damaged), 600) if rng.random() < 0.5 else len(damaged)  # headers are at the start
    for _ in range(rng.randint(1, 12)):
        damaged[rng.randrange(start)] = rng.randrange(256)
    return bytes(damaged)


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def spliced(content: bytes, rng: random.Random) -> bytes:
    a, b, c = (rng.randrange(len(content)) for _ in range(3))
    return content[:a] + content[min(b, c) : max(b, c)] + content[a:]


def lying(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else of the same bytes; other files are flipped."""
    length = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{":
        return flipped(content, rng)
    header = json.loads(content[8 : 8 + length])
    name = rng.choice(sorted(header))
    lies: list[Any] = [[], {}, None, -1, 2**63, "F64", [2**40, 2**40], [0, 0], [6, 8], [-1, 8], "BOOL", "[" * 5000, "x"]
    if isinstance(header[name], dict) and header[name]:
        header[name][rng.choice(sorted(header[name]))] = rng.choice(lies)
    if rng.random() < 0.3:
        header[rng.choice(["x", KEYS[3], "embedding.<x>", "clip_l", f"{KEYS[1]}.US"])] = header.pop(name)
    written = json.dumps(header).encode()
    size = len(written) if rng.random() < 0.8 else rng.choice([0, 2**62, length * 2])
    return size.to_bytes(8, "little") + written + content[8 + length :]


def restructured(content: bytes, rng: random.Random) -> bytes:
    """A torch archive with other things in it; a safetensors file with other metadata."""
    if content[8:9] == b"{":
        return lying(content, rng)
    import io

    held = torch.load(io.BytesIO(content), weights_only=True)
    place = held
    while any(isinstance(value, dict) and value for value in place.values()) and rng.random() < 0.8:
        place = place[rng.choice([key for key, value in place.items() if isinstance(value, dict) and value])]
    odd: list[Any] = [
        Trap(), None, 5, "x", [torch.ones(1)], {}, {"u": torch.ones(8, 2)}, {"u": 1, "v": 2}, b"bytes",
        {1: 2, (3, 4): 5},
        torch.ones(1).expand(2**30, 2**20), torch.full((8, 8), float("nan")), torch.full((8, 8), float("inf")),
        torch.ones(0, 8), torch.ones(()), torch.ones(3, 3, 3), torch.eye(6).to_sparse(),
        torch.ones(8, 8, dtype=torch.int64), torch.ones(8, 8, dtype=torch.complex64),
        {"a": {"b": {"c": {"d": {"e": torch.ones(1)}}}}}, torch.nn.Parameter(torch.ones(8, 8)),
    ]  # fmt: skip
    key = (
        rng.choice(sorted(place, key=str))
        if place and rng.random() < 0.8
        else rng.choice(["embed", "unet", 7, ("a",), KEYS[3]])
    )
    place[key] = rng.choice(odd)
    return archive(held)


def bare_pickle(content: bytes, rng: random.Random) -> bytes:
    return pickle.dumps({"state_dict": {KEYS[0]: Trap()}}, protocol=rng.randint(0, 5)) + content[: rng.randrange(100)]


MUTATIONS = (flipped, truncated, spliced, lying, restructured, restructured, bare_pickle)


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_files_are_valid_before_they_are_damaged(somewhere: Path) -> None:
    for kind, content in valid_files().items():
        (somewhere / "file").write_bytes(content)
        found = formats.read(somewhere / "file", BASE)
        assert found.delta.entries or found.delta.embeddings, kind


def test_bad_files_are_refused_with_one_line_and_nothing_else(somewhere: Path) -> None:
    rng = random.Random(20260000 + COUNT)
    files = list(valid_files().items())
    before = peak_memory()
    refused = 0
    for number in range(COUNT):
        kind, content = files[number % len(files)]
        mutation = rng.choice(MUTATIONS)
        (somewhere / "file").write_bytes(mutation(content, rng))
        started = time.monotonic()
        try:
            formats.read(somewhere / "file", BASE if rng.random() < 0.8 else None)
        except UserError as error:
            refused += 1
            assert str(error).strip()
        except Exception as error:
            raise AssertionError(f"{mutation.__name__} of {kind}, number {number}: {error!r}") from error
        assert time.monotonic() - started < SECONDS_EACH, (mutation.__name__, kind, number)
        assert not TRAP.exists(), (mutation.__name__, kind, number)
    assert refused > 0.5 * COUNT
    assert peak_memory() - before < 500e6


def peak_memory() -> float:
    """Most memory this process has had, in bytes; 0 where that cannot be told."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def test_the_command_line_prints_one_line_and_exits_2(somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = pytest.importorskip("lib_custom_diffusion.standalone.cli")
    rng = random.Random(5)
    for number, (_, content) in enumerate(valid_files().items()):
        path = somewhere / "file.bin"
        path.write_bytes(truncated(content[: len(content) // 2], rng))
        for command in (["convert", "file.bin", "--output", "out"], ["compress", "file.bin", "--rank", "1"]):
            assert cli.main(command) == 2, number
            printed = capsys.readouterr()
            assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
            assert [found.name for found in somewhere.iterdir()] == ["file.bin"]
