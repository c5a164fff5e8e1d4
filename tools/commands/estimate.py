"""``celosia estimate``."""

from rich.markup import escape

from celosia.tools.commands.console import output, status
from celosia.tools.commands.run import write_report
from celosia.tools.compiler.importer import refuse_float
from celosia.tools.estimate import LARGEST, estimate_file
from celosia.tools.program import is_program_file
from celosia.tools.report import table
from celosia.tools.session import engine_config

__all__ = ["run"]


def run(options):
    """Print the predicted cycles of each layer."""
    config = engine_config(options.engine)
    if not is_program_file(options.model):
        refuse_float(options.model)
    with status("compiling"):
        report, problem = estimate_file(options.model, config)
    write_report(report, options)
    console = output()
    console.print(table(report))
    if problem:
        console.print(f"[yellow]{escape(str(problem))}[/]")
        knobs = ", ".join(f"{knob} of {value:,}" for knob, value in LARGEST.items())
        console.print(f"[yellow]estimated as if the engine had the largest memories there can be[/]: {knobs}")
    console.print("predicted by the cycle model without a run; nodes on the host are not in it")
    return 0
