"""``celosia ops``."""

from rich.table import Table

from celosia.tools import ops
from celosia.tools.commands.console import output
from celosia.tools.files import write_json

__all__ = ["run"]


def run(options):
    """Print the supported operators: family, ONNX operators, and the sentences of their constraints."""
    if options.json:
        families = [
            {
                "family": family,
                "operators": list(operators),
                "constraints": [{"sentence": sentence, "suggestion": suggestion} for sentence, suggestion in rules],
            }
            for family, operators, rules in ops.rows()
        ]
        write_json(options.json, families)
    table = Table(title="operators on the engine; every other one runs on the host", title_justify="left", show_lines=True)
    table.add_column("family")
    table.add_column("ONNX operators", overflow="fold")
    table.add_column("on the engine if")
    for family, operators, rules in ops.rows():
        table.add_row(family, ", ".join(operators), "\n".join(sentence for sentence, _ in rules))
    output().print(table)
    return 0
