"""Algebra on files: the model is asked for only when it is needed, and the report says what is in the file."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib_custom_diffusion import formats
from lib_custom_diffusion.algebra import files as algebra
from lib_custom_diffusion.algebra.blending import bundle_words, dense
from lib_custom_diffusion.algebra.compression import Limit, compress, functional_error
from lib_custom_diffusion.algebra.converting import convert_files
from lib_custom_diffusion.algebra.files import (
    blend_files,
    compress_file,
    merge_files,
    parse_prompts,
    parse_weights,
    rename_file,
)
from lib_custom_diffusion.algebra.merging import context_features
from lib_custom_diffusion.algebra.reports import compressed_text, plain_word_note, renamed_lines
from lib_custom_diffusion.attention import projections
from lib_custom_diffusion.backend import Backend
from lib_custom_diffusion.delta import Delta, Entry, Provenance
from lib_custom_diffusion.errors import UserError
from lib_custom_diffusion.formats import Base
from lib_custom_diffusion.text_features import BUNDLED_CAPTIONS, Moments, read_captions
from tiny import WIDTH, TinyBackend


def never() -> Backend:
    raise AssertionError("no model is needed")


def save(path: Path, seed: int, token: str = "<new1>", vectors: int = 1) -> Path:
    layers = projections(TinyBackend().unet)
    torch.manual_seed(seed)
    entries = {key: torch.randn(layer.shape) for key, layer in layers.items()}
    Delta(entries, {token: torch.randn(vectors, WIDTH)}, Provenance("crossattn-3x6", tokens={token: "cat"})).save(path)
    return path


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    return save(tmp_path / "cat.delta.safetensors", 1)


def test_the_error_that_is_told_is_that_of_the_file(cat: Path, tmp_path: Path) -> None:
    told: list[str] = []
    small = tmp_path / "small.delta.safetensors"
    plain = compress_file(cat, small, Limit(rank=2), tell=told.append)
    assert plain.error == pytest.approx(functional_error(Delta.load(cat), Delta.load(small)), rel=0.02)
    assert (plain.size, plain.size_before) == (small.stat().st_size, cat.stat().st_size)
    assert plain.words == ["<new1>"] and plain.ranks == (2, 2) and not plain.weighed
    assert told == ["Reading the file", "Finding the ranks", "Measuring the error"]
    assert compress_file(cat, small, Limit(rank=2), TinyBackend).weighed


def test_ranks_are_found_by_some_captions_and_the_error_measured_on_others(
    cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = torch.randn(2, WIDTH, WIDTH, dtype=torch.float64)
    moments = Moments(one @ one.T, other @ other.T)
    monkeypatch.setattr(algebra, "moments_of", lambda *_: moments)
    delta, small = Delta.load(cat), tmp_path / "small.delta.safetensors"
    expected = compress(delta, Limit(rank=2), moments.fitted)
    error = functional_error(delta, expected, moments.held_out)
    assert error != pytest.approx(functional_error(delta, expected, moments.fitted), rel=0.1)
    done = compress_file(cat, small, Limit(rank=2), TinyBackend)
    blended = blend_files([cat], [1.0], tmp_path / "blend.delta.safetensors", Limit(rank=2), TinyBackend)
    for found, path in ((done.error, small), (blended.error, tmp_path / "blend.delta.safetensors")):
        assert found == pytest.approx(error, rel=1e-4)
        for key, entry in Delta.load(path).entries.items():
            assert torch.allclose(dense(entry), dense(expected.entries[key]), atol=0.02)


def test_a_file_that_is_none_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"no\.safetensors"):
        compress_file(tmp_path / "no.safetensors", tmp_path / "small.delta.safetensors", Limit(rank=2), never)
    with pytest.raises(UserError, match=r"no\.safetensors"):
        merge_files([tmp_path / "no.safetensors"], tmp_path / "merged.delta.safetensors", never)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.safetensors"]


def test_a_blend_is_exact_without_a_limit(cat: Path, tmp_path: Path) -> None:
    dog = save(tmp_path / "dog.delta.safetensors", 2)
    done = blend_files([cat, dog], [1.0, 1.0], tmp_path / "both.delta.safetensors", load_model=never)
    assert done.error is None and done.words == ["<new1>", "<new2>"]
    assert renamed_lines(done.renamed) == ["<new1> of file 2 is now <new2>: another file has a <new1> too"]
    small = blend_files([cat, dog], [1.0, 1.0], tmp_path / "both.delta.safetensors", Limit(rank=1), TinyBackend)
    assert small.error is not None and 0 < small.error < 1


def test_a_merge_tells_what_the_file_does_to_its_targets(cat: Path, tmp_path: Path) -> None:
    merged = merge_files([cat], tmp_path / "merged.delta.safetensors", TinyBackend)
    assert merged.residual < 1e-5 and merged.residual < merged.stored_residual < 1e-2
    assert merged.change < merged.change_of_sum
    told = merged.report(["my cat"])
    assert told["Result"] == "the concept is kept"
    assert f"my cat acts {merged.off[0]:.1%} differently" in told["Compared with its own file"]
    assert f"{merged.stored_residual:.2%} off on the words" in told["Accuracy"]
    assert replace(merged, target_rows=(4, 4)).report(["cat"])["Accuracy"].endswith("exactly (all 4 in the prompts)")
    some = replace(merged, target_rows=(9, 14)).report(["cat"])["Accuracy"]
    assert some.endswith("(9 of the 14 in the prompts; the others follow from them)")
    share = f"{merged.change / merged.change_of_sum:.0%}"
    assert told["Side effects"].startswith(f"other prompts change {share} as much as its own file changes them")


def test_a_concept_that_a_merge_does_not_keep_is_named(cat: Path, tmp_path: Path) -> None:
    done = merge_files([cat], tmp_path / "merged.delta.safetensors", TinyBackend)
    told = replace(done, off=[0.02, 0.38]).report(["cat", "dog"])
    assert told["Result"].startswith("dog is not kept well; give prompts") and "dog acts 38.0% differently" in " ".join(
        told.values()
    )
    assert replace(done, off=[0.02, 0.03]).report(["cat", "dog"])["Result"] == "every concept is kept"


@pytest.mark.parametrize("name", ["cat", "copy", "kitty"])
@pytest.mark.parametrize("way", ["blend", "merge"])
def test_one_concept_given_twice_is_refused_under_any_name(way: str, name: str, cat: Path, tmp_path: Path) -> None:
    again = tmp_path / f"{name}.delta.safetensors"
    if name == "copy":
        shutil.copy(cat, again)
    elif name == "kitty":
        rename_file(cat, "<new1>", "<kitty>", again)
    dog, output = save(tmp_path / "dog.delta.safetensors", 2), tmp_path / "new.delta.safetensors"
    what = f"{cat} is given twice" if name == "cat" else f"{again} has the same layers as {cat}"
    with pytest.raises(UserError, match=re.escape(f"{what}; give each concept once")):
        if way == "blend":
            blend_files([cat, dog, again], [1.0, 1.0, 1.0], output)
        else:
            merge_files([cat, dog, again], output, never)
    assert not output.exists()


def test_two_words_learned_without_layers_are_not_one_concept(cat: Path, tmp_path: Path) -> None:
    paths = [cat, save(tmp_path / "dog.delta.safetensors", 2)]
    for path in paths:
        delta = Delta.load(path)
        zeros = {key: torch.zeros(entry.shape) for key, entry in delta.entries.items()}
        replace(delta, entries=zeros).save(path)
    done = blend_files(paths, [1.0, 1.0], tmp_path / "both.delta.safetensors")
    assert len(Delta.load(tmp_path / "both.delta.safetensors").embeddings) == 2 and not done.dropped


def test_a_merged_file_that_would_be_large_is_compressed_by_what_prompts_read(
    cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, path = Delta.load(cat), tmp_path / "merged.delta.safetensors"
    size = merge_files([cat], path, TinyBackend).size
    whole = Delta.load(path)
    monkeypatch.setattr(algebra, "MERGED_BYTES", limit := size - 200)
    assert merge_files([cat], path, TinyBackend).size <= limit
    [moment] = context_features(TinyBackend(), [delta], bundle_words([delta]), read_captions(BUNDLED_CAPTIONS))
    small, blind = Delta.load(path), compress(whole, Limit(max_bytes=limit))
    assert functional_error(whole, small, moment) < 0.99 * functional_error(whole, blind, moment)


def test_of_many_captions_those_of_a_merge_are_from_all_over_the_file(
    cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "captions.txt").write_text("".join(f"photo of a dog {number}\n" for number in range(10)))
    monkeypatch.setattr(algebra, "MERGE_CAPTIONS", 5)
    read: list[list[str]] = []
    monkeypatch.setattr(
        algebra, "spoken_features", lambda _, captions, *more: read.append(captions) or torch.eye(WIDTH)
    )
    assert (
        merge_files([cat], tmp_path / "new.delta.safetensors", TinyBackend, (), tmp_path / "captions.txt").captions == 5
    )
    assert read == [[f"photo of a dog {number}" for number in (0, 2, 4, 6, 8)]]


def test_a_layer_above_a_loras_rank_is_cut_and_the_error_told(cat: Path) -> None:
    whole = convert_files([cat], "lora", TinyBackend)
    assert whole.cut_layers == 0 and whole.error < 1e-3 and "exact" in whole.precision()
    cut = convert_files([cat], "lora", TinyBackend, rank=1)
    assert cut.error > 0.1 and cut.cut_layers == 6 and list(cut.files) == list(whole.files)
    assert cut.precision() == f"relative error {cut.error:.2%}: 6 layers cut to rank 1"


def test_the_rank_of_a_lora_is_the_least_that_keeps_the_error(tmp_path: Path) -> None:
    """Singular values 1, 0.1, 0.01 … of each layer: rank 2 loses 1.005 %, rank 3 a tenth of that."""
    entries: dict[str, Entry] = {}
    for key, layer in projections(TinyBackend().unet).items():
        u, _, v = torch.linalg.svd(torch.randn(layer.shape), full_matrices=False)
        entries[key] = (u * 0.1 ** torch.arange(u.shape[1])) @ v
    Delta(entries, {}, Provenance("crossattn-3x6")).save(tmp_path / "a.delta.safetensors", torch.float32)
    for kind in ("lora", "lora-diffusers"):
        done = convert_files([tmp_path / "a.delta.safetensors"], kind, TinyBackend)
        assert done.rank == 3 and done.error == pytest.approx(1e-3, rel=0.02)
    exact = convert_files([tmp_path / "a.delta.safetensors"], "lora", TinyBackend, exact=True)
    (tmp_path / "exact").write_bytes(exact.files["lora.safetensors"])
    found = formats.read(tmp_path / "exact", Base.of(TinyBackend().unet)).delta
    assert exact.rank == 0 and functional_error(Delta(entries), found) < 5e-4


def test_a_file_of_which_nothing_would_be_left_is_not_converted(tmp_path: Path) -> None:
    Delta({}).save(tmp_path / "a.delta.safetensors")
    with pytest.raises(UserError, match="nothing would be written"):
        convert_files([tmp_path / "a.delta.safetensors"], "delta")


@pytest.mark.parametrize(
    ("text", "count", "weights"), [("", 2, [1.0, 1.0]), (" ", 1, [1.0]), ("0.5, -2", 2, [0.5, -2.0])]
)
def test_weights(text: str, count: int, weights: list[float]) -> None:
    assert parse_weights(text, count) == weights


@pytest.mark.parametrize("text", ["1", "1,2,3", "a,b", "1,nan", "1,1e9"])
def test_weights_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="weights"):
        parse_weights(text, 2)


def test_prompts_are_parted_by_a_bar() -> None:
    assert parse_prompts("photo of a <new1> cat | <new1>|") == ["photo of a <new1> cat", "<new1>"]


@pytest.mark.parametrize(
    "text", ["a (<new1> cat:1.3)", "a [<new1>: .5] cat", "<new1> cat BREAK on a hill", "<new1>|a <new1> <delta:cat:1>"]
)
def test_a_target_prompt_with_what_is_for_drawing_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is for drawing"):
        parse_prompts(text)
    plain = "a <new1> cat (sitting), 1:2 | breakfast of <new1>"
    assert parse_prompts(plain) == ["a <new1> cat (sitting), 1:2", "breakfast of <new1>"]


def test_a_merge_with_prompts_of_two_files_that_share_a_word_does_what_each_file_does(tmp_path: Path) -> None:
    sources = [save(tmp_path / f"{seed}.delta.safetensors", seed, vectors=2) for seed in (1, 2)]
    prompts = [["photo of a <new1> cat"], ["photo of a <new1> dog"]]
    merged = tmp_path / "merged.delta.safetensors"
    done = merge_files(sources, merged, TinyBackend, prompts, only_targets=True)
    assert [(each.old, each.new) for each in done.renamed] == [("<new1>", "<new2>")]
    assert max(done.off) < 0.01
    # The same by hand: the second file's word renamed, and prompts that say so.
    other, by_hand = tmp_path / "other.delta.safetensors", tmp_path / "by-hand.delta.safetensors"
    rename_file(sources[1], "<new1>", "<new2>", other)
    asked = [prompts[0], ["photo of a <new2> dog"]]
    merge_files([sources[0], other], by_hand, TinyBackend, asked, only_targets=True)
    for key, entry in Delta.load(by_hand).entries.items():
        assert torch.equal(dense(entry), dense(Delta.load(merged).entries[key]))


def test_a_target_prompt_with_a_word_by_another_name_than_its_file_has_is_refused_before_a_model_is_loaded(
    cat: Path, tmp_path: Path
) -> None:
    """Of two files with <new1> the second one's becomes <new2>, but its prompt has to say <new1>."""
    other = save(tmp_path / "other.delta.safetensors", 2)
    prompts = [["a <new1> cat"], ["<new1> dog", "a <new2> dog"]]
    with pytest.raises(UserError, match=r"'a <new2> dog' has the word <new2>, and .*other\S+ has <new1>; write words"):
        merge_files([cat, other], tmp_path / "merged.delta.safetensors", never, prompts)


def test_what_a_merge_does_not_keep_is_told_of_each_concept(tmp_path: Path) -> None:
    """With surroundings asked for as well, words are met approximately."""
    sources = [save(tmp_path / f"{seed}.delta.safetensors", seed, vectors=2) for seed in (1, 2)]
    merged = tmp_path / "merged.delta.safetensors"
    done = merge_files(sources, merged, TinyBackend, [["photo of a <new1> cat"], ["photo of a <new1> dog"]])
    prompt, own = "photo of a <new1> dog", Delta.load(sources[1])
    vectors = {token: value.float() for token, value in own.embeddings.items()}
    rows = TinyBackend().encode_captions([prompt], vectors).crossattn[0, 4:7]  # after the word's first vector
    missed = asked = 0.0
    for key, entry in Delta.load(merged).entries.items():
        wanted = rows @ dense(own.entries[key]).T
        missed += (rows @ dense(entry).T - wanted).square().sum().item()
        asked += wanted.square().sum().item()
    assert done.off[1] == pytest.approx((missed / asked) ** 0.5, rel=1e-3)


def test_a_word_is_renamed_and_nothing_else(cat: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.delta.safetensors"
    done = rename_file(cat, "<new1>", "<my-cat>", renamed)
    before, after = Delta.load(cat), Delta.load(renamed)
    assert done.words == list(after.embeddings) == ["<my-cat>"]
    assert after.provenance.tokens == {"<my-cat>": "cat"}
    assert torch.equal(after.embeddings["<my-cat>"], before.embeddings["<new1>"])
    assert all(torch.equal(after.entries[key], entry) for key, entry in before.entries.items())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<new2>", "<cat>", "there is no word '<new2>' in it; its words are <new1>"),
        ("<new1>", "my cat", "should be one word"),
        ("<new1>", "", "the new word is empty"),
        ("<new1>", "<a>+<b>", "should be one word"),
        ("<new1>", "<new1>", "it has a word <new1> already"),
        ("<new1>", "<delta:x:1>", "should be one word"),
        ("<new1>", ",", "should be one word"),
        ("<new1>", "***", "has no letter or digit"),
        ("<new1>", "x" * 300, "is too long"),
    ],
)
def test_a_word_that_is_not_there_or_a_name_that_is_none_is_refused(
    cat: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rename_file(cat, old, new, tmp_path / "renamed.delta.safetensors")
    assert not (tmp_path / "renamed.delta.safetensors").exists()


def test_a_file_that_is_small_enough_is_copied_byte_for_byte_and_that_is_said(cat: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.delta.safetensors"
    done = compress_file(cat, copy, Limit(max_bytes=5_000_000), TinyBackend)
    assert copy.read_bytes() == cat.read_bytes()
    assert done.unchanged and done.error == 0 and "already small enough" in compressed_text(done)


def test_a_name_that_is_written_as_ordinary_words_are_is_told_of() -> None:
    assert "any cat in a prompt means the concept" in plain_word_note("cat")
    assert plain_word_note("<cat>") == plain_word_note("cat-7") == ""


@pytest.mark.parametrize("prompts", [["a cat"], ["a <new1>y cat", "cat"]])
def test_target_prompts_that_leave_out_a_word_are_refused_because_it_would_be_lost(
    cat: Path, tmp_path: Path, prompts: list[str]
) -> None:
    other = save(tmp_path / "other.delta.safetensors", 2)
    with pytest.raises(UserError, match=r"no target prompt of .*other\S+ has its word <new1>.*'photo of a <new1> cat'"):
        merge_files([cat, other], tmp_path / "merged.delta.safetensors", never, [["a <new1> cat"], prompts])
