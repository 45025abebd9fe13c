"""Object detection: boxes, letterbox, anchors and their targets, losses by task, suppression of doubles."""

from secateur.detection.boxes import centres, clipped, corners, from_pixels, iou, to_pixels
from secateur.detection.ciou import ciou
from secateur.detection.decode import decode
from secateur.detection.letterbox import Letterbox
from secateur.detection.losses import DetectionLoss
from secateur.detection.matching import Matches, match
from secateur.detection.suppression import detections, suppress

__all__ = [
    "DetectionLoss", "Letterbox", "Matches", "centres", "ciou", "clipped", "corners", "decode", "detections",
    "from_pixels", "iou", "match", "suppress", "to_pixels",
]  # fmt: skip
