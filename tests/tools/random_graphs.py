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
from graph_steps import MAX_MAP, STEPS, UNARY

from celosia.tools.check import check_outputs, summary
from celosia.tools.session import InferenceSession

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


MAPS = {
    "conv": 9, "maxpool": 2, "averagepool": 2, "pad": 1, "add": 3, "flatten": 0.7, "globalaveragepool": 0.7, "clip": 1,
    "convtranspose": 1, "globalmaxpool": 0.4, "reduce": 1, "unary": 2, "prelu": 0.7, "binary": 3, "concat": 2, "slice": 1, "split": 1,
    "transpose": 0.8, "gather": 0.6, "expand": 0.5, "depthtospace": 0.8, "spacetodepth": 0.8, "resize": 1, "channelshuffle": 0.8,
    "product": 0.7, "softmax": 0.3,
}  # fmt: skip
SEQUENCES = {
    "conv": 6, "maxpool": 1, "averagepool": 1, "unary": 1, "binary": 1, "add": 1, "matmul": 2, "product": 2, "concat": 1, "slice": 1,
    "split": 1, "transpose": 1, "reduce": 1, "unsqueeze": 0.5, "gather": 0.5, "prelu": 0.5, "flatten": 0.5, "convtranspose": 0.5,
}  # fmt: skip
VECTORS = {
    "gemm": 5,
    "matmul": 2,
    "add": 1,
    "unary": 1,
    "binary": 1,
    "concat": 0.5,
    "slice": 0.5,
    "split": 0.5,
    "unsqueeze": 0.3,
}


def random_recipe(seed):
    """Return the recipe of a seed."""
    rng = np.random.default_rng([seed, 0xCE105])
    form = "qdq" if rng.random() < 0.6 else "qoperator"
    kind = rng.random()
    if kind < 0.2:
        shape, menu = (int(rng.integers(1, 20)), int(rng.integers(1, 24))), SEQUENCES
    elif kind < 0.3:
        shape, menu = (int(rng.integers(1, 80)),), VECTORS
    else:
        shape, menu = (int(rng.integers(1, 12)), int(rng.integers(1, 13)), int(rng.integers(1, 13))), MAPS
    steps = []
    for _ in range(int(rng.integers(1, 7))):
        weights = np.array(list(menu.values()), float)
        operator = str(rng.choice(list(menu), p=weights / weights.sum()))
        steps.append(Step(operator, int(rng.integers(1 << 31)), random_options(rng, operator)))
        if operator in ("flatten", "globalaveragepool"):
            menu = VECTORS
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
    if operator in ("conv", "convtranspose", "maxpool", "averagepool"):
        options |= {"kernel": pair(1, 5), "stride": pair(1, 4) if rng.random() < 0.4 else (1, 1)}
        options |= {"pads": tuple(int(p) for p in rng.integers(0, 3, 4)) if rng.random() < 0.6 else (0, 0, 0, 0)}
    if operator in ("conv", "maxpool"):
        options |= {"dilation": pair(1, 4) if rng.random() < 0.25 else (1, 1)}
    if operator == "conv":
        options |= {"grouped": [None, None, "depthwise", "groups"][rng.integers(4)]}
    if operator in ("conv", "convtranspose", "gemm", "matmul"):
        options |= {"out": int(rng.integers(1, 14)), "per_channel": bool(rng.random() < 0.6), "bias": bool(rng.random() < 0.8)}
        options |= {"transposed": bool(rng.random() < 0.5), "unsigned_weights": bool(rng.random() < 0.3)}
    if operator == "averagepool":
        options |= {"count_include_pad": int(rng.integers(2)), "same_scale": bool(rng.random() < 0.3)}
    if operator in ("averagepool", "maxpool"):
        options |= {"ceil_mode": bool(rng.random() < 0.2)}
    if operator == "maxpool":
        options |= {"rescale": bool(rng.random() < 0.15)}
    if operator == "pad":
        options |= {"pads": tuple(int(p) for p in rng.integers(0, 3, 4)), "fill": float(rng.choice([0.0, 0.0, 0.4]))}
        options |= {"mode": str(rng.choice(["constant", "constant", "edge", "reflect"]))}
    if operator == "flatten":
        options |= {"reshape": bool(rng.random() < 0.5)}
    if operator in ("add", "binary"):
        options |= {"fresh": bool(rng.random() < 0.3)}
    if operator == "binary":
        options |= {"function": str(rng.choice(["Add", "Sub", "Mul", "Mul", "Min", "Max"]))}
        options |= {"operand": str(rng.choice(["tensor", "tensor", "constant", "broadcast"]))}
    if operator == "unary":
        options |= {"function": str(rng.choice([*UNARY, "Silu", "Rescale", "Sqrt"]))}
    return tuple(options.items())


# Building ------------------------------------------------------------------------------------------------------------


def build(recipe):
    """Return ``(ONNX model, inputs)``: the inputs are arrays whose first dimension is the number of inferences."""
    rng = np.random.default_rng([recipe.seed, 1])
    builder = Builder(form=recipe.form, unsigned=recipe.unsigned)
    value = builder.input(rng, recipe.shape, count=recipe.count, real=recipe.real_input)
    values = [value]
    for step in recipe.steps:
        mark, known = builder.mark(), len(values)
        new = STEPS[step.operator](builder, np.random.default_rng([recipe.seed, step.seed]), step, values)
        if new is not None:
            values.append(new)
        if new is None or any(not 0 < np.prod(value.shape) <= MAX_MAP for value in values[known:]):
            builder.rollback(mark)
            del values[known:]
    if len(values) == 1:
        values.append(STEPS["gemm" if len(recipe.shape) == 1 else "conv"](builder, rng, Step("conv", 0), values))
    if recipe.tap and len(values) > 2:
        builder.output(values[len(values) // 2])
    builder.output(values[-1], real=recipe.real_output, softmax=recipe.softmax)
    return builder.model(f"random{recipe.seed}"), builder.samples


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
    on_host = sum(where == "host" and operator not in FREE for _, operator, where, *_ in session.model.nodes)
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
