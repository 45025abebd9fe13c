"""Cut a network to a plan, prove it, keep it."""

from secateur.surgery.cut import apply
from secateur.surgery.storage import load, misfits, save
from secateur.surgery.verify import Report, verify

__all__ = ["Report", "apply", "load", "misfits", "save", "verify"]
