"""Packages that reprune does without until something asks for them, and how each is installed."""

from __future__ import annotations

import importlib
from types import ModuleType

# What is imported: what it is called in an index, and the extra of reprune that brings it (empty where none does).
_PACKAGES = {
    "ai_edge_litert": ("ai-edge-litert", "export"),
    "ai_edge_quantizer": ("litert-torch", ""),
    "coremltools": ("coremltools", "coreml"),
    "executorch": ("executorch", "executorch"),
    "google": ("protobuf", "youtube8m"),
    "google_crc32c": ("google-crc32c", "youtube8m"),
    "huggingface_hub": ("huggingface_hub", "hub"),
    "jinja2": ("jinja2", "report"),
    "keras": ("keras", "keras"),
    "lightning": ("lightning", "train"),
    "litert_torch": ("litert-torch", ""),
    "matplotlib": ("matplotlib", "export"),
    "onnx": ("onnx", "export"),
    "onnxruntime": ("onnxruntime", "export"),
    "onnxscript": ("onnxscript", "export"),
    "safetensors": ("safetensors", "torch"),
    "tensorboard": ("tensorboard", "train"),
    "tf2onnx": ("tf2onnx", "export-keras"),
    "torch": ("torch", "torch"),
    "torchao": ("torchao", "executorch"),
    "torchmetrics": ("torchmetrics", "train"),
}


def lacking(module: str | None, what: str) -> str | None:
    """A sentence that says what to install for a module that is not there; None for one that is not known here.

    Example:
        >>> lacking("onnx.helper", "Exporting to .onnx")
        "Exporting to .onnx needs onnx: pip install 'reprune[export]'"
    """
    package, extra = _PACKAGES.get((module or "").partition(".")[0], ("", ""))
    wanted = f"'reprune[{extra}]'" if extra else package
    return f"{what} needs {package}: pip install {wanted}" if package else None


def imported(module: str) -> ModuleType:
    """Import a module of reprune.

    Raises:
        ModuleNotFoundError: When a package that it needs is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        advice = lacking(error.name, module)
        if advice is None:
            raise
        raise ModuleNotFoundError(advice, name=error.name) from None
