"""``celosia compile``."""

from rich.markup import escape

from celosia.tools.commands.console import output
from celosia.tools.commands.run import print_host_nodes, refuse_host_nodes
from celosia.tools.compiler import pipeline
from celosia.tools.compiler.importer import refuse_float
from celosia.tools.compiler.sinks import listing
from celosia.tools.errors import BadConfig
from celosia.tools.files import replacing, write_json
from celosia.tools.program import EngineSegment, save
from celosia.tools.session import engine_config

__all__ = ["run"]


def run(options):
    """Compile; print what was asked for, and a line for each memory in use."""
    config = engine_config(options.engine)
    for name in options.dump_after:
        if name not in pipeline.PASSES:
            raise BadConfig(f"--dump-after must be one of {', '.join(pipeline.PASSES)}, not {name!r}")
    if not (options.output or options.dump_after or options.listing or options.json):
        raise BadConfig("nothing to do: give -o PROGRAM, --dump-after PASS, --listing or --json FILE")
    refuse_float(options.model)
    model = pipeline.compile_model(options.model, config, observe=lambda name, result: _dump(options, name, result))
    if options.strict:
        refuse_host_nodes(model)
    programs = [segment.program for segment in model.segments if isinstance(segment, EngineSegment)]
    if options.listing:
        for program in programs:
            print(listing(program))
    if options.json:
        write_json(options.json, _document(model, programs, config))
    if options.output:
        with replacing(options.output) as path:
            save(model, path)
    if options.output or options.json:
        for program in programs:
            _summarise(program, config)
        print_host_nodes(model)
    return 0


def _dump(options, name, result):
    if name in options.dump_after:
        print(f"after pass '{name}':\n{pipeline.describe(result)}\n")


def _memories(program, config):
    """Return ``(taken, available)`` by memory; bytes, or instructions and entries."""
    return {
        "instructions": (len(program.instructions), config.program_depth),
        "weight bytes": (program.weights.nbytes, config.weight_bytes),
        "activation bytes": (program.act_words * config.rows, config.act_bytes),
        "parameter entries": (len(program.params), config.param_depth),
    }


def _document(model, programs, config):
    return {
        "model": model.source,
        "engine": config.name,
        "programs": [
            {
                "name": program.name,
                "memories": {
                    name.replace(" ", "_"): {"taken": taken, "available": available}
                    for name, (taken, available) in _memories(program, config).items()
                },
            }
            for program in programs
        ],
        "host_nodes": [
            {"name": name, "operator": operator, "reason": reason} for name, operator, reason, _ in model.host_nodes
        ],
    }


def _summarise(program, config):
    taken = ", ".join(f"{taken:,} of {available:,} {name}" for name, (taken, available) in _memories(program, config).items())
    output().print(f"{escape(program.name)}: {taken}")
