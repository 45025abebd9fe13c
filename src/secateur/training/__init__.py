"""Training that can be stopped at any moment, and measuring; knows nothing of recipes and run folders' meaning."""

from secateur.training.checkpoint import CheckpointFolder, read_state, write_state
from secateur.training.evaluate import evaluate, latency, predict, recalibrate
from secateur.training.hooks import Hooks
from secateur.training.inference import Inference
from secateur.training.loop import StageResult, fit
from secateur.training.metrics_log import MetricsLog
from secateur.training.optimize import Settings, learning_rate, learning_rate_sum, make_optimizer, segmentation_loss
from secateur.training.progress import ProgressDisplay
from secateur.training.random_state import get_random_state, seed_everything, set_random_state

__all__ = [
    "CheckpointFolder",
    "Hooks",
    "Inference",
    "MetricsLog",
    "ProgressDisplay",
    "Settings",
    "StageResult",
    "evaluate",
    "fit",
    "get_random_state",
    "latency",
    "learning_rate",
    "learning_rate_sum",
    "make_optimizer",
    "predict",
    "read_state",
    "recalibrate",
    "seed_everything",
    "segmentation_loss",
    "set_random_state",
    "write_state",
]
