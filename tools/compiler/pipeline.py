"""The compiler, from an ONNX file to a program: the list of its passes.

===========  ===========================================================  ==================================================
pass         module                                                       result
===========  ===========================================================  ==================================================
importer     :mod:`~celosia.tools.compiler.importer`                      checked ONNX model
legalise     :mod:`~celosia.tools.compiler.legalise`                      operations with their quantisation
quantise     :mod:`~celosia.tools.compiler.quantise`                      engine nodes, or the reason why not
partition    :mod:`~celosia.tools.compiler.partition`                     segments for engine and host
fuse         :mod:`~celosia.tools.compiler.fuse`                          :class:`~celosia.tools.compiler.ir.Graph`
layout       :mod:`~celosia.tools.compiler.layout`                        where tensors lie, what is unfolded
tile         :mod:`~celosia.tools.compiler.tile`                          column tiles and regions
schedule     :mod:`~celosia.tools.compiler.schedule`                      steps in program order
allocate     :mod:`~celosia.tools.compiler.allocate`                      addresses
emit         :mod:`~celosia.tools.compiler.emit`                          instructions, with tokens, and constants
verify       :mod:`~celosia.tools.compiler.verify`                        nothing, or an exception
===========  ===========================================================  ==================================================

The first five are the front end's (:mod:`~celosia.tools.compiler.frontend`) and see the whole model; the others run for each
segment of the engine, and with other options again where that may save cycles (:mod:`~celosia.tools.compiler.search`).
"""

from dataclasses import replace
from functools import partial

from celosia.tools.compiler import ir
from celosia.tools.compiler.allocate import allocate
from celosia.tools.compiler.emit import emit, emit_stream
from celosia.tools.compiler.layout import lay_out
from celosia.tools.compiler.options import CompilerOptions
from celosia.tools.compiler.schedule import schedule
from celosia.tools.compiler.search import fewest_cycles
from celosia.tools.compiler.stream import stream
from celosia.tools.compiler.tile import tile
from celosia.tools.compiler.verify import verify, verify_stream
from celosia.tools.errors import DoesNotFit
from celosia.tools.program import EngineSegment, Model

__all__ = ["PASSES", "compile_frontend", "compile_graph", "compile_model", "describe"]

PASSES = (
    "importer", "legalise", "quantise", "partition", "fuse",
    "layout", "tile", "schedule", "allocate", "emit", "verify",
)  # fmt: skip
RINGS = (3, 2, 1)
"""Tiles of unfolded input to try where ``options.unfold_slots`` do not fit."""

LARGEST = {"max_pixels": 1024, "min_tiles": 1}
"""Options with which a program has the fewest instructions: each layer in tiles as large as the accumulators."""


def compile_model(path, config, options=None, *, keep=(), observe=None):
    """Compile an ONNX file.

    Parameters
    ----------
    path : str or Path
    config : EngineConfig
    options : CompilerOptions, optional
    keep : iterable of str
        ONNX values that become outputs of the segment that computes them, whatever fusion would do to them.
    observe : function, optional
        Called with the name of each pass and its result; :func:`describe` turns a result into text.

    Returns
    -------
    Model

    Raises
    ------
    BadModel, UnsupportedOperator, DoesNotFit
    """
    from celosia.tools.compiler.frontend import lower

    return compile_frontend(lower(path, config, keep=keep, observe=observe), config, options, observe=observe)


def compile_frontend(frontend, config, options=None, *, observe=None):
    """Compile what the front end made of a file; see :func:`compile_model`."""
    segments = []
    for segment in frontend.segments:
        if isinstance(segment, ir.Graph):
            try:
                segment = EngineSegment(program=compile_graph(segment, config, options, observe=observe))
            except DoesNotFit as error:
                raise error.name(frontend.file, config.name) from None
        segments.append(segment)
    return Model(
        source=frontend.file,
        sha256=frontend.sha256,
        inputs=frontend.inputs,
        outputs=frontend.outputs,
        segments=tuple(segments),
        nodes=frontend.rows,
    )


def compile_graph(graph, config, options=None, *, observe=None):
    """Compile a graph of engine nodes; see :func:`compile_model`.

    Returns
    -------
    Program
    """
    options = options or CompilerOptions()
    observe = observe or (lambda name, result: None)
    try:
        return _compile(graph, config, options, observe)
    except DoesNotFit as error:
        if config.memory_bytes:
            return _compile_streamed(graph, config, options, observe)
        if error.memory != "program":
            raise
    return _compile(graph, config, replace(options, **LARGEST), observe)


def _compile_streamed(graph, config, options, observe):
    """Compile a graph that is larger than the chip."""
    streamed = stream(graph, config, options)
    observe("allocate", streamed)
    emission = emit_stream(streamed, config, options)
    observe("emit", emission)
    if options.verify:
        verify_stream(emission, config)
        observe("verify", None)
    return emission.program


def _compile(graph, config, options, observe):
    emission = _emit(graph, config, options)
    if options.search:
        emission = fewest_cycles(emission, partial(_emit, graph, config), config, options)
    allocation = emission.allocation
    observe("layout", allocation.schedule.tiling.layout)
    observe("tile", allocation.schedule.tiling)
    observe("schedule", allocation.schedule)
    observe("allocate", allocation)
    observe("emit", emission)
    if options.verify:
        verify(emission, config)
        observe("verify", None)
    return emission.program


def _emit(graph, config, options):
    return emit(_place(graph, config, options), config, options)


def _place(graph, config, options):
    """Return the :class:`~celosia.tools.compiler.allocate.Allocation` of ``graph``.

    Where memory is short, the largest maps give up the words between their rows, and their readers the depthwise mode.
    """
    layout = lay_out(graph, config, options)
    try:
        return _schedule_and_allocate(tile(layout, config, options), config, options)
    except DoesNotFit:
        spread = layout.spread
        if not spread:
            raise
    layout = lay_out(graph, config, options, contiguous=spread)
    least = _schedule_and_allocate(tile(layout, config, options), config, options)
    for count in (1, 2, 4, 8):
        if count < len(spread):
            layout = lay_out(graph, config, options, contiguous=spread[:count])
            try:
                return _schedule_and_allocate(tile(layout, config, options), config, options)
            except DoesNotFit:
                pass
    return least


def _schedule_and_allocate(tiling, config, options):
    """Keep as much unfolded input as fits: all of it lets the load unit run ahead furthest."""
    for slots in (options.unfold_slots, *(ring for ring in RINGS if ring < options.unfold_slots)):
        try:
            return allocate(schedule(tiling, config, options, slots=slots), config, options)
        except DoesNotFit as error:
            problem = error
    raise problem


def describe(result):
    """Return the result of a pass as text."""
    if hasattr(result, "dump"):
        return result.dump()
    if isinstance(result, tuple):
        return "\n\n".join(describe(part) for part in result)
    return str(result)
