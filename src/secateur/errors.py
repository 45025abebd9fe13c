"""Every error that secateur raises on purpose.

    SecateurError                    a bug of ours or of the machine        exit code 1
    ├── VerificationError            the pruned network is not exact
    ├── UserError                    a mistake that the user can mend       exit code 2
    │   ├── ModelError               the network can't be built, loaded or run
    │   ├── DataError                a data set, an image or a label is wrong
    │   ├── RecipeError              a recipe's key or value is wrong
    │   ├── MethodError              an unknown method or option
    │   ├── PlanError                a plan does not fit the network
    │   ├── CheckpointError          a file is damaged or belongs to another network
    │   └── RunFolderError           a run folder that can't be used as asked
    └── CannotError                  what was asked can't be had            exit code 3
        ├── NothingPrunableError     every unit is pinned or protected
        └── BudgetError              the budget is out of reach

A message names the offending thing, what was expected and the way out. The command line prints it alone, without a
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SecateurError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line ends with.

    Examples:
        >>> import torch, secateur
        >>> image = torch.zeros(1, 3, 8, 8)
        >>> try:
        ...     secateur.prune(torch.nn.Conv2d(3, 8, 3), image, pruning_ratio=0.5)
        ... except secateur.SecateurError as error:
        ...     print(type(error).__name__, error.exit_code)
        ...     print(error)  # doctest: +ELLIPSIS
        NothingPrunableError 3
        nothing of Conv2d can be removed:
          weight (8 units): pinned: output of the network
          weight#2 (3 units): pinned: input of a convolution that is fixed ...

        Mistakes are ValueErrors, too:

        >>> try:
        ...     secateur.prune(torch.nn.Conv2d(3, 8, 3), image, method="capp", pruning_ratio=0.5)
        ... except ValueError as error:
        ...     print(error)  # doctest: +ELLIPSIS
        unknown method 'capp'; known: ..., cap, ...; did you mean 'cap'?
    """

    exit_code = 1


class VerificationError(SecateurError):
    """The pruned network does not compute what the silenced original computes."""


class UserError(SecateurError, ValueError):
    """A mistake that the user can mend."""

    exit_code = 2


class ModelError(UserError):
    """A network can't be built, loaded or run on its example input."""


class DataError(UserError):
    """A data set, an image or a label is missing, damaged or inconsistent."""


class RecipeError(UserError):
    """A recipe has a wrong key, type or value."""


class MethodError(UserError):
    """A method or one of its options is unknown or out of range."""


class PlanError(UserError):
    """A plan does not fit the network that it is applied to."""


class CheckpointError(UserError):
    """A checkpoint or weights file is damaged, or belongs to another network."""


class RunFolderError(UserError):
    """A run folder can't be used as asked."""


class CannotError(SecateurError):
    """The request is well-formed, but what was asked can't be had."""

    exit_code = 3


class NothingPrunableError(CannotError):
    """Every unit is pinned or protected."""


class BudgetError(CannotError):
    """The budget can't be met; the message says what can."""


def nearest(name: str, known: Iterable[str], shown: int = 40) -> str:
    """'known: a, b, c; did you mean b?' for an unknown name, to end an error message; of very many, the first ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    more = f" ... ({len(known)} in all)" if len(known) > shown else ""
    return f"known: {', '.join(known[:shown])}{more}{hint}"
