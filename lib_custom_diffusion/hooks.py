"""Acting on a network's layers from outside: forward hooks that leave no trace, however they end."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Hooks:
    """Forward hooks on modules, from creation until `remove`, or until nothing refers to this object any more.

    A copy of a module that is made meanwhile acts alike, for as long; one that is unpickled does not. Code that
    torch.compile has made takes no notice of hooks that come and go, so it is thrown away whenever some do: the next
    pass compiles anew.
    """

    def __init__(
        self,
        after: Iterable[tuple[nn.Module, Callable[..., Any]]],
        before: Iterable[tuple[nn.Module, Callable[..., Any]]] = (),
    ) -> None:
        """after: called with (module, inputs, output); before: called with (module, inputs)."""
        hooks: list[_Hook] = []
        handles: list[RemovableHandle] = []
        for module, call in after:
            hooks.append(_Hook(call))
            handles.append(module.register_forward_hook(hooks[-1]))
        for module, call in before:
            hooks.append(_Hook(call))
            handles.append(module.register_forward_pre_hook(hooks[-1]))
        self.remove = weakref.finalize(self, _take_off, hooks, handles)
        """Leave the modules as they were. A second call does nothing."""
        self.remove.atexit = False
        _forget_compiled_code()


class _Hook:
    """What a module is given: it calls until it is told to stop, also out of copies of the module."""

    def __init__(self, call: Callable[..., Any] | None) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        call = self.call
        return None if call is None else call(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return self

    def __reduce__(self) -> tuple[type[_Hook], tuple[None]]:
        return _Hook, (None,)


def _take_off(hooks: list[_Hook], handles: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.call = None
    for handle in handles:
        handle.remove()
    _forget_compiled_code()


def _forget_compiled_code() -> None:
    if "torch._dynamo" in sys.modules:  # nothing was compiled otherwise
        torch.compiler.reset()
