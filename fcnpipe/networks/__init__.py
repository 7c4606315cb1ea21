"""Networks: architectures, reach analysis and its proof, inference, model files, matched filter.

Importing this package does not import torch; loading a network does.
"""

from fcnpipe.networks.architectures.registry import list_architectures
from fcnpipe.networks.base import (
    Certificate,
    Maps,
    Model,
    ModelHeader,
    Predictor,
    Reach,
    check_bands,
    check_image_size,
    check_inputs,
    check_separates,
    list_maps,
    threshold_of,
)
from fcnpipe.networks.inference.memory_allocator import tune_allocator, worker_environment
from fcnpipe.networks.matched_filter import MatchedFilter
from fcnpipe.networks.models.bundle import Bundle, read_header, save_model
from fcnpipe.networks.models.loading import list_models, load_model

__all__ = [
    "Bundle",
    "Certificate",
    "Maps",
    "MatchedFilter",
    "Model",
    "ModelHeader",
    "Predictor",
    "Reach",
    "check_bands",
    "check_image_size",
    "check_inputs",
    "check_separates",
    "list_architectures",
    "list_maps",
    "list_models",
    "load_model",
    "read_header",
    "save_model",
    "threshold_of",
    "tune_allocator",
    "worker_environment",
]
