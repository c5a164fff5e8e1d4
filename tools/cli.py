"""The command ``celosia``: arguments, and errors as one sentence. The commands themselves are in :mod:`celosia.tools.commands`.

Exit codes: 0; 1 after an error, or a difference from ONNX Runtime; 2 for wrong arguments; 3 where `explain` finds a node on the
host; 130 after an interrupt.
"""

import argparse
import importlib
import sys

import celosia
from celosia.rtl.config import PRESETS
from celosia.rtl.config import BadConfig as BadEngine
from celosia.sim.external import MemoryTiming
from celosia.tools.errors import BadConfig, CelosiaError
from celosia.tools.explore.sweep import COSTS
from celosia.tools.paths import check_paths
from celosia.tools.places import FORMS, check_backend, is_place

__all__ = ["main", "parser"]

PASSES = "importer, legalise, quantise, partition, fuse, layout, tile, schedule, allocate, emit, verify"


def parser():
    """Return the argument parser of all commands."""
    result = argparse.ArgumentParser(
        prog="celosia",
        description="Celosia runs quantised ONNX models on an int8 tensor engine, with the integers of ONNX Runtime.",
        epilog="`celosia COMMAND --help` explains a command; `celosia demo` shows everything at work.",
    )
    result.add_argument("--version", action="version", version=f"celosia {celosia.__version__}")
    debug = argparse.ArgumentParser(add_help=False)
    for place in (result, debug):
        place.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    engine = argparse.ArgumentParser(add_help=False)
    engine.add_argument(
        "--engine", metavar="PRESET|FILE.json", default="mac256",
        help=f"the engine's configuration: {', '.join(PRESETS)}, a board of `celosia boards`, or a JSON file (default mac256)",
    )  # fmt: skip
    strict = argparse.ArgumentParser(add_help=False)
    strict.add_argument("--strict", action="store_true", help="refuse a model of which a node would run on the host")
    on = argparse.ArgumentParser(add_help=False)
    on.add_argument(
        "--on", metavar="BACKEND|BOARD", type=_backend, default="verilator",
        help="simulate the RTL: verilator (default), icarus or amaranth; compute with the golden executor, which has no cycles: golden; or run on the "
        f"board at {', '.join(FORMS[:-1])} or {FORMS[-1]}",
    )  # fmt: skip
    on.add_argument(
        "--memory", metavar="latency=N,bytes=N,gap=N,stalls=SEED", type=_memory,
        help="timing of the simulated external memory of an engine with a memory port, any of: cycles to the first beat (default 40), bytes per cycle "
        "(default the port's), cycles between bursts (default 0), seed of random pauses (default none)",
    )  # fmt: skip
    backend = argparse.ArgumentParser(add_help=False, parents=[on])
    backend.add_argument("--json", metavar="FILE", help="write the report as JSON")
    backend.add_argument("--timeline", metavar="FILE.svg", help="draw what each unit did in the first inference")
    commands = result.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

    def command(name, summary, *parents):
        return commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", parents=[debug, *parents]
        )

    run = command("run", "run a model on the engine and report cycles per layer", engine, backend, strict)
    run.add_argument("model", metavar="MODEL.onnx|PROGRAM", help="a quantised ONNX model, or a file of `celosia compile`")
    run.add_argument(
        "--input", metavar="IN.npz|IN.npy", required=True,
        help="arrays by graph input name, first dimension: number of inferences (.npy: the only input)",
    )  # fmt: skip
    run.add_argument("--output", metavar="OUT.npz", help="write the outputs, by graph output name")
    run.add_argument(
        "--check", nargs="?", const="outputs", choices=("outputs", "layers"),
        help="compare every output element with ONNX Runtime, or with =layers every intermediate tensor too; "
        "exit code 1 on any difference; behind the model, or as --check=outputs",
    )  # fmt: skip
    run.add_argument("--limit", metavar="N", type=int, help="run only the first N inferences")

    estimate = command(
        "estimate", "predict the cycles of each layer in a moment, without running the model, and what bounds them: the array, loading its weights, "
        "the load unit, the store unit, or the latency from one to the next; a model that does not fit the engine is estimated as if memories were larger",
        engine,
    )  # fmt: skip
    estimate.add_argument("model", metavar="MODEL.onnx|PROGRAM", help="a quantised ONNX model, or a file of `celosia compile`")
    estimate.add_argument("--json", metavar="FILE", help="write the report as JSON, with the keys of `celosia run --json` and `bound` for each layer")
    estimate.add_argument("--timeline", metavar="FILE.svg", help="draw what each unit will do")

    profile = command(
        "profile", "say where the cycles of one inference go, layer by layer: a table of causes, a page with timeline, roofline and memory map, a trace "
        "for a viewer", engine, on,
    )  # fmt: skip
    profile.add_argument("model", metavar="MODEL.onnx|PROGRAM", help="a quantised ONNX model, or a file of `celosia compile`")
    profile.add_argument("--input", metavar="IN.npz|IN.npy", help="arrays as for `celosia run`; zeros if not given, for cycles do not depend on data")
    profile.add_argument("--predict", action="store_true", help="ask the cycle model instead of simulating: seconds for a network of any size")
    profile.add_argument("--html", metavar="FILE.html", help="write the page: one file, no network access")
    profile.add_argument("--trace", metavar="FILE.json", help="write a trace that https://ui.perfetto.dev and chrome://tracing open")
    profile.add_argument("--json", metavar="FILE", help="write cycles by layer and cause, and bytes, as JSON")

    build = command("compile", "compile a model into a program file", engine, strict)
    build.add_argument("model", metavar="MODEL.onnx")
    build.add_argument("-o", "--output", metavar="PROGRAM", help="the program file to write")
    build.add_argument(
        "--dump-after", metavar="PASS", action="append", default=[], help=f"print the result of a pass: {PASSES}"
    )
    build.add_argument("--listing", action="store_true", help="print the instructions")
    build.add_argument(
        "--json", metavar="FILE", help="write what the program takes of each memory, and the nodes on the host, as JSON"
    )

    explain = command(
        "explain", "say of each node where it runs, why not on the engine, and what to do; exit code 0 if the engine runs all nodes, "
        "3 if the host runs one", engine,
    )  # fmt: skip
    explain.add_argument("model", metavar="MODEL.onnx")
    explain.add_argument("--json", metavar="FILE", help="write the explanation as JSON")
    quantize = command("quantize", "quantise a float model for the engine and report what that cost")
    quantize.add_argument("model", metavar="FLOAT.onnx")
    quantize.add_argument(
        "--calibration", metavar="DATA.npz|DATA.npy", required=True,
        help="typical inputs by graph input name, first dimension: number of samples; some tens to hundreds",
    )  # fmt: skip
    quantize.add_argument("-o", "--output", metavar="INT8.onnx", required=True, help="the quantised model to write")
    quantize.add_argument(
        "--method", choices=("percentile", "minmax", "entropy"), default="percentile",
        help="how the range of a tensor follows from the values seen: 99.999th percentile (default), extremes, or least relative entropy",
    )  # fmt: skip
    quantize.add_argument(
        "--per-channel", action=argparse.BooleanOptionalAction, default=True,
        help="a weight scale for each output channel (default), or one for each tensor",
    )  # fmt: skip
    quantize.add_argument(
        "--held-back", metavar="N", type=int, help="samples not calibrated with but used for the report (default: one of five)"
    )
    quantize.add_argument("--json", metavar="FILE", help="write the report as JSON")
    engines = command("engines", "list the engine presets")
    engines.add_argument("--json", metavar="FILE", help="write the configurations as JSON")
    operators = command("ops", "list the supported operators and their constraints")
    operators.add_argument("--json", metavar="FILE", help="write the list as JSON, with what to do about each constraint")
    boards = command("boards", "list the boards that a bitstream can be built for")
    boards.add_argument("--json", metavar="FILE", help="write the list as JSON")
    bitstream = command("build", "build the bitstream of a board with Yosys and nextpnr; `celosia run --on uart:PORT` loads programs into it later")
    bitstream.add_argument("board", metavar="BOARD", help="a name of `celosia boards`")
    bitstream.add_argument("--engine", metavar="PRESET|FILE.json", help="another engine than the board's own")
    bitstream.add_argument("--clock", metavar="MHZ", type=float, help="another clock for the engine than the board's own")
    bitstream.add_argument(
        "--seed", metavar="N", type=int, nargs="+", help="seeds of the placer, tried one after the other until the clock closes"
    )
    bitstream.add_argument("--minutes", metavar="M", type=float, default=30, help="limit for each seed (default 30)")
    bitstream.add_argument("--out", metavar="DIR", help="folder of bitstream and logs (default build/BOARD)")
    bitstream.add_argument("--force", action="store_true", help="build even if nothing has changed")
    bitstream.add_argument("--json", metavar="FILE", help="write area, clocks and paths as JSON")
    flash = command("flash", "write a bitstream to a connected board")
    flash.add_argument("board", metavar="BOARD", help="a name of `celosia boards`")
    flash.add_argument("file", metavar="FILE", nargs="?", help="the bitstream (default: that of build/BOARD)")
    demo = command("demo", "run handwritten digits through a small network and check every number", engine, backend)
    demo.add_argument("--limit", metavar="N", type=int, help="run only the first N images")
    bench = command(
        "bench", "measure networks of published shapes, generated with seeded weights, and check every output; exit code 1 on any difference "
        "from ONNX Runtime", engine, on,
    )  # fmt: skip
    bench.add_argument(
        "names", metavar="NETWORK", nargs="*",
        help="resnet8, dscnn, vww, autoencoder (MLPerf Tiny), resnet50, mobilenetv1, mobilenetv2 (224 × 224), gemm-MxKxN (default: all, and "
        "some products)",
    )  # fmt: skip
    bench.add_argument(
        "--convs", action="store_true",
        help="measure 60 single convolutions (channels 1…512, sizes 1…112, kernels 1…7, strides 1…3), and say what those far from their bound wait for",
    )  # fmt: skip
    bench.add_argument(
        "--levers", action="store_true",
        help="measure what each knob buys: a network with the engine as it is, and with the knob pulled back (each engine is built once, a minute)",
    )  # fmt: skip
    bench.add_argument("--save", metavar="DIR", help="run nothing: write each network and an input, DIR/NAME.onnx and DIR/NAME.npz")
    bench.add_argument("--json", metavar="FILE", help="write the measurements as JSON")
    explore = command(
        "explore", "sweep engine configurations with the cycle model and print the Pareto front of cycles and cost; results are kept as they come, and "
        "a second run goes on where the first one stopped",
    )  # fmt: skip
    explore.add_argument(
        "--space", metavar="FILE.toml", help="base, models and lists of knobs, as celosia.tools.explore.space describes; 48 engines around mac256 if not given"
    )
    explore.add_argument("--models", metavar="MODEL", nargs="+", help="networks of `celosia bench` or ONNX files, instead of the space's")
    explore.add_argument("--cost", choices=COSTS, default="ram_kib", help=f"of the front: {', '.join(f'{name}: {what}' for name, what in COSTS.items())}")
    explore.add_argument("--area", action="store_true", help="synthesise each engine for an ECP5 (Yosys, a minute or more each)")
    explore.add_argument("--clock", action="store_true", help="place and route each engine too (nextpnr, minutes each): the front is then of milliseconds")
    explore.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, tcp://host:8786; without it all cores of this machine work")
    explore.add_argument("--workers", metavar="N", type=int, help="processes on this machine (default: all cores)")
    explore.add_argument("--out", metavar="FILE.jsonl", default="explore.jsonl", help="the results, a line each (default explore.jsonl)")
    explore.add_argument("--svg", metavar="FILE.svg", help="draw all results and the front")
    explore.add_argument("--json", metavar="FILE", help="write front and results as JSON")
    return result


def main(argv=None):
    """Run the command line; return the exit code."""
    options = parser().parse_args(argv)
    debug = getattr(options, "debug", False)
    try:
        _check_paths(options)
        module = importlib.import_module(f"celosia.tools.commands.{options.command}")
        return module.run(options)
    except (CelosiaError, BadEngine) as error:
        if debug:
            raise
        return _fail(error)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the output has gone; there is nobody to tell
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except Exception as error:
        if debug:
            raise
        return _fail(f"internal error, please report it with the output of --debug: {type(error).__name__}: {error}")


def _backend(text):
    try:
        return check_backend(text)
    except BadConfig as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _memory(text):
    try:
        return MemoryTiming.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _check_paths(options):
    given = vars(options)
    engine = given.get("engine") or ""
    inputs = {
        "the model": given.get("model"),
        "the input": given.get("input"),
        "the calibration data": given.get("calibration"),
        "the space": given.get("space"),
        "the engine": engine if engine.endswith(".json") else None,
    }
    output = "--output" if options.command == "run" else "-o"
    check_paths(inputs, {output: given.get("output"), "--json": given.get("json"), "--timeline": given.get("timeline"), "--html": given.get("html"), "--trace": given.get("trace"), "--svg": given.get("svg"),
           "--out": given.get("out") if options.command == "explore" else None})
    if given.get("timeline") and given.get("on") == "golden":
        raise BadConfig("--timeline needs cycles, and there are none on 'golden'; use --on verilator")
    if given.get("timeline") and is_place(given.get("on", "")):
        raise BadConfig(f"--timeline needs what only a simulator sees, and {options.on} is a board; use --on verilator")


def _fail(problem, code=1):
    for line in str(problem).splitlines() or [""]:
        print(f"celosia: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
