"""ONNX files: written from a network through torch.export, run by onnxruntime, made of eight bits."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from secateur.errors import CannotError, ModelError, UserError

__all__ = ["OnnxNetwork", "check_opset", "exported_program", "need", "quantise", "write_onnx"]

INPUT = "image"
LOWEST_OPSET = 18  # what PyTorch's exporter writes; it converts upwards


def need(*packages: str) -> None:
    """Refuses to go on without an optional package.

    Raises:
        UserError: one is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{", ".join(missing)} is not installed; ONNX needs: pip install "secateur[export]"')


def check_opset(opset: int) -> None:
    """Refuses a version of ONNX's set of operations that can't be written here.

    Raises:
        CannotError: it can't.
    """
    import onnx

    highest = onnx.defs.onnx_opset_version()
    if not LOWEST_OPSET <= opset <= highest:
        raise CannotError(
            f"--opset {opset}: expected {LOWEST_OPSET} to {highest}, which PyTorch and the onnx that is installed write"
        )


def exported_program(model: nn.Module, example: Tensor, dynamic_size: bool) -> ExportedProgram:
    """The network's operations, for any number of images, and of any size if that is wanted.

    Args:
        model: in eval mode, on the CPU; it is not changed.
        example: images (2 or more, 3, H, W).
        dynamic_size: height and width may differ from the example's.

    Raises:
        CannotError: the network can't be written down as a graph.
    """
    free: dict[int, Any] = {0: Dim.DYNAMIC, **({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if dynamic_size else {})}
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=(free,))
            return program.run_decompositions(_DECOMPOSITIONS) if dynamic_size else program
    except Exception as error:  # whatever the exporter or a user's own network raises
        hint = "; without --dynamic-size it may work" if dynamic_size else ""
        raise CannotError(f"{type(model).__name__} can't be exported: {_first_line(error)}{hint}") from error


def write_onnx(program: ExportedProgram, example: Tensor, path: Path, opset: int, about: Mapping[str, Any]) -> None:
    """Writes an ONNX file whose input is called "image".

    Args:
        program: see `exported_program`.
        example: what it was exported with.
        path: the file.
        opset: version of ONNX's set of operations.
        about: goes into the file's metadata, as JSON.

    Raises:
        CannotError: an operation has no counterpart in ONNX, or not in this opset.
    """
    import onnx

    try:
        with _quiet(), torch.no_grad():
            written = torch.onnx.export(
                program, (example,), dynamo=True, opset_version=opset, input_names=[INPUT], verbose=False
            )
            assert written is not None
            proto = written.model_proto
    except Exception as error:  # an operation without a translation, most of all
        raise CannotError(f"this network can't be written as ONNX: {_first_line(error)}") from error
    got = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    if got != opset:
        raise CannotError(f"--opset {opset}: this network could only be written with opset {got}")
    for key, value in about.items():
        proto.metadata_props.add(key=f"secateur.{key}", value=json.dumps(value))
    onnx.save_model(proto, str(path))


class OnnxNetwork(nn.Module):
    """An ONNX file as a network: images (N, 3, H, W) on the CPU -> its first output. `outputs` has all of them.

    Args:
        path: the file; it may be of another tool if it takes one float32 input.
        threads: of the CPU; None leaves it to onnxruntime.

    Raises:
        ModelError: onnxruntime can't load the file, or it takes something else.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        super().__init__()
        need("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised as well
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"{path}: onnxruntime can't load it: {_first_line(error)}") from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            shown = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
            raise ModelError(f"{path} takes {shown}; expected one float32 input N x 3 x height x width")
        self.input, self.shape = inputs[0].name, tuple(inputs[0].shape)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of the images, if it takes no others."""
        height, width = self.shape[2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def told(self, key: str) -> Any:
        """What `write_onnx` was told `about`; None of another tool's file."""
        text = self.session.get_modelmeta().custom_metadata_map.get(f"secateur.{key}")
        return None if text is None else json.loads(text)

    def outputs(self, images: Tensor) -> list[Tensor]:
        """All outputs."""
        return [torch.from_numpy(each) for each in self.session.run(None, {self.input: images.contiguous().numpy()})]

    def forward(self, images: Tensor) -> Tensor:
        return self.outputs(images)[0]


def quantise(path: Path, out: Path, images: Sequence[Tensor]) -> None:
    """Writes an ONNX file whose convolutions compute with 8-bit integers, by onnxruntime's static quantisation.

    Weights are quantised per output channel, activations per tensor, to the range that they have on the images.

    Args:
        path: an ONNX file of float32.
        out: the file to write.
        images: batches (N, 3, H, W) to calibrate with, normalised.

    Raises:
        CannotError: onnxruntime can't do it.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    try:
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            ready = Path(folder, "ready.onnx")
            quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
            quantize_static(
                str(ready),
                str(out),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except Exception as error:  # whatever onnxruntime raises
        raise CannotError(f"onnxruntime can't quantise this network: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """Of an error, or of the one that it was raised from, which says more."""
    cause = error.__cause__ or error
    text = str(cause).strip() or type(cause).__name__
    return f"{type(cause).__name__}: {text.splitlines()[0]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk much; what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# -- average pooling to so many bins: as PyTorch writes it for images of any size, onnxruntime fails on it -------------


def _average_to_bins(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Adaptive average pooling of (N, C, H, W) as two products: bin i of n is the mean of floor(i H / n) to
    ceil((i + 1) H / n) - 1."""
    return _bins(output_size[0], x.shape[-2], x) @ x @ _bins(output_size[1], x.shape[-1], x).mT


def _bins(number: int, side: int, like: Tensor) -> Tensor:
    """(bins, side): the weight of each place in each bin."""
    bins, place = torch.arange(number, device=like.device), torch.arange(side, device=like.device)
    start, end = bins * side // number, ((bins + 1) * side + number - 1) // number
    inside = (place >= start[:, None]) & (place < end[:, None])
    return inside.to(like.dtype) / (end - start)[:, None].to(like.dtype)


_DECOMPOSITIONS = {
    torch.ops.aten.adaptive_avg_pool2d.default: _average_to_bins,
    torch.ops.aten._adaptive_avg_pool2d.default: _average_to_bins,
}
