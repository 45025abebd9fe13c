"""Which channels of a network go together: capture by running, labels that flow, equalities solved at once."""

from secateur.graph.attributes import output_dim
from secateur.graph.capture import Place, mapped_state, mode_of, run, state_of, tensors_in, twice, unwrapped
from secateur.graph.couplings import Coupling
from secateur.graph.flow import Flow
from secateur.graph.guilt import find_guilty
from secateur.graph.keep import no_collection
from secateur.graph.labels import FIXED, Track
from secateur.graph.matching import match_groups
from secateur.graph.network import Graph, Group
from secateur.graph.trace import trace
from secateur.graph.trial import numbers_set
from secateur.graph.units import TensorInfo

__all__ = [
    "FIXED", "Coupling", "Flow", "Graph", "Group", "Place", "TensorInfo", "Track",
    "find_guilty", "mapped_state", "match_groups", "mode_of", "no_collection", "numbers_set", "output_dim", "run",
    "state_of", "tensors_in", "trace", "twice", "unwrapped",
]  # fmt: skip
