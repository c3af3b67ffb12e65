"""The commands compress, blend, merge, rename and convert, on files, with a tiny model in the place of `--model`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny import WIDTH, TinyBackend

pytest.importorskip("diffusers")  # what standalone/ needs

from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.delta import Delta, Factors, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.standalone import algebra_commands
from lib_custom_diffusion.storage import size


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lib_custom_diffusion.standalone.models.load_model", lambda name, vae: TinyBackend())


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    cli = algebra_commands
    for add in (cli.add_compress, cli.add_blend, cli.add_merge, cli.add_rename, cli.add_convert):
        add(commands)
    options = parser.parse_args(arguments)
    return options.run(options)


def save(name: str, seed: int, token: str = "<new1>") -> Delta:
    layers = projections(TinyBackend().unet)
    torch.manual_seed(seed)
    entries = {key: torch.randn(layer.shape) for key, layer in layers.items()}
    delta = Delta(entries, {token: torch.randn(1, WIDTH)}, Provenance("crossattn-3x6", tokens={token: "cat"}))
    delta.save(Path(name))
    return Delta.load(Path(name))


@pytest.mark.parametrize("model", [(), ("--model", "toy")])
def test_compress_keeps_the_size_and_tells_the_error(
    capsys: pytest.CaptureFixture[str], model: tuple[str, ...]
) -> None:
    save("a.delta.safetensors", 1)
    assert run("compress", "a.delta.safetensors", "--rank", "2", *model) == 0
    small = Delta.load(Path("a-small.delta.safetensors"))
    assert all(isinstance(entry, Factors) and entry.us.shape[1] == 2 for entry in small.entries.values())
    printed = capsys.readouterr().out
    assert "differs from the original by" in printed and ("kept for measuring" in printed) == bool(model)
    assert run("compress", "a.delta.safetensors", "--max_size", "3kB", "--output", "b.delta.safetensors", *model) == 0
    assert Path("b.delta.safetensors").stat().st_size <= 3000


def test_blend_adds_up_and_tells_of_renamed_words(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save("a.delta.safetensors", 1), save("b.delta.safetensors", 2)
    command = ("blend", "a.delta.safetensors", "b.delta.safetensors", "--output", "c.delta.safetensors")
    assert run(*command, "--weights", "0.5,-1") == 0
    found = Delta.load(Path("c.delta.safetensors"))
    for key in a.entries:
        assert torch.allclose(
            found.entries[key].float(), 0.5 * a.entries[key].float() - b.entries[key].float(), atol=5e-3
        )
    assert list(found.embeddings) == ["<new1>", "<new2>"]
    assert "<new1> of file 2 is now <new2>" in capsys.readouterr().out
    with pytest.raises(UserError, match="should be 2 numbers"):
        run(*command, "--weights", "1")
    with pytest.raises(UserError, match="should be numbers"):
        run(*command, "--weights", "a,b")


def test_merge_reports_residual_and_change(capsys: pytest.CaptureFixture[str]) -> None:
    """TinyBackend's text has no context, so two concepts that are both a "cat" ask different things of one feature."""
    save("a.delta.safetensors", 1), save("b.delta.safetensors", 2)
    command = ("merge", "a.delta.safetensors", "b.delta.safetensors", "--output", "c.delta.safetensors")
    with pytest.raises(UserError, match="concept 2 asks"):
        run(*command)
    assert not Path("c.delta.safetensors").exists()
    with pytest.raises(UserError, match="1 times for 2 files"):
        run(*command, "--target_prompts", "a")
    assert run("merge", "a.delta.safetensors", "--output", "c.delta.safetensors") == 0
    printed = capsys.readouterr().out
    assert "result: the concept is kept" in printed and "a.delta.safetensors acts 0." in printed
    assert "as much as its own file changes them" in printed and "% off on the words" in printed


@pytest.mark.parametrize("command", ["compress --rank 1", "blend", "merge", "convert"])
def test_what_a_result_is_made_of_is_not_replaced_by_it(command: str) -> None:
    save("a.delta.safetensors", 1)
    before = Path("a.delta.safetensors").read_bytes()
    with pytest.raises(UserError, match="is one of the inputs, and would be overwritten"):
        run(*command.split(), "--output", "./a.delta.safetensors", "--", "a.delta.safetensors")
    assert Path("a.delta.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("compress a.delta.safetensors --rank 1", "a-small.delta.safetensors"),
        ("compress a.delta.safetensors --rank 1 --output other.delta.safetensors", "other.delta.safetensors"),
        ("blend a.delta.safetensors --output other.delta.safetensors", "other.delta.safetensors"),
        ("merge a.delta.safetensors --output other.delta.safetensors", "other.delta.safetensors"),
        ("rename a.delta.safetensors <new1> <cat> --output other.delta.safetensors", "other.delta.safetensors"),
        ("convert a.delta.safetensors --to lora --model toy --output other.safetensors", "other.safetensors"),
        ("convert a.delta.safetensors --to adobe --model toy --output folder", "folder/delta.ckpt"),
        ("convert a.delta.safetensors --to embedding --output folder", "folder/new1.pt"),
    ],
)
def test_a_file_that_is_there_is_replaced_only_where_that_is_asked_for(command: str, output: str) -> None:
    save("a.delta.safetensors", 1)
    there = Path(output)
    there.parent.mkdir(exist_ok=True)
    there.write_bytes(b"mine")
    with pytest.raises(UserError, match=f"^{output} is there already; give --overwrite"):
        run(*command.split())
    assert there.read_bytes() == b"mine"
    assert run(*command.split(), "--overwrite") == 0
    assert there.read_bytes() != b"mine"


def test_rename_replaces_a_delta_file_and_no_other() -> None:
    save("a.delta.safetensors", 1)
    assert run("rename", "a.delta.safetensors", "<new1>", "<my-cat>") == 0
    assert list(Delta.load(Path("a.delta.safetensors")).embeddings) == ["<my-cat>"]
    assert run("convert", "a.delta.safetensors", "--to", "lora", "--output", "a.safetensors", "--model", "toy") == 0
    before = Path("a.safetensors").read_bytes()
    with pytest.raises(UserError, match="give --output"):
        run("rename", "a.safetensors", "<my-cat>", "<other>")
    assert Path("a.safetensors").read_bytes() == before
    assert run("rename", "a.safetensors", "<my-cat>", "<other>", "--output", "b.delta.safetensors") == 0
    assert list(Delta.load(Path("b.delta.safetensors")).embeddings) == ["<other>"]


def test_a_word_with_a_nul_is_no_word() -> None:
    save("a.delta.safetensors", 1)
    with pytest.raises(UserError, match="should be one word"):
        run("rename", "a.delta.safetensors", "<new1>", "<a\0>")


@pytest.mark.parametrize(
    ("command", "output", "said"),
    [
        *[(each, name, f"use {name.partition('.')[0]}.delta.safetensors")
          for each in ("compress --rank 1", "blend", "merge", "rename")
          for name in ("x.pt", "x.bin", "x.LORA.safetensors", "out/my-lora.safetensors", "x", "x.delta.ckpt",
                       "pytorch_lora_weights.safetensors")],
        ("convert --to delta", "x.lora.safetensors", "is the name of a file of --to lora, not of --to delta"),
        ("convert --to delta", "x.bin", "is the name of one that ends in .bin, not of --to delta"),
        ("convert --to lora", "x.delta.safetensors", "is the name of a file of --to delta, not of --to lora"),
        ("convert --to lora", "x.pt", "is the name of one that ends in .pt, not of --to lora"),
        ("convert --to embedding", "x.safetensors", "is the name of one that ends in .safetensors"),
        ("convert --to adobe", "x.DELTA.safetensors", "is the name of a file of --to delta"),
        ("convert", "x.safetensors", "x.safetensors does not say which format is to be written; give --to"),
        ("convert", "x.bin", "x.bin does not say which format is to be written; give --to"),
    ],
)  # fmt: skip
def test_a_name_of_another_kind_of_file_is_refused_before_the_work(
    command: str, output: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("a.delta.safetensors", 1)
    before = set(Path.cwd().iterdir())
    monkeypatch.setattr("lib_custom_diffusion.formats.read", lambda *_: pytest.fail("it was read"))
    words = ("<new1>", "<cat>") if command == "rename" else ()
    with pytest.raises(UserError) as refused:
        run(*command.split(), "--output", output, "--", "a.delta.safetensors", *words)
    assert said in str(refused.value) and output in str(refused.value)
    assert set(Path.cwd().iterdir()) == before


@pytest.mark.parametrize("output", ["x.lora.safetensors", "lora.safetensors", "x_LoRA.safetensors"])
def test_a_name_says_what_is_written_where_no_flag_does(output: str) -> None:
    save("a.delta.safetensors", 1)
    assert run("convert", "a.delta.safetensors", "--output", output) == 0
    assert any(name.endswith(".lora_up.weight") for name in load_file(output))


def test_a_file_that_says_it_is_of_the_toy_needs_no_model_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    save("a.delta.safetensors", 1)
    assert run("convert", "a.delta.safetensors", "--to", "lora", "--output", "a.safetensors") == 0
    assert run("convert", "a.delta.safetensors", "--to", "adobe", "--output", "a.ckpt") == 0
    assert run("convert", "a.safetensors", "--output", "b.delta.safetensors") == 0
    delta = save("other.delta.safetensors", 1)
    delta.provenance.architecture = "crossattn-5x6"
    delta.save(Path("other.delta.safetensors"))
    with pytest.raises(UserError, match="depends on the model; give the model it was trained on by --model"):
        run("convert", "other.delta.safetensors", "--to", "lora", "--output", "c.safetensors")


def test_convert_to_lora_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    delta = save("a.delta.safetensors", 1)
    assert run("convert", "a.delta.safetensors", "--to", "lora", "--output", "a.safetensors", "--model", "toy") == 0
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.alpha" in load_file("a.safetensors")
    assert run("convert", "a.safetensors", "--output", "back.delta.safetensors") == 0
    back = Delta.load(Path("back.delta.safetensors"))
    for key in delta.entries:
        assert torch.allclose(back.entries[key].dense(), delta.entries[key].float(), atol=1e-2)
    assert torch.equal(back.embeddings["<new1>"].float(), delta.embeddings["<new1>"].float())


def test_a_lora_is_told_with_its_precision_and_what_to_write_where(capsys: pytest.CaptureFixture[str]) -> None:
    save("a.delta.safetensors", 1)
    to_lora = ("convert", "a.delta.safetensors", "--to", "lora", "--model", "toy", "--output")
    assert run(*to_lora, "out/cat.safetensors", "--exact") == 0
    printed = capsys.readouterr().out
    assert "exact" in printed and "write embedding:new1" in printed
    assert "copy cat.safetensors into models/Lora and write <lora:cat:1> <new1>" in printed
    assert sorted(path.name for path in Path("out").iterdir()) == ["cat.safetensors", "new1.pt"]
    with pytest.raises(UserError, match="word beside it"):
        run("convert", "a.delta.safetensors", "--to", "lora-diffusers", "--output", "NEW1.safetensors")
    assert run("convert", "a.delta.safetensors", "--to", "lora-diffusers", "--model", "toy", "--output", "d") == 0
    assert sorted(path.name for path in Path("d").iterdir()) == ["new1.safetensors", "pytorch_lora_weights.safetensors"]
    assert (
        run("convert", "d/pytorch_lora_weights.safetensors", "--model", "toy", "--output", "b.delta.safetensors") == 0
    )
    assert list(Delta.load(Path("b.delta.safetensors")).embeddings) == ["<new1>"]


def test_another_words_file_beside_a_lora_is_not_replaced() -> None:
    """Each LoRA's word is in a file that is called by the word, which two trainings have in common."""
    save("cat.delta.safetensors", 1), save("dog.delta.safetensors", 2)
    assert run("convert", "cat.delta.safetensors", "--to", "lora", "--output", "out/cat.safetensors") == 0
    assert run("convert", "cat.delta.safetensors", "--to", "lora", "--output", "out/cat2.safetensors") == 0
    before = Path("out/new1.pt").read_bytes()
    with pytest.raises(UserError, match=r"new1\.pt is there already and holds something else; give another folder"):
        run("convert", "dog.delta.safetensors", "--to", "lora", "--output", "out/dog.safetensors")
    assert Path("out/new1.pt").read_bytes() == before and not Path("out/dog.safetensors").exists()


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    monkeypatch.setenv("USERPROFILE", str(Path("home").absolute()))
    Path("home").mkdir()
    save("home/a.delta.safetensors", 1)
    assert run("compress", "~/a.delta.safetensors", "--rank", "1", "--output=~/b.delta.safetensors") == 0
    assert sorted(path.name for path in Path("home").iterdir()) == ["a.delta.safetensors", "b.delta.safetensors"]


def test_convert_to_full_weights_takes_the_model_and_the_words_beside_them() -> None:
    delta = save("a.delta.safetensors", 1)
    assert run("convert", "a.delta.safetensors", "--to", "adobe-diffusers", "--output", "adobe", "--model", "toy") == 0
    assert run("convert", "adobe/delta.bin", "--output", "back", "--model", "toy") == 0
    back = Delta.load(Path("back/back.delta.safetensors"))
    for key in delta.entries:
        assert torch.allclose(back.entries[key].float(), delta.entries[key].float(), atol=5e-3)
    with pytest.raises(UserError, match="--model"):
        run("convert", "adobe/delta.bin", "--output", "again")
    assert not Path("again").exists()


def test_convert_finds_diffusers_words_beside_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    delta = save("a.delta.safetensors", 1)
    for kind in ("diffusers", "embedding-diffusers"):
        assert run("convert", "a.delta.safetensors", "--to", kind, "--output", "d", "--model", "toy") == 0
    weights = "d/pytorch_custom_diffusion_weights.safetensors"
    capsys.readouterr()
    assert run("convert", weights, "--output", "back.delta.safetensors", "--model", "toy") == 0
    assert "<new1> was taken from new1.safetensors beside it" in capsys.readouterr().out
    back = Delta.load(Path("back.delta.safetensors"))
    assert torch.equal(back.embeddings["<new1>"].float(), delta.embeddings["<new1>"].float())


@pytest.mark.parametrize(
    ("text", "count"),
    [("5MB", 5_000_000), ("800 kB", 800_000), ("1.5MiB", 1_572_864), ("70000", 70_000), ("0.5GB", 500_000_000)],
)
def test_sizes(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "MB", "5 GB of it", "-1MB", "nan", "1e99MB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="size"):
        size(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "a.delta.safetensors", "--rank", "2"),
        ("blend", "a.delta.safetensors", "--rank", "2"),
        ("merge", "a.delta.safetensors"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_model_without_a_vae_can_be_given_one(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "lib_custom_diffusion.standalone.models.load_model",
        lambda name, vae: asked.append((name, vae)) or TinyBackend(),
    )
    save("a.delta.safetensors", 1)
    save("b.delta.safetensors", 1)
    run(*arguments, "--output", "c.delta.safetensors", "--vae", "fixed.safetensors", "--model", "pruned.safetensors")
    assert set(asked) == {("pruned.safetensors", Path("fixed.safetensors"))}


@pytest.mark.parametrize(
    "command", [("compress", "--rank", "2"), ("blend", "--rank", "2"), ("convert", "--to", "lora")]
)
def test_a_vae_of_no_model_is_refused(command: tuple[str, ...]) -> None:
    save("a.delta.safetensors", 1)
    with pytest.raises(UserError, match=r"--vae fixed\.safetensors is for a model; give --model too"):
        run(*command, "a.delta.safetensors", "--output", "c.safetensors", "--vae", "fixed.safetensors")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("compress --rank 2 --captions c.txt", r"--captions c\.txt are for a model to read; give --model too"),
        ("blend --model toy", "--model is for compression; give --max_size, --rank or --energy too"),
        ("convert --to delta --rank 2", "--rank is for a LoRA, not for --to delta; leave it out, or give --to lora"),
        ("convert --to adobe --exact", "--exact is for a LoRA, not for --to adobe"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(command: str, said: str) -> None:
    save("a.delta.safetensors", 1)
    with pytest.raises(UserError, match=said):
        run(*command.split(), "--output", "c.ckpt" if "adobe" in command else "c.safetensors", "a.delta.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("command", ["compress --rank 1", "blend", "merge", "convert --to delta", "rename"])
@pytest.mark.parametrize("there", ["pipe.safetensors", "folder.safetensors", "\udcff.safetensors"])
def test_an_output_that_can_be_no_file_is_refused_before_the_work(
    command: str, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may do everything would replace /dev/null by a file."""
    save("a.delta.safetensors", 1)
    os.mkfifo("pipe.safetensors")
    Path("folder.safetensors").mkdir()
    before = set(Path.cwd().iterdir())
    if not command.startswith("convert"):  # which learns from its work what the files are called
        monkeypatch.setattr("lib_custom_diffusion.formats.read", lambda path: pytest.fail("it was read"))
    words = ("<new1>", "<cat>") if command == "rename" else ()
    with pytest.raises(UserError, match=r"cannot write to \w+\.safetensors: it is|has bytes that are not text"):
        run(*command.split(), "--output", there, "--", "a.delta.safetensors", *words)
    assert set(Path.cwd().iterdir()) == before and Path("pipe.safetensors").is_fifo()
