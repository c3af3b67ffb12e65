"""Examples are taken equally often, in steps of one size, and told by the seed and the turn alone."""

from __future__ import annotations

from collections import Counter

import torch

from lib_custom_diffusion.data.concepts import Example
from lib_custom_diffusion.training.example_order import ExampleOrder

SQUARE, WIDE = (2, 2), (1, 4)


def example(name: str, size: tuple[int, int] = SQUARE) -> Example:
    return Example(torch.zeros(4, *size), torch.ones(4, *size), torch.ones(1, *size), name)


def examples(square: int, wide: int) -> list[Example]:
    return [example(f"square {index}") for index in range(square)] + [
        example(f"wide {index}", WIDE) for index in range(wide)
    ]


def steps(order: ExampleOrder, batch: int, count: int) -> list[list[Example]]:
    """The examples of the first steps."""
    return [
        [order.take(turn, first) for turn in range(first, first + batch)] for first in range(0, batch * count, batch)
    ]


def test_of_one_size_each_comes_once_before_any_comes_again() -> None:
    order = ExampleOrder(examples(7, 0), seed=1)
    taken = [each.caption for step in steps(order, 3, 7) for each in step]
    for epoch in range(3):
        assert len(set(taken[7 * epoch : 7 * epoch + 7])) == 7
    assert taken[:7] != taken[7:14]


def test_of_several_sizes_a_step_has_one_and_no_example_twice_while_there_are_enough() -> None:
    order = ExampleOrder(examples(5, 3), seed=1)
    sizes = set()
    for step in steps(order, 3, 40):
        assert len({each.mean.shape for each in step}) == 1
        assert len({each.caption for each in step}) == 3
        sizes.add(step[0].mean.shape)
    assert len(sizes) == 2


def test_of_few_of_a_size_all_come_before_one_comes_twice() -> None:
    order = ExampleOrder(examples(4, 2), seed=1)
    for step in steps(order, 5, 20):
        times = Counter(each.caption for each in step)
        assert max(times.values()) - min(times.values()) <= 1
        assert len(times) == (4 if step[0].caption.startswith("square") else 2)


def test_every_example_is_taken_equally_often_however_many_have_its_size() -> None:
    order = ExampleOrder(examples(9, 1), seed=1)
    taken = Counter(each.caption for step in steps(order, 4, 2500) for each in step)
    assert set(taken) == {each.caption for each in order.examples}
    assert all(abs(times - 1000) < 150 for times in taken.values())  # 4 × 2500 over 10
    leading = Counter(step[0].caption for step in steps(order, 4, 100))
    assert set(leading.values()) >= {10} and sum(leading.values()) == 100


def test_any_turn_is_told_without_those_before_it() -> None:
    one, other = (ExampleOrder(examples(5, 3), seed=1) for _ in range(2))
    expected = steps(one, 3, 20)
    assert [other.take(turn, 57).caption for turn in (57, 58, 59)] == [each.caption for each in expected[19]]
    with_another_seed = steps(ExampleOrder(examples(5, 3), seed=2), 3, 20)
    assert [[each.caption for each in step] for step in with_another_seed] != [
        [each.caption for each in step] for step in expected
    ]


def test_regularization_examples_follow_the_size_of_the_concepts() -> None:
    own, prior = ExampleOrder(examples(3, 3), seed=1), ExampleOrder(examples(10, 10), seed=1)
    for first in range(0, 60, 2):
        for turn in (first, first + 1):
            leading = own.take(turn, first)
            assert prior.take_like(leading, turn, first).mean.shape == leading.mean.shape
    seen = {prior.take_like(own.take(first, first), first, first).caption for first in range(0, 600, 2)}
    assert len(seen) == 20


def test_regularization_examples_of_no_such_size_come_all_the_same() -> None:
    leading = example("upright", (4, 1))
    both = ExampleOrder(examples(2, 2), seed=1)
    assert {both.take_like(leading, turn, turn).caption for turn in range(80)} == {
        each.caption for each in both.examples
    }
    squares = ExampleOrder(examples(3, 0), seed=1)
    assert len({squares.take_like(leading, turn, 0).caption for turn in range(3)}) == 3
