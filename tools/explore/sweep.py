"""Evaluates configurations, in processes of this machine or on a Dask cluster, and keeps what has been found in a file to go on from."""

import dataclasses
import json
import math
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from celosia.rtl.config import EngineConfig
from celosia.tools.bench.networks import network
from celosia.tools.errors import BadConfig, BadFile, CelosiaError
from celosia.tools.estimate import estimate_model
from celosia.tools.session import open_model

__all__ = ["COSTS", "evaluate", "front", "key_of", "read_results", "sweep"]

COSTS = {
    "macs": "multiply-accumulates per cycle", "ram_kib": "KiB of memories", "lut4": "LUT4 of an ECP5 (--area)", "dsp": "multipliers of an ECP5 (--area)",
    "ram": "block RAMs of an ECP5 (--area)",
}  # fmt: skip
"""What a configuration costs."""


def key_of(config, models, area, clock):
    """Return what a result is found again by."""
    return f"{config.digest:08x} {' '.join(Path(name).name for name in models)}{' area' * area}{' clock' * clock}"


def evaluate(config, models, area=False, clock=False):
    """Evaluate one configuration.

    Parameters
    ----------
    config : EngineConfig
    models : sequence of str
        Names of generated networks, or ONNX files.
    area : bool
        Synthesise for an ECP5 with Yosys.
    clock : bool
        Place and route too, with one seed.

    Returns
    -------
    dict
        ``name``, ``config``, ``key``; ``cycles`` by model, None where it does not fit; ``mean``: geometric mean of cycles, None if one does not
        fit; ``macs``, ``ram_kib``; ``lut4``, ``dsp``, ``ram``, with ``clock`` in MHz ``mhz``; ``problem``.
    """
    cycles, problem = {}, ""
    for name in models:
        data = name if name.endswith(".onnx") else network(name).model().SerializeToString()
        try:
            cycles[name] = estimate_model(open_model(data, config), config).cycles
        except CelosiaError as error:
            cycles[name], problem = None, str(error)
    known = [count for count in cycles.values() if count]
    mean = math.exp(sum(map(math.log, known)) / len(known)) if len(known) == len(cycles) else None
    facts = {"key": key_of(config, models, area, clock), "name": config.name, "config": dataclasses.asdict(config), "cycles": cycles, "mean": mean,
             "macs": config.macs, "ram_kib": _memory_bits(config) / 8192, "problem": problem}  # fmt: skip
    return facts | (_synthesis(config, clock) if area or clock else {})


def _memory_bits(config):
    accumulators = 2 * config.acc_depth * config.cols * 32
    constants = 8 * config.weight_bytes + 64 * config.param_depth * config.lanes + 256 * config.program_depth
    return 8 * config.act_bytes + constants + accumulators + 8 * 256 * config.tables * config.lanes


def _synthesis(config, clock):
    from celosia.boards.synth import place, synthesise
    from celosia.boards.toolchain import OutOfTime, ToolFailed

    with tempfile.TemporaryDirectory(prefix="celosia-explore-") as folder:
        out = Path(folder)
        try:
            synthesise(config, out)
            cells = json.loads((out / "cells.json").read_text())["design"]["num_cells_by_type"]
            found = {"lut4": cells.get("LUT4", 0) + 2 * cells.get("CCU2C", 0), "dsp": cells.get("MULT18X18D", 0), "ram": cells.get("DP16KD", 0)}
            return found | ({"mhz": place(config, out, minutes=30)["clock"]} if clock else {})
        except (OutOfTime, ToolFailed) as error:
            return {"problem": str(error)}


def read_results(path):
    """Return the results in a file of JSON lines by their keys; an interrupted last line is left out.

    Raises
    ------
    BadFile
        If it cannot be read, or holds something else.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(path, f"cannot be read: {error}") from None
    found = {}
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            found[row["key"]] = row
        except (ValueError, KeyError, TypeError):
            if number < len(lines) - 1:
                raise BadFile(path, f"line {number + 1} is no result of `celosia explore`; give another file with --out") from None
    return found


def sweep(space, path, *, area=False, clock=False, scheduler=None, workers=None, done=lambda row: None):
    """Evaluate every configuration of a space that the file does not know yet; return all results of the space.

    Parameters
    ----------
    space : Space
    path : path-like
        JSON lines, one for each result, appended as they come.
    area, clock : bool
        See :func:`evaluate`.
    scheduler : str, optional
        Address of a Dask scheduler.
    workers : int, optional
        Processes on this machine; all cores if not given.
    done : callable
        Called with each result, those of the file first.

    Raises
    ------
    BadConfig
        If the scheduler cannot be reached, or Dask is not installed.
    """
    known = read_results(path)
    wanted = {key_of(config, space.models, area, clock): config for config in space.configs}
    rows = [known[key] for key in wanted if key in known]
    for row in rows:
        done(row)
    missing = [config for key, config in wanted.items() if key not in known]
    if not missing:
        return rows
    _end_line(path)
    with open(path, "a", encoding="utf-8") as file:
        for row in _evaluated(missing, space.models, area, clock, scheduler, workers):
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows.append(row)
            done(row)
    return rows


def _end_line(path):
    """Cut off what an interrupted run has left of a line."""
    path = Path(path)
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def _evaluated(configs, models, area, clock, scheduler, workers):
    """Yield results as they come."""
    if scheduler:
        try:
            from distributed import Client
            from distributed import as_completed as completed
        except ImportError:
            raise BadConfig("--scheduler needs Dask: pip install 'celosia[explore]'") from None
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise BadConfig(f"no Dask scheduler answers at {scheduler}: {error}") from None
        with client:
            futures = [client.submit(_evaluate, config.to_json(), models, area, clock, pure=False) for config in configs]
            for future in completed(futures):
                yield future.result()
        return
    with ProcessPoolExecutor(max_workers=workers or os.cpu_count()) as pool:
        futures = [pool.submit(_evaluate, config.to_json(), models, area, clock) for config in configs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _evaluate(config, models, area, clock):
    return evaluate(EngineConfig.from_json(config), models, area, clock)


def front(rows, cost, time="mean"):
    """Return the rows that no other one beats in both ``time`` and ``cost``, by falling time; of equal ones the first."""
    usable = sorted((row for row in rows if row.get(time) and row.get(cost) is not None), key=lambda row: (row[cost], row[time]))
    found, best = [], math.inf
    for row in usable:
        if row[time] < best:
            found.append(row)
            best = row[time]
    return found
