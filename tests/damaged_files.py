"""Valid files of every format that is read, ways to damage them, and every reader of such files."""

from __future__ import annotations

import base64
import io
import json
import pickle
import pickletools
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from lib_custom_diffusion import formats
from lib_custom_diffusion.algebra.compression import Limit
from lib_custom_diffusion.algebra.converting import convert_files
from lib_custom_diffusion.algebra.factors import QuantizedFactors
from lib_custom_diffusion.algebra.files import blend_files, compress_file
from lib_custom_diffusion.algebra.quantization import quantize
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.formats.base import Base
from lib_custom_diffusion.reading import archive
from lib_custom_diffusion.ui.inspection import report_html, summarize

KEYS = [
    f"model.diffusion_model.input_blocks.{n}.1.transformer_blocks.0.attn2.to_{r}.weight" for n in (1, 2) for r in "kv"
]
BASE = Base({key: torch.ones(8, 8) for key in KEYS}, {})
TRAP = Path("executed")
LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


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
    for kind in ("adobe", "adobe-diffusers", "lora", "lora-diffusers", "embedding", "embedding-diffusers"):
        files[kind] = next(iter(formats.write(only(delta, KEYS[1]), kind).values()))
    files["diffusers"] = next(iter(formats.write(delta, "diffusers", BASE).values()))
    files["kv"] = save({key.removeprefix("model."): torch.ones(8, 8) for key in KEYS})
    files["embedding-sdxl"] = save({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)})
    for kind, parts in {
        "loha": {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)},
        "lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 4)},
        "dora": {"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "dora_scale": (1, 8)},
    }.items():
        files[kind] = save({f"{LORA}.{part}": torch.ones(*shape) for part, shape in parts.items()})
    written = io.BytesIO()
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(1, 8))})
    torch.save({"string_to_param": parameters}, written, _use_new_zipfile_serialization=False)
    files["embedding of before torch 1.6"] = written.getvalue()
    files["embedding picture"] = picture({"string_to_param": {"*": {"TORCHTENSOR": [[1.0] * 8]}}, "name": "cat"})
    return files


def picture(content: Any) -> bytes:
    info, written = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(content).encode()).decode())
    Image.new("RGB", (8, 8), (9, 9, 9)).save(written, "png", pnginfo=info)
    return written.getvalue()


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


NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def renumbered(content: bytes, rng: random.Random) -> bytes:
    """With the numbers at which counters overflow, somewhere."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        size, at = rng.choice([1, 2, 4, 8]), rng.randrange(len(damaged))
        damaged[at : at + size] = (rng.choice(NUMBERS) & (2 ** (8 * size) - 1)).to_bytes(size, "little")
    return bytes(damaged)


ODD_JSON: list[Any] = [
    None, True, -1, 1e308, float("inf"), float("nan"), 2**70, "", "x" * 5000, "\ud800", "\0", [], {}, [[]], "delta",
    "delta_factors", "delta_factors_quantized", "F64", "F8_E4M3", "F4", "BF16", "U8", "I64", "BOOL", [2**40, 2**40],
    [0, 0], [6, 8], [-1, 8], [8192, 8192], "[" * 5000, '{"a":' * 900, {"a": {"a": {}}},
]  # fmt: skip


def changed_json(value: Any, rng: random.Random) -> Any:
    """JSON of which something inside is odd, at whatever depth, within texts that are JSON themselves as well."""
    if isinstance(value, dict) and value:
        key = rng.choice(sorted(value))
        if isinstance(value[key], str) and value[key][:1] in ("{", "[") and rng.random() < 0.8:
            value[key] = json.dumps(changed_json(json.loads(value[key]), rng))
        elif isinstance(value[key], (dict, list)) and rng.random() < 0.7:
            value[key] = changed_json(value[key], rng)
        elif rng.random() < 0.3:
            value[rng.choice(["x", "", "\ud800", KEYS[3], "embedding.<x>", "clip_l", f"{KEYS[1]}.US"])] = value.pop(key)
        else:
            value[key] = rng.choice(ODD_JSON)
        return value
    if isinstance(value, list) and value:
        value[rng.randrange(len(value))] = rng.choice([*ODD_JSON, *NUMBERS])
        return value
    return rng.choice(ODD_JSON)


def lying(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file or embedding picture that says something else; other files are renumbered."""
    if content.startswith(b"\x89PNG"):
        return picture(changed_json({"string_to_param": {"*": {"TORCHTENSOR": [[1.0, 2.0]]}}, "name": "x"}, rng))
    if content[8:9] != b"{":
        return renumbered(content, rng)
    length = int.from_bytes(content[:8], "little")
    header = changed_json(json.loads(content[8 : 8 + length]), rng)
    written = json.dumps(header, ensure_ascii=rng.random() < 0.8).encode("utf-8", "surrogatepass")
    size = len(written) if rng.random() < 0.9 else rng.choice([0, 2**62, length * 2])
    return size.to_bytes(8, "little") + written + content[8 + length :]


def reshaped(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file in which the same bytes have other shapes and types; other files are spliced."""
    if content[8:9] != b"{":
        return spliced(content, rng)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, said in header.items():
        if name != "__metadata__" and rng.random() < 0.4:
            shape, count = said["shape"], 1
            for size in shape:
                count *= size
            said["shape"] = rng.choice([shape[::-1], [count], [1, count], [count, 1], [*shape, 1, 1], [1, *shape]])
            said["dtype"] = rng.choice(
                [said["dtype"], {"F16": "BF16", "F32": "I32", "U8": "I8"}.get(said["dtype"], "F32")]
            )
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


FLOAT8 = [torch.ones(8, 8).to(torch.float8_e4m3fn)] if torch.__version__ > "2.2" else []  # torch 2.1 writes none


def restructured(content: bytes, rng: random.Random) -> bytes:
    """A torch archive with other things in it; other files lie."""
    if not content.startswith(b"PK"):
        return lying(content, rng)
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
        torch.ones(8, 8, device="meta"), *FLOAT8, held,
    ]  # fmt: skip
    key = (
        rng.choice(sorted(place, key=str))
        if place and rng.random() < 0.8
        else rng.choice(["embed", "unet", 7, ("a",), KEYS[3]])
    )
    place[key] = rng.choice(odd)
    return archive(held)


CODES = [code.code.encode("latin-1") for code in pickletools.opcodes]


def repickled(content: bytes, rng: random.Random) -> bytes:
    """A torch archive whose pickle has other codes, or its codes in another order; other files are flipped."""
    if not content.startswith(b"PK"):
        return flipped(content, rng)
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(written, "w", rng.choice([0, 8])) as target:
        for name in source.namelist():
            held = bytearray(source.read(name))
            if name.endswith("data.pkl"):
                places = [place for _, _, place in pickletools.genops(bytes(held)) if place]
                for _ in range(rng.randint(1, 3)):
                    a, b = rng.choice(places), rng.choice(places)
                    held[a : a + rng.randint(0, 1)] = rng.choice(
                        [rng.choice(CODES), bytes(held[b : b + rng.randint(1, 40)])]
                    )
            elif rng.random() < 0.1:
                continue
            target.writestr(name if rng.random() < 0.95 else f"../{name}", bytes(held))
    return written.getvalue()


def bare_pickle(content: bytes, rng: random.Random) -> bytes:
    return pickle.dumps({"state_dict": {KEYS[0]: Trap()}}, protocol=rng.randint(0, 5)) + content[: rng.randrange(100)]


MUTATIONS = (
    flipped, truncated, spliced, renumbered, lying, lying, reshaped, restructured, restructured, repickled, repickled,
    bare_pickle,
)  # fmt: skip


def described(path: Path) -> None:
    from lib_custom_diffusion.standalone import info

    content = info.describe(path)
    json.dumps(content)
    info._text(content).encode()


READERS: dict[str, Callable[[Path], object]] = {
    "formats": lambda path: formats.read(path),
    "formats with a model": lambda path: formats.read(path, BASE),
    "delta": lambda path: Delta.load(path),
    "words": lambda path: formats.read_words(path),
    "card": lambda path: json.dumps(summarize(path).table(), ensure_ascii=False).encode(),
    "inspect": lambda path: report_html(path).encode(),
    "info": described,
    "compress": lambda path: compress_file(path, Path("out"), Limit(max_bytes=3000)),
    "blend": lambda path: blend_files([path], [0.5], Path("out")),
    "lora": lambda path: convert_files([path], "lora"),
    "words of a lora": lambda path: convert_files([path], "embedding"),
    "lora of diffusers": lambda path: convert_files([path], "lora-diffusers"),
}
"""All that reads a file that someone else may have made, by name; they write only to a file `out` beside it."""
