"""Which example a training takes next, told by the seed and by counters alone, so that it can be resumed anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..data.concepts import Example
from .objective import step_generator


class ExampleOrder:
    """The examples of a concept, or those of its regularization pictures, in the order in which they are taken.

    Of one size, they come epoch after epoch, shuffled anew: each once before any comes again. Of several sizes, those
    of one step are of one size: its first is the one whose turn it is, as above, and the others are drawn from its
    size, each at most once while there are enough. In the long run every example is taken equally often.

    A turn is the number of examples of this concept that were taken before, since the training began.
    """

    def __init__(self, examples: Sequence[Example], seed: int) -> None:
        self.examples, self.seed = examples, seed
        self.by_size: dict[torch.Size, list[Example]] = {}
        for example in examples:
            self.by_size.setdefault(example.mean.shape, []).append(example)

    def take(self, turn: int, first: int) -> Example:
        """The example at a turn of the step whose first turn is `first`."""
        if len(self.by_size) == 1:
            return self._in_epoch(turn)
        leading = self._in_epoch(first)
        others = [example for example in self.by_size[leading.mean.shape] if example is not leading]
        return [leading, *self._shuffled(others, first)][(turn - first) % (len(others) + 1)]

    def take_like(self, leading: Example, turn: int, first: int) -> Example:
        """The same, of the size of another order's leading example if there is any."""
        if len(self.by_size) == 1:
            return self._in_epoch(turn)
        like = self._shuffled(self.by_size.get(leading.mean.shape, self.examples), first)
        return like[(turn - first) % len(like)]

    def _in_epoch(self, turn: int) -> Example:
        epoch, index = divmod(turn, len(self.examples))
        order = torch.randperm(len(self.examples), generator=step_generator(self.seed + 1, epoch))
        return self.examples[int(order[index])]

    def _shuffled(self, examples: Sequence[Example], first: int) -> list[Example]:
        order = torch.randperm(len(examples), generator=step_generator(self.seed + 2, first))
        return [examples[index] for index in order.tolist()]
