"""``celosia compile``."""

from celosia.tools import program as programs
from celosia.tools.commands.console import output
from celosia.tools.commands.run import refuse_host_nodes
from celosia.tools.compiler import pipeline
from celosia.tools.compiler.importer import refuse_float
from celosia.tools.compiler.sinks import listing
from celosia.tools.errors import BadConfig
from celosia.tools.files import replacing
from celosia.tools.program import EngineSegment
from celosia.tools.session import engine_config

__all__ = ["run"]


def run(options):
    """Compile; print what was asked for, and a line for each memory in use."""
    config = engine_config(options.engine)
    for name in options.dump_after:
        if name not in pipeline.PASSES:
            raise BadConfig(f"--dump-after must be one of {', '.join(pipeline.PASSES)}, not {name!r}")
    if not (options.output or options.dump_after or options.listing):
        raise BadConfig("nothing to do: give -o PROGRAM, --dump-after PASS or --listing")
    refuse_float(options.model)
    model = pipeline.compile_model(options.model, config, observe=lambda name, result: _dump(options, name, result))
    if options.strict:
        refuse_host_nodes(model)
    for segment in model.segments:
        if isinstance(segment, EngineSegment) and options.listing:
            print(listing(segment.program))
    if options.output:
        with replacing(options.output) as path:
            programs.save(model, path)
        for segment in model.segments:
            if isinstance(segment, EngineSegment):
                _summarise(segment.program, config)
    return 0


def _dump(options, name, result):
    if name in options.dump_after:
        print(f"after pass '{name}':\n{pipeline.describe(result)}\n")


def _summarise(program, config):
    output().print(
        f"{program.name}: {len(program.instructions):,} instructions, "
        f"{program.weights.nbytes:,} of {config.weight_bytes:,} bytes of weights, "
        f"{program.act_words * config.rows:,} of {config.act_bytes:,} bytes of activations, "
        f"{len(program.params):,} of {config.param_depth:,} parameter entries"
    )
