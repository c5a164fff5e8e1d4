"""Seeded random quantised networks, a comparison with ONNX Runtime, and the shrinking of what fails.

``python tests/tools/random_graphs.py --count 300 --on verilator`` runs seeds 0…299 on the simulated RTL and prints one line for
each failure, with the smallest graph that still fails. A graph is described by a :class:`Recipe`; every step draws its
numbers from a generator of its own, so that steps can be dropped while the others stay as they are.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from graph_builder import Builder

from celosia.tools.check import check_outputs, summary
from celosia.tools.session import InferenceSession

MAX_MAP = 700  # elements: what the smallest preset holds several of
FREE = ("QuantizeLinear", "DequantizeLinear", "Softmax")  # belong on the host at a graph's ends


@dataclass(frozen=True)
class Step:
    """One operator. Sizes that do not fit where it stands are clamped when the graph is built."""

    operator: str
    seed: int
    options: tuple = ()  # (name, value) pairs

    def get(self, name, default=None):
        return dict(self.options).get(name, default)


@dataclass(frozen=True)
class Recipe:
    """A description from which :func:`build` makes a graph and its inputs."""

    seed: int
    form: str
    unsigned: bool
    shape: tuple
    steps: tuple
    real_input: bool = False
    real_output: bool = False
    softmax: bool = False
    tap: bool = False  # an intermediate tensor is a graph output too
    count: int = 3  # inferences


def random_recipe(seed):
    """Return the recipe of a seed."""
    rng = np.random.default_rng([seed, 0xCE105])
    form = "qdq" if rng.random() < 0.6 else "qoperator"
    matrix = rng.random() < 0.12
    if matrix:
        shape = (int(rng.integers(1, 20)), int(rng.integers(1, 24)))
        menu = {"matmul": 5, "add": 1}
    elif rng.random() < 0.15:
        shape = (int(rng.integers(1, 80)),)
        menu = {"gemm": 5, "matmul": 2, "add": 1}
    else:
        shape = (int(rng.integers(1, 12)), int(rng.integers(1, 13)), int(rng.integers(1, 13)))
        menu = {
            "conv": 9,
            "maxpool": 2,
            "averagepool": 2,
            "pad": 1,
            "add": 3,
            "flatten": 0.7,
            "globalaveragepool": 0.7,
            "clip": 1,
        }
    names, weights = list(menu), np.array(list(menu.values()), float)
    steps = []
    for _ in range(int(rng.integers(1, 6))):
        operator = str(rng.choice(names, p=weights / weights.sum()))
        steps.append(Step(operator, int(rng.integers(1 << 31)), random_options(rng, operator)))
        if operator in ("flatten", "globalaveragepool"):
            names, weights = ["gemm", "matmul", "add"], np.array([4.0, 1.0, 1.0])
            if operator == "globalaveragepool":
                steps.append(Step("flatten", 0))
    real = form == "qdq" or rng.random() < 0.5
    return Recipe(
        seed, form, bool(rng.random() < 0.5), shape, tuple(steps),
        real_input=bool(real and rng.random() < 0.4), real_output=bool(real and rng.random() < 0.4),
        softmax=bool(rng.random() < 0.3), tap=bool(rng.random() < 0.15),
    )  # fmt: skip


def random_options(rng, operator):
    pair = lambda low, high: (int(rng.integers(low, high)), int(rng.integers(low, high)))
    options = {"relu": [None, None, None, None, "relu", "relu", "relu", (0.0, 0.7), (-0.4, 0.9)][rng.integers(9)]}
    if operator in ("conv", "maxpool", "averagepool"):
        options |= {"kernel": pair(1, 5), "stride": pair(1, 4) if rng.random() < 0.4 else (1, 1)}
        options |= {"pads": tuple(int(p) for p in rng.integers(0, 3, 4)) if rng.random() < 0.6 else (0, 0, 0, 0)}
    if operator in ("conv", "maxpool"):
        options |= {"dilation": pair(1, 4) if rng.random() < 0.25 else (1, 1)}
    if operator in ("conv", "gemm", "matmul"):
        options |= {"out": int(rng.integers(1, 14)), "per_channel": bool(rng.random() < 0.6), "bias": bool(rng.random() < 0.8)}
        options |= {"transposed": bool(rng.random() < 0.5)}
    if operator == "averagepool":
        options |= {"count_include_pad": int(rng.integers(2)), "same_scale": bool(rng.random() < 0.3)}
    if operator == "maxpool":
        options |= {"rescale": bool(rng.random() < 0.15)}
    if operator == "pad":
        options |= {"pads": tuple(int(p) for p in rng.integers(0, 3, 4))}
    if operator == "flatten":
        options |= {"reshape": bool(rng.random() < 0.5)}
    if operator == "add":
        options |= {"fresh": bool(rng.random() < 0.3)}
    return tuple(options.items())


# Building ------------------------------------------------------------------------------------------------------------


def build(recipe):
    """Return ``(ONNX model, inputs)``: the inputs are arrays whose first dimension is the number of inferences."""
    rng = np.random.default_rng([recipe.seed, 1])
    builder = Builder(form=recipe.form, unsigned=recipe.unsigned)
    value = builder.input(rng, recipe.shape, count=recipe.count, real=recipe.real_input)
    values = [value]
    for step in recipe.steps:
        new = STEPS[step.operator](builder, np.random.default_rng([recipe.seed, step.seed]), step, values)
        if new is not None:
            values.append(new)
    if len(values) == 1:
        values.append(STEPS["conv" if len(recipe.shape) == 3 else "matmul"](builder, rng, Step("conv", 0), values))
    if recipe.tap and len(values) > 2:
        builder.output(values[len(values) // 2])
    builder.output(values[-1], real=recipe.real_output, softmax=recipe.softmax)
    return builder.model(f"random{recipe.seed}"), builder.samples


def _window(step, height, width, *, half_pads=False):
    """Return ONNX attributes of a window clamped so that at least one output pixel exists.

    ``half_pads`` keeps every pad below the kernel's size, as pooling wants it.
    """
    dilation = step.get("dilation", (1, 1))
    kernel, pads = [], list(step.get("pads", (0, 0, 0, 0)))
    for axis, size in enumerate((height, width)):
        wanted = step.get("kernel", (1, 1))[axis]
        if half_pads:
            pads[axis], pads[axis + 2] = min(pads[axis], wanted - 1), min(pads[axis + 2], wanted - 1)
        padded = size + pads[axis] + pads[axis + 2]
        kernel.append(max(1, min(wanted, (padded - 1) // dilation[axis] + 1)))
        if half_pads and kernel[axis] < wanted:
            pads[axis], pads[axis + 2] = 0, 0
            kernel[axis] = max(1, min(wanted, (size - 1) // dilation[axis] + 1))
    attributes = {"kernel_shape": kernel, "strides": list(step.get("stride", (1, 1))), "pads": pads}
    if dilation != (1, 1):
        attributes["dilations"] = list(dilation)
    return attributes


def _conv(builder, rng, step, values):
    channels, height, width = values[-1].shape[1:]
    attributes = _window(step, height, width)
    area = np.prod([
        (size + attributes["pads"][axis] + attributes["pads"][axis + 2]) // attributes["strides"][axis] + 1
        for axis, size in enumerate((height, width))
    ])  # fmt: skip
    shape = (int(max(1, min(step.get("out", 3), MAX_MAP // area))), channels, *attributes["kernel_shape"])
    return builder.weighted(
        rng, "Conv", values[-1], shape, 0, per_channel=step.get("per_channel", True), bias=step.get("bias", True),
        relu=step.get("relu"), attributes=attributes,
    )  # fmt: skip


def _gemm(builder, rng, step, values):
    transposed, features, out = step.get("transposed", False), values[-1].shape[1], step.get("out", 5)
    shape = (out, features) if transposed else (features, out)
    return builder.weighted(
        rng, "Gemm", values[-1], shape, 0 if transposed else 1, per_channel=step.get("per_channel", False),
        bias=step.get("bias", True), relu=step.get("relu"), attributes={"transB": int(transposed)},
    )  # fmt: skip


def _matmul(builder, rng, step, values):
    shape = (values[-1].shape[-1], step.get("out", 5))
    return builder.weighted(
        rng, "MatMul", values[-1], shape, 1, per_channel=step.get("per_channel", False), bias=False,
        relu=step.get("relu"), attributes={},
    )  # fmt: skip


def _maxpool(builder, rng, step, values):
    attributes = _window(step, *values[-1].shape[2:], half_pads=True)
    return builder.plain(rng, "MaxPool", values[-1], attributes=attributes, rescale=step.get("rescale"))


def _averagepool(builder, rng, step, values):
    attributes = _window(step, *values[-1].shape[2:], half_pads=True) | {"count_include_pad": step.get("count_include_pad", 0)}
    return builder.pooled(rng, "AveragePool", values[-1], attributes, same_scale=step.get("same_scale"))


def _globalaveragepool(builder, rng, step, values):
    return builder.pooled(rng, "GlobalAveragePool", values[-1], {})


def _pad(builder, rng, step, values):
    value = values[-1]
    top, left, bottom, right = step.get("pads")
    if np.prod(value.shape[1:2]) * (value.shape[2] + top + bottom) * (value.shape[3] + left + right) > MAX_MAP:
        return None
    pads = builder.constant("pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    real = np.float32(0)
    if builder.form == "qdq":
        return builder.plain(rng, "Pad", value, inputs=[pads, builder.constant("zero", real)])
    zero = builder.constant("zero", builder.dtype(value.zero_point))
    name = builder.node("Pad", [value.name, pads, zero])
    sample = np.pad(value.sample, ((0, 0), (0, 0), (top, bottom), (left, right)))
    return builder.value(name, sample, value.scale, value.zero_point, value.parameters)


def _clip(builder, rng, step, values):
    if builder.form == "qdq":
        relu = step.get("relu") or "relu"
        value = values[-1]
        name = builder.activation(builder.dequantise(value), relu)
        real = value.sample.clip(0 if relu == "relu" else relu[0], None if relu == "relu" else relu[1])
        return builder.quantise(rng, name, real, value if rng.random() < 0.5 else None)
    limits = sorted(int(limit) for limit in rng.integers(builder.limits[0], builder.limits[1] + 1, 2))
    names = [builder.constant("limit", builder.dtype(limit)) for limit in limits]
    value = values[-1]
    real = value.sample.clip(*((limit - value.zero_point) * value.scale for limit in limits))
    return builder.value(builder.node("Clip", [value.name, *names]), real, value.scale, value.zero_point, value.parameters)


def _flatten(builder, rng, step, values):
    if len(values[-1].shape) == 2:
        return None
    if step.get("reshape"):
        return builder.plain(rng, "Reshape", values[-1], inputs=[builder.constant("shape", np.array([0, -1], np.int64))])
    return builder.plain(rng, "Flatten", values[-1])


def _add(builder, rng, step, values):
    """Add an earlier tensor of the same shape, or else a further graph input."""
    earlier = [value for value in values[:-1] if value.shape == values[-1].shape]
    if earlier and not step.get("fresh"):
        other = earlier[rng.integers(len(earlier))]
    elif len(builder.inputs) < 3:
        other = builder.input(rng, values[-1].shape[1:], count=len(values[-1].sample))
    else:
        return None
    pair = (values[-1], other) if rng.random() < 0.5 else (other, values[-1])
    return builder.add(rng, *pair, relu=step.get("relu"))


STEPS = {
    "add": _add, "averagepool": _averagepool, "clip": _clip, "conv": _conv, "flatten": _flatten, "gemm": _gemm,
    "globalaveragepool": _globalaveragepool, "matmul": _matmul, "maxpool": _maxpool, "pad": _pad,
}  # fmt: skip


# Shrinking -----------------------------------------------------------------------------------------------------------


def smaller(recipe):
    """Yield recipes that are one step simpler than ``recipe``, the boldest first."""
    for index in range(len(recipe.steps)):
        yield dataclasses.replace(recipe, steps=recipe.steps[:index] + recipe.steps[index + 1 :])
    plain = {"real_input": False, "real_output": False, "softmax": False, "tap": False, "count": 1, "unsigned": False}
    for name, value in plain.items():
        if getattr(recipe, name) != value:
            yield dataclasses.replace(recipe, **{name: value})
    for axis, size in enumerate(recipe.shape):
        for less in {1, size // 2, size - 1} - {0, size}:
            yield dataclasses.replace(recipe, shape=recipe.shape[:axis] + (less,) + recipe.shape[axis + 1 :])
    simple = {
        "relu": None,
        "stride": (1, 1),
        "pads": (0, 0, 0, 0),
        "dilation": (1, 1),
        "bias": False,
        "per_channel": False,
        "out": 1,
    }
    for index, step in enumerate(recipe.steps):
        for name, value in step.options:
            if name in simple and value != simple[name]:
                options = tuple((key, simple[name] if key == name else old) for key, old in step.options)
                changed = dataclasses.replace(step, options=options)
                yield dataclasses.replace(recipe, steps=recipe.steps[:index] + (changed,) + recipe.steps[index + 1 :])


def shrink(recipe, fails, *, limit=80):
    """Return the smallest recipe found, in ``limit`` attempts, for which ``fails(recipe)`` still holds."""
    attempts, progress = 0, True
    while progress:
        progress = False
        for candidate in smaller(recipe):
            attempts += 1
            if attempts > limit:
                return recipe
            try:
                build(candidate)
            except Exception:  # a recipe that no longer makes sense
                continue
            if fails(candidate):
                recipe, progress = candidate, True
                break
    return recipe


# Running -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of one graph: ``problem`` is empty where every element is equal (or a tie)."""

    recipe: Recipe
    problem: str
    elements: int = 0
    ties: int = 0
    on_host: int = 0


def attempt(recipe, *, engine="test", on="golden"):
    """Compile a recipe's graph, run it and compare it with ONNX Runtime."""
    model, inputs = build(recipe)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"random{recipe.seed}.onnx"
        onnx.save(model, path)
        try:
            session = InferenceSession(path, engine, on, workers=1)
            found = check_outputs(session, path, inputs, session.run(None, inputs))
        except Exception as error:
            return Outcome(recipe, f"{type(error).__name__}: {error}")
    elements, differences, ties = summary(found)
    problem = "; ".join(str(comparison) for comparison in found if comparison.differences) if differences else ""
    on_host = sum(where == "host" and operator not in FREE for _, operator, where, _ in session.model.nodes)
    return Outcome(recipe, problem, elements, ties, on_host)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="number of graphs (default 300)")
    parser.add_argument("--start", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--engine", default="test", help="preset or JSON file (default test)")
    parser.add_argument(
        "--on", default="verilator", choices=("verilator", "icarus", "golden"), help="backend (default verilator)"
    )
    parser.add_argument("--no-shrink", action="store_true", help="print failing graphs as they are")
    options = parser.parse_args(argv)
    began, failures, elements, ties, whole = time.monotonic(), 0, 0, 0, 0
    for seed in range(options.start, options.start + options.count):
        outcome = attempt(random_recipe(seed), engine=options.engine, on=options.on)
        elements, ties, whole = elements + outcome.elements, ties + outcome.ties, whole + (not outcome.on_host)
        if outcome.problem:
            failures += 1
            print(f"seed {seed}: {outcome.problem}", flush=True)
            if not options.no_shrink:
                small = shrink(outcome.recipe, lambda r: bool(attempt(r, engine=options.engine, on=options.on).problem))
                print(f"  smallest: {small}\n  {attempt(small, engine=options.engine, on=options.on).problem}", flush=True)
    print(
        f"{options.count} graphs from seed {options.start} on {options.engine} ({options.on}): {elements:,} elements, "
        f"{ties} ties; {whole} graphs wholly on the engine; {time.monotonic() - began:.0f} s"
    )
    print(f"{options.count - failures} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
