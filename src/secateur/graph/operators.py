"""Families of ATen operators that more than one layer asks for, by their names without namespace and overload."""

CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution")
BATCH_NORMS = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "batch_norm",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
)
