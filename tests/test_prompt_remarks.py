"""A prompt that will not draw what its deltas have learned is told of, and no other."""

from __future__ import annotations

from lib_custom_diffusion.prompt_remarks import lacking, remarks, stray_tags

RAC = (["<rac>"], 1.0)


def test_a_prompt_with_its_words_and_a_usual_weight_is_not_remarked_on() -> None:
    assert list(remarks("a <rac> raccoon, red", [RAC, ([], -0.5), (["<new1>", "mycat"], 2)], ["<emb>"])) == [
        "The prompt has none of its delta's words: <new1>, mycat."
    ]
    assert list(remarks("a <rac> and a <emb> with mycat", [RAC, (["mycat"], 2)], ["<emb>"])) == []


def test_a_mistyped_word_is_told_with_the_one_that_it_may_be() -> None:
    assert list(remarks("a <rca> raccoon", [RAC], besides=", and no --embedding")) == [
        "<rca> is plain text: no delta in the prompt has that word, and no --embedding. Did you mean <rac>?",
        "The prompt has none of its delta's words: <rac>.",
    ]


def test_case_counts_where_it_does_to_the_model() -> None:
    assert len(list(remarks("a <Rac>", [RAC]))) == 2
    assert list(remarks("a <Rac> MyCat", [RAC, (["mycat"], 1)], fold=str.lower)) == []


def test_a_weight_at_which_pictures_fall_apart_is_told() -> None:
    said = "A weight of {} is far from 1, at which the delta was trained: try 0.5 to 1.2."
    assert list(remarks("<rac>", [(["<rac>"], 10.0), (["<rac>"], -2.5), (["<rac>"], -2)])) == [
        said.format("10"), said.format("-2.5"),
    ]  # fmt: skip


def test_a_word_whose_delta_is_not_in_the_prompt_is_told_with_what_to_add() -> None:
    there = {"b": ["<rac>", "mycat"], "a": ["<rac>"], "c": []}
    assert lacking("a <rac>, with mycat", there, []) == {
        "<rac>": "<rac> only means something with its delta: add <delta:a:1> or <delta:b:1> to the prompt.",
        "mycat": "mycat only means something with its delta: add <delta:b:1> to the prompt.",
    }
    assert lacking("a <rac> and a <b>mycaterpillar</b>, __rac__", there, ["<rac>"]) == {}
    assert list(lacking("a <Rac>, MyCat", there, ["<RAC>"], fold=str.lower)) == ["mycat"]
    [half] = lacking("a MyCat", there, [], ["mycat"], str.lower).values()
    assert half.startswith("mycat is only half of what was learned, the embedding without its delta: add <delta:b:1>")
    assert lacking("a <Rac>", there, []) == {}
    [told] = lacking("a <rac>", {name: ["<rac>"] for name in "abcd"}, []).values()
    assert told.endswith("add <delta:a:1> or <delta:b:1> or <delta:c:1> to the prompt.")


def test_tags_that_are_plain_text_are_told() -> None:
    assert list(stray_tags("a <delta:a:1\nand <DELTA:b <lora:x:1> delta:c <delta:d", "no <delta:e:0.5>, <delta:f")) == [
        "<delta:a:1 is plain text, as it has no > at its end.",
        "<DELTA:b is plain text, as it has no > at its end.",
        "<delta:d is plain text, as it has no > at its end.",
        "<delta:e:0.5> has no effect in the negative prompt; write it into the prompt.",
    ]
