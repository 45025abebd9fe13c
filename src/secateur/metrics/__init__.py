"""mIoU and its companions, from one confusion matrix over a whole data set."""

from secateur.metrics.confusion import Confusion, Scores

__all__ = ["Confusion", "Scores"]
