"""Tables and pictures, drawn from what a run left on disk: old runs can be drawn again."""

from secateur.report.picture import picture
from secateur.report.tables import ladder_table, per_class_table

__all__ = ["ladder_table", "per_class_table", "picture"]
