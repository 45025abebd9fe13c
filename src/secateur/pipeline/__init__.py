"""The whole experiment: train -> sparsify -> prune -> fine-tune -> evaluate, one recipe, one run folder."""

from secateur.pipeline.experiment import STAGES, Experiment

__all__ = ["STAGES", "Experiment"]
