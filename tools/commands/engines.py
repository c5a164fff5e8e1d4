"""``celosia engines``."""

import json

from rich.table import Table

from celosia.rtl.config import PRESETS
from celosia.tools.commands.console import output
from celosia.tools.files import write_json

__all__ = ["run"]


def run(options):
    """Print the presets and their sizes."""
    if options.json:
        write_json(
            options.json,
            {
                name: {"digest": f"{config.digest:08x}", "configuration": json.loads(config.to_json())}
                for name, config in PRESETS.items()
            },
        )
    table = Table(title="engine presets", title_justify="left")
    table.add_column("preset", no_wrap=True)
    for title in (
        "array",
        "MAC/cycle",
        "rows loaded",
        "lanes",
        "activations",
        "weights",
        "accumulators",
        "instructions",
        "digest",
    ):
        table.add_column(title, justify="right")
    for config in PRESETS.values():
        table.add_row(
            config.name, f"{config.rows} × {config.cols}", f"{config.macs:,}", f"{config.weight_rows}/cycle", str(config.lanes),
            f"{config.act_bytes // 1024} KiB", f"{config.weight_bytes // 1024} KiB", f"2 × {config.acc_depth:,} × {config.cols}",
            f"{config.program_depth:,}", f"{config.digest:08x}",
        )  # fmt: skip
    output().print(table)
    return 0
