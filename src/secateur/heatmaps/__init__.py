"""Where in an image a network looks, for one class."""

from secateur.heatmaps.cam import grad_cam

__all__ = ["grad_cam"]
