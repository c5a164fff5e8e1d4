"""Running a compiled model from Python, with the feel of ``onnxruntime.InferenceSession``."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from celosia.rtl.config import PRESETS, EngineConfig
from celosia.tools import program
from celosia.tools.backends import create_backend, prepare_backend
from celosia.tools.compiler.importer import session_options
from celosia.tools.compiler.pipeline import compile_model
from celosia.tools.errors import BadConfig, BadInput, EngineError, onnx_runtime_says
from celosia.tools.places import check_backend
from celosia.tools.program import EngineSegment, Model
from celosia.tools.report import Report

__all__ = ["InferenceSession", "NodeArg", "engine_config"]


@dataclass(frozen=True)
class NodeArg:
    """An input or output of the model, as ONNX Runtime describes it."""

    name: str
    type: str
    shape: list


def engine_config(engine):
    """Return the :class:`EngineConfig` of a preset's name, a board's, a JSON file's, or itself.

    Raises
    ------
    BadConfig
        If there is no such engine.
    """
    if isinstance(engine, EngineConfig):
        return engine
    name = str(engine)
    if name not in PRESETS and not name.endswith(".json"):
        from celosia.boards.catalog import BOARDS  # here: the boards' pins take a while to import

        if name in BOARDS:
            return BOARDS[name].config
    try:
        return EngineConfig.load(name)
    except ValueError as error:
        raise BadConfig(str(error)) from None


class InferenceSession:
    """A model on an engine.

    Parameters
    ----------
    model : str, Path, bytes or Model
        An ONNX file or what is in it, a file of `celosia compile`, or a compiled model.
    engine : str or EngineConfig
        A preset's name or a JSON file.
    on : str
        ``"verilator"``, ``"icarus"`` or ``"amaranth"`` simulate the RTL; ``"golden"`` computes the same integers without time. A board is
        named as in :mod:`celosia.tools.places`: ``"uart:/dev/ttyUSB0"``.
    options : CompilerOptions, optional
        How to compile an ONNX file.
    keep : iterable of str
        Values of the ONNX file that become outputs as well.
    workers : int, optional
        Simulators that share the inferences; chosen from their number where not given.
    memory : MemoryTiming, optional
        Of the simulated external memory, for engines with a memory port.

    Raises
    ------
    CelosiaError
        If the model cannot be read or compiled, or was compiled for another engine.
    """

    def __init__(self, model, engine="mac256", on="verilator", *, options=None, keep=(), workers=None, memory=None):
        self.config = engine_config(engine)
        check_backend(on)
        self.on = on
        self.workers = workers
        self.memory = memory
        if memory is not None:
            _check_memory(memory, self.config)
        self.model = model if isinstance(model, Model) else open_model(model, self.config, options, keep)
        self._report = None

    def get_inputs(self):
        """Return the :class:`NodeArg` of each input."""
        return [_node_arg(value) for value in self.model.inputs]

    def get_outputs(self):
        """Return the :class:`NodeArg` of each output."""
        return [_node_arg(value) for value in self.model.outputs]

    @property
    def report(self):
        """The :class:`~celosia.tools.report.Report` of the last run; None before the first."""
        return self._report

    def prepare(self, on_build=lambda: None):
        """Build the simulator if it is not in the cache; ``on_build`` is called before that, it takes about a minute."""
        prepare_backend(self.on, self.config, on_build, memory=self.memory)

    def run(self, output_names, input_feed, *, progress=None):
        """Run the model.

        Parameters
        ----------
        output_names : list of str or None
            Which outputs to return; None for all, in the model's order.
        input_feed : dict of name to array
            The first dimension is the number of inferences; the others are the input's.
        progress : callable, optional
            Called with the number of inferences that have just been finished on the engine.

        Returns
        -------
        list of array
            The first dimension is the number of inferences.

        Raises
        ------
        BadInput
            If an input is missing, unknown, or has another shape or type than the model's.
        EngineError
            If the engine stops with an error.
        """
        known = [name for name, _, _ in self.model.outputs]
        names = known if output_names is None else list(output_names)
        for name in names:
            if name not in known:
                raise BadInput(name, f"is not an output of the model (outputs: {', '.join(known)})")
        values = self.compute(*check_feed(self.model, input_feed), progress=progress)
        return [_merge(values[name]) for name in names]

    def compute(self, values, count, *, progress=None):
        """Run ``count`` inferences; ``values`` and the result, every value at a segment's end, are arrays ``[count, *shape]`` by name."""
        values = dict(values)
        report = Report(
            model=self.model.source, engine=self.config.name, backend=self.on, inferences=count, peak=self.config.macs
        )
        for segment in self.model.segments:
            if isinstance(segment, EngineSegment):
                values |= self._run_engine(segment.program, values, count, report, progress)
            else:
                values |= run_host(segment, values, count, self.model.source)
                report.add_host(segment)
        self._report = report
        return values

    def _run_engine(self, program, values, count, report, progress):
        feed = {port.name: values[port.name].reshape(count, *port.shape) for port in program.inputs}
        backend = create_backend(self.on, self.config, program, workers=self.workers, memory=self.memory)
        outputs, cycles, events = backend.run(feed, progress or (lambda done: None))
        report.add_program(program, cycles, events)
        return {
            port.name: outputs[port.name].reshape(count, *(1,) * port.batched, *port.shape) for port in program.outputs
        }


def _check_memory(timing, config):
    if not config.memory_bytes:
        raise BadConfig(f"the engine {config.name} has no memory port, so that there is no external memory to describe")
    try:
        timing.beat_cycles(config.memory_bytes)
    except ValueError as error:
        raise BadConfig(str(error)) from None


def open_model(path, config, options=None, keep=()):
    """Compile an ONNX file, or read what `celosia compile` wrote."""
    if program.is_program_file(path):
        return program.load(path, config)
    return compile_model(path, config, options, keep=keep)


def run_host(segment, values, count, file):
    """Run a host segment of the model ``file`` ``count`` times; ``values`` and the result are arrays ``[count, …]`` by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(segment.onnx, session_options(), providers=["CPUExecutionProvider"])
    names = list(segment.outputs)
    try:
        results = [session.run(names, {name: np.asarray(values[name][n]) for name in segment.inputs}) for n in range(count)]
    except Exception as error:
        raise EngineError(f"{file}: ONNX Runtime cannot run the nodes on the host: {onnx_runtime_says(error)}") from None
    return {name: np.stack([result[index] for result in results]) for index, name in enumerate(names)}


def check_feed(model, feed):
    """Check the arrays against the model's inputs.

    Returns
    -------
    dict, int
        Arrays ``[inferences, *shape with batch]`` by name, and the number of inferences.

    Raises
    ------
    BadInput
    """
    known = [name for name, _, _ in model.inputs]
    if not isinstance(feed, Mapping):
        raise BadInput(", ".join(known), f"must be given as a dict of arrays by name, not as {type(feed).__name__}")
    for name in feed:
        if name not in known:
            raise BadInput(name, f"is not an input of the model (inputs: {', '.join(known)})")
    checked, count = {}, None
    for name, dtype, shape in model.inputs:
        if name not in feed:
            raise BadInput(name, f"is missing; given: {', '.join(feed) or 'none'}")
        array = np.asarray(feed[name])
        if array.dtype.name != dtype:
            if dtype.startswith("float") or array.dtype.kind != "f":
                remedy = f"convert it to {dtype}"
            else:
                remedy = "quantise it with the scale and zero point of the model's input"
            raise BadInput(name, f"must be {dtype}, not {array.dtype.name}; {remedy}")
        if not shape:  # a number: one for each inference
            array, shape = array.reshape(-1), (1,)
        batch, rest = shape[0], tuple(shape[1:])
        if array.ndim != len(shape) or array.shape[1:] != rest or (array.shape[0] % batch if batch else array.shape[0]):
            wanted = ", ".join(["inferences" if batch == 1 else f"{batch} × inferences", *map(str, rest)])
            remedy = "; for one inference give array[None]" if array.shape == rest else ""
            raise BadInput(name, f"must have shape [{wanted}], not {list(array.shape)}{remedy}")
        inferences = array.shape[0] // batch if batch else 1
        if not inferences:
            raise BadInput(name, "holds no inference; give at least one")
        if count not in (None, inferences):
            raise BadInput(name, f"holds {inferences} inferences, but {known[0]!r} holds {count}")
        count = inferences
        checked[name] = np.ascontiguousarray(array).reshape(count, batch, *rest)
    for name, _, shape in model.inputs:
        if not shape:
            checked[name] = checked[name].reshape(count)
    return checked, count or 1


def _merge(values):
    """``[inferences, batch, …]`` to ``[inferences · batch, …]``."""
    return values.reshape(values.shape[0] * values.shape[1], *values.shape[2:]) if values.ndim > 1 else values


def _node_arg(value):
    name, dtype, shape = value
    return NodeArg(name, f"tensor({'float' if dtype == 'float32' else dtype})", list(shape))
