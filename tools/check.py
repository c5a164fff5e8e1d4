"""Comparison with ONNX Runtime, element by element.

The reference is ONNX Runtime with its integer kernels (session option ``session.qdqisint8allowed``). Two things need care:

*Intermediate tensors* become further graph outputs of the reference. That may change which nodes ONNX Runtime fuses, and so
its integers: a reference with further outputs is used only if it gives the plain session's outputs; else the tensors are taken in
smaller groups, and one that changes the outputs all alone is counted as different.

*Ties*: where the exact result of an AveragePool or a ConvTranspose lies halfway between two integers, ONNX Runtime's float32 arithmetic falls
either way (:mod:`celosia.tools.pools`, :mod:`celosia.tools.transposed`). An element that differs there, and is the other of the two integers, is counted as a tie. What follows
such a pool is compared with ONNX Runtime's result for the engine's own pooled values.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from celosia.tools.compiler.importer import load, session_options
from celosia.tools.errors import DoesNotFit
from celosia.tools.pools import average_pools
from celosia.tools.session import InferenceSession, check_feed
from celosia.tools.transposed import transposed_convolutions

__all__ = ["Comparison", "Reference", "check_layers", "check_outputs", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Elements of one tensor over all inferences, and how many of them differ or are ties; ``first`` is the first one that differs."""

    name: str
    elements: int
    differences: int
    ties: int = 0
    first: tuple | None = None

    def __str__(self):
        if not self.first:
            return f"{self.name}: {self.differences:,} of {self.elements:,} elements differ"
        index, ours, theirs = self.first
        where = f"element {list(index)} is {ours}, ONNX Runtime has {theirs}"
        return f"{self.name}: {self.differences:,} of {self.elements:,} elements differ; {where}"


class Reference:
    """ONNX Runtime on the model in ``path``.

    Parameters
    ----------
    path : str or Path
    keep : iterable of str
        Values that are outputs as well.
    cuts : iterable of Pool
        Average pools whose output is fed in; what the pool itself gives is the output ``NAME·reference``.
    """

    def __init__(self, path, *, keep=(), cuts=()):
        source = load(path, keep=keep)
        model = source.model
        for pool in cuts:
            _cut(model, pool)
        self.outputs = [value.name for value in model.graph.output]
        options = session_options()
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, feed, count):
        """Return each output as an array ``[count, …]``; ``feed`` holds such arrays."""
        results = [self.session.run(self.outputs, {name: np.asarray(array[n]) for name, array in feed.items()}) for n in range(count)]
        return {name: np.stack([result[place] for result in results]) for place, name in enumerate(self.outputs)}


def _cut(model, pool):
    """Make the output of ``pool`` a graph input for its readers."""
    renamed = f"{pool.output}·reference"
    for node in model.graph.node:
        if pool.output in node.output:
            node.output[:] = [renamed if name == pool.output else name for name in node.output]
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(pool.dtype))
    model.graph.input.append(onnx.helper.make_tensor_value_info(pool.output, kind, None))
    outputs = [value for value in model.graph.output if value.name != pool.output]
    del model.graph.output[:]
    names = {value.name for value in outputs}
    model.graph.output.extend(outputs)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (renamed, pool.input) if name not in names)
    del model.graph.value_info[:]


def compare(name, ours, theirs):
    """Return the :class:`Comparison` of two arrays; floats are equal where their bits are."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise ValueError(f"{name} must be {theirs.dtype} {theirs.shape}, not {ours.dtype} {ours.shape}")
    wrong = ours != theirs
    if ours.dtype.kind == "f":
        wrong &= ~(np.isnan(ours) & np.isnan(theirs))
    return _comparison(name, ours, theirs, wrong)


def _comparison(name, ours, theirs, wrong, ties=0):
    first = None
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        first = (index, ours[index].item(), theirs[index].item())
    return Comparison(name, ours.size, int(wrong.sum()), int(ties), first)


def check_outputs(session, path, feed, outputs, *, progress=None):
    """Compare a session's outputs with ONNX Runtime's.

    Parameters
    ----------
    session : InferenceSession
        Made from ``path``.
    path : str or Path
        The ONNX file.
    feed : dict
        What the session was given.
    outputs : list of array
        What it gave.

    Returns
    -------
    list of Comparison
        One for each output, and one for each average pool with ties.
    """
    arrays, count = check_feed(session.model, feed)
    theirs = Reference(path).run(arrays, count)
    names = [name for name, _, _ in session.model.outputs]
    ours = {name: array.reshape(theirs[name].shape) for name, array in zip(names, outputs)}
    found = [compare(name, ours[name], theirs[name]) for name in names]
    pools = _inexact(load(path).model)
    if pools and any(comparison.differences for comparison in found):
        kept = _kept_values(session, path, arrays, count, [pool.output for pool in pools], progress)
        pools = [pool for pool in pools if pool.output in kept]
        return _compare_all(path, arrays, count, kept | ours, names, pools)
    return found


def check_layers(session, path, feed, *, progress=None):
    """Compare every tensor that the compiled program computes with ONNX Runtime's; arguments and result as :func:`check_outputs`."""
    arrays, count = check_feed(session.model, feed)
    source = load(path)
    produced = {name for node in source.model.graph.node for name in node.output}
    outputs = [name for name, _, _ in source.outputs]
    names = dict.fromkeys(
        layer.output for segment in session.model.segments if hasattr(segment, "program") for layer in segment.program.layers
    )
    wanted = [name for name in names if name in produced and name not in outputs]
    ours = _kept_values(session, path, arrays, count, wanted, progress)
    pools = [pool for pool in _inexact(source.model) if pool.output in ours]
    return _compare_all(path, arrays, count, ours, [*wanted, *outputs], pools)


def _inexact(model):
    """Return the operators that ONNX Runtime adds up in float32."""
    return (*average_pools(model), *transposed_convolutions(model))


def _kept_values(session, path, arrays, count, names, progress):
    """Run with the values ``names`` as outputs, in as many programs as needed so that each fits; return them and the outputs."""
    try:
        kept = InferenceSession(path, session.config, session.on, keep=names, workers=session.workers)
    except DoesNotFit:
        if len(names) < 2:
            raise
        half = len(names) // 2
        first = _kept_values(session, path, arrays, count, names[:half], progress)
        return first | _kept_values(session, path, arrays, count, names[half:], progress)
    feed = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
    values = kept.run(None, feed, progress=progress)
    return {
        name: value.reshape(count, -1, *value.shape[1:]) for (name, _, _), value in zip(kept.model.outputs, values)
    }  # fmt: skip


def _compare_all(path, arrays, count, ours, names, pools):
    """Compare the tensors ``names`` with a reference that is fed the engine's values of ``pools``."""
    fed = arrays | {pool.output: ours[pool.output] for pool in pools}
    plain = Reference(path, cuts=pools).run(fed, count)
    by_pool = {pool.output: pool for pool in pools}
    extra = [name for name in names if name not in plain and name not in by_pool]
    values, changed = _kept_reference(path, fed, count, pools, extra, plain)
    found = []
    for name in names:
        if name in changed:
            found.append(Comparison(name, ours[name].size, ours[name].size))
        elif name in by_pool:
            found.append(_compare_pool(by_pool[name], ours[name], fed | values))
        else:
            found.append(compare(name, ours[name].reshape(values[name].shape), values[name]))
    found.extend(_compare_pool(pool, ours[pool.output], fed | values) for pool in pools if pool.output not in names)
    return found


def _kept_reference(path, fed, count, pools, names, plain):
    """Return ONNX Runtime's values of ``names`` (with those of ``plain``), and the names that change its outputs."""
    values = Reference(path, keep=names, cuts=pools).run(fed, count) if names else plain
    if all(np.array_equal(values[name], plain[name]) for name in plain):
        return values, set()
    if len(names) == 1:
        return plain, set(names)
    collected, changed = dict(plain), set()
    for part in (names[: len(names) // 2], names[len(names) // 2 :]):
        values, worse = _kept_reference(path, fed, count, pools, part, plain)
        collected |= values
        changed |= worse
    return collected, changed


def _compare_pool(pool, ours, values):
    theirs = values[f"{pool.output}·reference"]
    ours = ours.reshape(theirs.shape)
    wrong = ours != theirs
    ties = wrong & pool.is_tie(values[pool.input], ours) if wrong.any() else np.zeros_like(wrong)
    return _comparison(pool.output, ours, theirs, wrong & ~ties, ties.sum())


def summary(found):
    """Return ``(elements, differences, ties)`` of all comparisons."""
    total = defaultdict(int)
    for comparison in found:
        for key in ("elements", "differences", "ties"):
            total[key] += getattr(comparison, key)
    return total["elements"], total["differences"], total["ties"]
