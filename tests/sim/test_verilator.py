"""Verilog, the compiled model and its cache, the timeline, and the other simulators beside it."""

import threading

import numpy as np
import pytest

from celosia.rtl.config import EngineConfig
from celosia.rtl.csr import REGISTERS, WINDOWS, identity, registers_of
from celosia.rtl.isa import Instruction, Opcode, encode
from celosia.rtl.queue import Queue
from celosia.sim.cache import cache_folder, cached
from celosia.sim.events import EVENT, TIMELINE, events_of
from celosia.sim.transport import TransportError
from celosia.sim.verilator.build import build, layout_header
from celosia.sim.verilog import VerilogError, verilog
from celosia.tools.driver import create_transport

# The smallest engine there is: its models build in seconds.
TINY = EngineConfig(
    rows=4, cols=1, weight_rows=1, lanes=1, act_depth=64, act_banks=1, weight_tiles=8, acc_depth=16, param_depth=16, tables=1,
    program_depth=16, queue_depth=2, unfold_streams=1,
)  # fmt: skip


def test_verilog_is_the_same_every_time_and_names_no_place():
    first, second = verilog(Queue(shape=8, depth=4)), verilog(Queue(shape=8, depth=4))
    assert first == second
    assert first.startswith("module celosia(") and "/" not in first.replace("//", "")


def test_ports_are_named_by_their_path():
    text = verilog(Queue(shape=8, depth=4), name="queue", form="flat")
    assert {"input [7:0] i_payload", "output o_valid", "input clk"} <= {line.strip().split(";")[0].strip() for line in text.splitlines()}


def test_an_unknown_form_is_refused():
    with pytest.raises(KeyError):
        verilog(Queue(shape=8, depth=4), form="round")
    assert issubclass(VerilogError, RuntimeError)


def test_layout_header_has_the_places_of_the_port():
    text = layout_header(TINY)
    assert "constexpr int TRACE_BUSY[] = {0, 18, 36, 54};" in text
    assert "constexpr int TRACE_WAITING[] = {72, 73, 74, 75};" in text


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_a_model_is_built_once_and_found_the_second_time(cache):
    builds = []
    first = build(TINY, cache=cache, on_build=lambda: builds.append(1))
    second = build(TINY, cache=cache, on_build=lambda: builds.append(2))
    assert first == second and builds == [1]
    assert first.parent.parent == cache
    with create_transport("verilator", TINY, cache=cache) as transport:
        for name, value in identity(TINY).items():
            assert transport.read32(REGISTERS[name].offset) == value


def test_the_cache_makes_a_key_once_for_many_threads(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "x").mkdir()
        (folder / "x" / "file").write_text("whole")
        return folder / "x"

    threads = [threading.Thread(target=cached, args=("key", make), kwargs={"folder": tmp_path}) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and (tmp_path / "key" / "file").read_text() == "whole"


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def fail(folder):
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        cached("key", fail, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


def test_the_cache_lies_where_the_user_wants_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "celosia"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert str(cache_folder()) == "/home/user/.cache/celosia"
    assert cache_folder(tmp_path / "here") == tmp_path / "here"


def test_events_of_a_timeline():
    busy, stall, index, waiting = (TIMELINE[name][1] for name in ("busy", "stall", "index", "waiting"))
    changes = [
        (0, 0), (3, 1 << waiting), (5, 1 << busy | 7 << index), (8, 1 << busy | 1 << stall | 7 << index), (10, 1 << busy | 8 << index),
    ]  # fmt: skip
    expected = np.array([(1, 7, 5, 10, 2, 2), (1, 8, 10, 15, 0, 0)], EVENT)
    assert (events_of(changes, 15) == expected).all()


def program(transport):
    """Two rounds through all three units with tokens between them."""
    sizes = {"kernel_y": 1, "streams": 1, "groups": 1, "last_streams": 1, "tile_rows": 2, "tile_cols": 4}
    unfold = Instruction(Opcode.UNFOLD, **sizes, in_height=4, inside=4, stride_y=1, stride_x=1, tile_step=4, dest=40,
                         signal_execute=1)  # fmt: skip
    tile = {"tile_rows": 2, "tile_cols": 4, "blocks": 1}
    execute = Instruction(Opcode.EXECUTE, **tile, kernel_y=1, kernel_x=1, in_height=2, in_width=4, stride_y=1, stride_x=1, start=40,
                          row_step=4, wait_load=1, signal_store=1)  # fmt: skip
    store = Instruction(Opcode.STORE, **tile, dest=48, row_step=4, col_step=1, low=-128, high=127, wait_execute=1)
    words = [unfold, execute, store, unfold, execute.replace(bank=1), store.replace(bank=1, dest=56), Instruction(Opcode.END)]
    data = np.array([encode(word) >> 32 * n & 0xFFFFFFFF for word in words for n in range(8)], np.uint32)
    transport.write(WINDOWS["program"].base, data)
    transport.write(WINDOWS["activations"].base, np.arange(16, dtype=np.int8).view(np.uint32))
    transport.write(WINDOWS["weights"].base, np.array([3, 0, 0, 0], np.uint32))
    transport.write(WINDOWS["params"].base, np.array([5, 1 << 23 | 23 << 24], np.uint32))
    transport.record(True)
    transport.write32(REGISTERS["IRQ_ENABLE"].offset, 3)
    transport.write32(REGISTERS["CONTROL"].offset, 1)
    assert transport.wait(2000)
    counters = {
        register.name: transport.read32(register.offset) for register in registers_of(TINY) if register.name.endswith(("BUSY", "WAIT", "STALL"))
    }
    state = [transport.read32(REGISTERS[name].offset) for name in ("STATUS", "ERROR", "CYCLES", "INSTRUCTIONS")]
    output = transport.read(WINDOWS["activations"].base + 4 * 48, 16)
    return state, counters, output, transport.events()


def test_all_simulators_agree_to_the_cycle(cache):
    seen = {}
    for kind in ("verilator", "icarus", "amaranth"):
        with create_transport(kind, TINY, cache=cache) as transport:
            seen[kind] = program(transport)
            with pytest.raises(TransportError, match="refused to read address 0x700000"):
                transport.read(7 << 20, 2)
    state, counters, output, events = seen["verilator"]
    assert state[:2] == [2, 0] and state[3] == 7
    assert (output.view(np.int8).reshape(16, 4)[:, 0] == np.tile(5 + 3 * np.arange(8), 2)).all()
    assert [tuple(row)[:2] for row in events if row["unit"] == 1] == [(1, 1), (1, 4)]
    for kind in ("icarus", "amaranth"):
        assert seen[kind][:2] == (state, counters), kind
        assert (seen[kind][2] == output).all(), kind
        assert (seen[kind][3] == events).all(), kind
