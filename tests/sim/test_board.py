"""Networks on a simulated board through a pseudo-terminal, as a user runs them on a real one: over good lines, bad ones, and ones that break."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from celosia.rtl.config import PRESETS
from celosia.rtl.csr import REGISTERS, WINDOWS
from celosia.rtl.link import WRITE, Deframer, frame, write_request
from celosia.sim.board import BadLine, running
from celosia.sim.executor import Executor
from celosia.sim.graphs import GraphBuilder, random_inputs
from celosia.tools.cli import main
from celosia.tools.compiler.pipeline import compile_graph
from celosia.tools.driver import Driver, create_transport
from celosia.tools.errors import EngineError
from celosia.tools.session import engine_config

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"
CONFIG = PRESETS["test"]
SMALL = dataclasses.replace(
    CONFIG, name="small", act_depth=512, weight_tiles=64, param_depth=32, program_depth=128, acc_depth=16
)
BAD = BadLine(drop=0.0005, flip=0.0005, insert=0.0005, seed=4)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def demo(path, *arguments):
    return main(["demo", "--engine", "test", "--on", f"uart:{path}", "--limit", "1", *arguments])


def network(config):
    """Return a program with its inputs and what the golden executor makes of them."""
    builder = GraphBuilder(3)
    first = builder.conv(builder.input(3, 7, 6, unsigned=True), 6, kernel=(3, 3), pads=(1, 1, 1, 1))
    graph = builder.graph(builder.pool(builder.conv(first, 6, kernel=(3, 2)), "max", (2, 2), stride=(2, 1)))
    program = compile_graph(graph, config)
    inputs = {name: batch[0] for name, batch in random_inputs(graph, 5).items()}
    return program, inputs, Executor(config, program).run(inputs)


def check(driver, case):
    """Load and run a case of :func:`network` and compare."""
    program, inputs, expected = case
    driver.load(program)
    outputs, stats = driver.run(inputs)
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name], value)
    return stats


def test_digits_give_the_integers_and_cycles_of_the_simulator(capsys):
    with running(CONFIG) as board:
        assert demo(board.path, "--json", "board.json") == 0
        assert demo(board.path) == 0  # a second program finds the engine as well
    out = capsys.readouterr().out
    assert out.count("0 differences from ONNX Runtime in 10 elements") == 2
    assert main(["demo", "--engine", "test", "--limit", "1", "--json", "simulator.json"]) == 0
    reports = [json.load(open(f"{name}.json")) for name in ("board", "simulator")]
    assert reports[0]["cycles"] == reports[1]["cycles"] > 0
    assert {layer["cycles"] for layer in reports[0]["layers"]} == {None} and reports[0]["unexplained_cycles"] is None


def test_digits_survive_noise_and_dropped_and_damaged_bytes(capsys):
    with running(CONFIG, line=BAD) as board:
        assert demo(board.path) == 0
        with create_transport(f"uart:{board.path}", CONFIG) as transport:
            data = np.random.default_rng(1).integers(0, 1 << 32, 2000, dtype=np.uint32)
            transport.write(WINDOWS["weights"].base, data)
            assert (transport.read(WINDOWS["weights"].base, 2000) == data).all()
            assert transport.repeated
    assert "0 differences from ONNX Runtime" in capsys.readouterr().out


@pytest.mark.parametrize("count", [10, 15_000])
def test_a_disconnect_is_one_sentence_and_the_next_run_is_right(count, capsys):
    with running(CONFIG, line=BadLine(disconnect=count)) as board:
        first = board.path
        assert demo(first) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith(f"celosia: uart:{first}: the connection broke (") and captured.err.count("\n") == 1
        assert demo(board.path) == 0
    assert "0 differences from ONNX Runtime" in capsys.readouterr().out


def test_a_host_that_goes_in_the_middle_of_a_run_or_a_request_leaves_nothing_behind():
    case = network(CONFIG)
    with running(CONFIG) as board:
        with create_transport(f"uart:{board.path}", CONFIG) as transport:
            driver = Driver(transport, CONFIG)
            cycles = check(driver, case).cycles
            transport.write32(REGISTERS["CONTROL"].offset, 1)
            transport.wire.send(b"\x7e\x85\x00\x00\x08\x01\x02")
        with create_transport(f"uart:{board.path}", CONFIG) as transport:
            assert check(Driver(transport, CONFIG), case).cycles == cycles


def test_memories_are_refused_while_a_program_runs_and_it_ends_unharmed():
    case = network(CONFIG)
    start = write_request(1, REGISTERS["CONTROL"].offset, np.array([1], np.uint32))
    spoil = write_request(2, WINDOWS["weights"].base, np.zeros(2, np.uint32))
    with running(CONFIG) as board, create_transport(f"uart:{board.path}", CONFIG) as transport:
        driver = Driver(transport, CONFIG)
        check(driver, case)
        weights = transport.read(WINDOWS["weights"].base, 2)
        transport.read32(0)
        transport.wire.send(frame(start) + frame(spoil))
        deframer, replies = Deframer(), []
        while len(replies) < 2:
            replies += deframer.feed(transport.wire.receive(5))
        assert replies == [bytes([WRITE | 1]), b"\x02"]
        assert transport.wait(10_000)
        assert (transport.read(WINDOWS["weights"].base, 2) == weights).all()


def test_another_engine_than_asked_for_is_named(capsys):
    with running(CONFIG) as board:
        assert main(["demo", "--engine", "mac64", "--on", f"uart:{board.path}"]) == 1
        assert (
            capsys.readouterr().err
            == f"celosia: uart:{board.path}: the board has engine 'test', not 'mac64': give --engine test\n"
        )


@pytest.mark.parametrize("link", ["uart", pytest.param("spi", marks=pytest.mark.slow)])
def test_a_network_runs_through_the_pins(link):
    case = network(SMALL)
    with running(SMALL, link=link) as board, create_transport(f"uart:{board.path}:20000", SMALL) as transport:
        check(Driver(transport, SMALL), case)
        assert not transport.repeated
    line = BadLine(drop=0.001, flip=0.001, insert=0.001)
    with running(SMALL, link=link, line=line) as board, create_transport(f"uart:{board.path}:20000", SMALL) as transport:
        check(Driver(transport, SMALL), case)
        assert transport.repeated


def test_the_command_keeps_a_link_to_its_pseudo_terminal():
    command = [sys.executable, "-m", "celosia.sim.board", "--engine", "test", "--path", "board", "--disconnect", "5000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "board\n"
        assert demo("board") == 1
        assert process.stdout.readline() == "board\n"
        assert os.path.exists("board")
        assert demo("board") == 0
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert not os.path.lexists("board")


@pytest.mark.parametrize(
    "option, sentence", [("--engine=paper", "engine must be one of"), ("--link=paper", "invalid choice: 'paper'")]
)
def test_the_command_explains_wrong_options(option, sentence):
    result = subprocess.run([sys.executable, "-m", "celosia.sim.board", option], capture_output=True, text=True)
    assert result.returncode and sentence in result.stderr and "Traceback" not in result.stderr


def test_nobody_at_the_other_end_is_one_sentence(capsys):
    master, slave = os.openpty()
    assert demo(os.ttyname(slave)) == 1
    error = capsys.readouterr().err
    assert "nobody answers; is the board connected and powered" in error and error.count("\n") == 1
    os.close(master)
    os.close(slave)


def test_a_program_on_a_board_raises_what_the_simulator_does():
    with running(CONFIG) as board, create_transport(f"uart:{board.path}", CONFIG) as transport:
        driver = Driver(transport, CONFIG)
        program, inputs, _ = network(CONFIG)
        driver.load(dataclasses.replace(program, instructions=program.instructions[:1]))
        with pytest.raises(EngineError, match="the engine stopped at instruction"):
            driver.run(inputs)


@pytest.mark.slow
@pytest.mark.skipif(not MODELS.exists(), reason="the models are not there")
@pytest.mark.parametrize("engine, model", [("ulx3s_85f", "mlperf_ic_resnet8_int8"), ("icebreaker", "mlperf_kws_dscnn_int8")])
def test_an_mlperf_network_runs_on_a_board(engine, model, capsys):
    with np.load(MODELS / f"{model}.npz") as arrays:
        np.savez(
            "in.npz", **{name.removeprefix("in__"): arrays[name][:1, 0] for name in arrays.files if name.startswith("in__")}
        )
    with running(engine_config(engine)) as board:
        arguments = ["--input", "in.npz", "--engine", engine, "--on", f"uart:{board.path}", "--check"]
        assert main(["run", str(MODELS / f"{model}.onnx"), *arguments]) == 0
    assert "0 differences from ONNX Runtime" in capsys.readouterr().out
