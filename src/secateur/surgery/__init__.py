"""Cut a network to a plan, prove it, keep it."""

from secateur.surgery.compensate import compensate
from secateur.surgery.constants import fold_constants, unfoldable
from secateur.surgery.consumers import Carried, Compensated
from secateur.surgery.cut import apply
from secateur.surgery.storage import load, save
from secateur.surgery.verify import Report, verify

__all__ = [
    "Carried", "Compensated", "Report",
    "apply", "compensate", "fold_constants", "load", "save", "unfoldable", "verify",
]  # fmt: skip
