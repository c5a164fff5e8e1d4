"""The demonstration network: handwritten digits, trained and quantised by :mod:`celosia.tools.demo.train`."""

from pathlib import Path

__all__ = ["IMAGES", "LABELS", "MODEL"]

_HERE = Path(__file__).parent
MODEL = _HERE / "digits_int8.onnx"
IMAGES = _HERE / "digits_images.npz"
LABELS = _HERE / "digits_labels.npy"
