"""Tables and pictures: of what a run left on disk, so that old runs can be drawn again; of a network's groups; of what
papers printed."""

from secateur.report.comparison import comparison_table, rung
from secateur.report.confusion import confusion_picture
from secateur.report.dot import couplings_dot
from secateur.report.groups import groups_data, groups_table
from secateur.report.picture import picture
from secateur.report.recounted import recounted_table, recounted_text, recounted_uses
from secateur.report.samples import samples_picture
from secateur.report.scan import scan_line, scan_table
from secateur.report.sensitivity import sensitivity_picture, sensitivity_table
from secateur.report.svg import couplings_svg
from secateur.report.tables import ladder_table, per_class_table

__all__ = [
    "comparison_table", "confusion_picture", "couplings_dot", "couplings_svg", "groups_data", "groups_table",
    "ladder_table", "per_class_table", "picture", "recounted_table", "recounted_text", "recounted_uses", "rung",
    "samples_picture", "scan_line", "scan_table", "sensitivity_picture", "sensitivity_table",
]  # fmt: skip
