"""mIoU and its companions, from one confusion matrix over a whole data set; the logits that they are taken from."""

from secateur.metrics.boundary import Boundary
from secateur.metrics.confusion import Confusion, Scores
from secateur.metrics.logits import all_logits, at_size, main_logits

__all__ = ["Boundary", "Confusion", "Scores", "all_logits", "at_size", "main_logits"]
