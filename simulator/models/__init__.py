"""What a model is: layers, heads, experts; bytes of weights and of KV cache."""

from simulator.models.catalogue import list_models, load_model
from simulator.models.model import Details, Mla, Model, Moe
from simulator.models.precision import Parallel, Precision

__all__ = ["Details", "Mla", "Model", "Moe", "Parallel", "Precision", "list_models", "load_model"]
