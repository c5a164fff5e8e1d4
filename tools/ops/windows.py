"""Strides, dilations and pads of windows, as numbers: what ONNX leaves to automatic padding and to the rank is resolved."""

from celosia.tools.ops.family import Refused

__all__ = ["padding", "transposed_padding"]


def padding(operation, size, kernel, output):
    """Return kernel, stride, dilation and pads of a two-dimensional window, with automatic padding and rounding up resolved.

    Parameters
    ----------
    size, kernel, output : tuple
        (height, width) of the input, of the kernel, and of the output as ONNX Runtime has it.

    Returns
    -------
    stride, dilation : tuple of 2
    pads : (top, left, bottom, right), such that the output has exactly ``output`` pixels
    """
    attributes = operation.attributes
    rank = len(attributes.get("kernel_shape") or kernel)
    stride, dilation = _pair(attributes, "strides", rank), _pair(attributes, "dilations", rank)
    automatic = attributes.get("auto_pad", b"NOTSET").decode()
    given = tuple(attributes.get("pads") or (0,) * 2 * rank)
    half = len(given) // 2
    begins = (0,) * (2 - half) + given[:half]
    pads = [[], []]
    for axis in range(2):
        reach = (output[axis] - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
        total = reach - size[axis]
        if automatic.startswith("SAME"):
            if total < -1 or dilation[axis] != 1:  # ONNX Runtime's pooling then starts inside the map, or forgets the dilation
                raise Refused("Automatic padding must not skip pixels, nor meet a dilation.", "Write the pads as numbers.")
            total = max(total, 0)
            begin = total // 2 if automatic == "SAME_UPPER" else total - total // 2
        else:
            begin = 0 if automatic == "VALID" else begins[axis]
        pads[0].append(begin)
        pads[1].append(max(reach - begin - size[axis], 0))
    return stride, dilation, (*pads[0], *pads[1])


def transposed_padding(operation, size, kernel, output):
    """Return stride, dilation and pads of a ConvTranspose; as :func:`padding`. Only the pads at the top and left matter."""
    attributes = operation.attributes
    rank = len(operation.operands["w"].shape) - 2
    stride, dilation = _pair(attributes, "strides", rank), _pair(attributes, "dilations", rank)
    automatic = attributes.get("auto_pad", b"NOTSET").decode()
    given = tuple(attributes.get("pads") or (0,) * 2 * rank)
    begins = ((0,) + given[:rank])[-2:]
    extra = ((0,) + tuple(attributes.get("output_padding") or (0,) * rank))[-2:]
    if automatic.startswith("SAME") or attributes.get("output_shape"):
        begins = []
        for axis in range(2):
            full = (size[axis] - 1) * stride[axis] + extra[axis] + (kernel[axis] - 1) * dilation[axis] + 1
            total = max(0, full - output[axis])
            begins.append(total // 2 if automatic == "SAME_UPPER" else total - total // 2)
    elif automatic == "VALID":
        begins = 0, 0
    return stride, dilation, (*begins, 0, 0)


def _pair(attributes, name, rank):
    given = tuple(attributes.get(name) or (1,) * rank)
    return (1,) * (2 - len(given)) + given
