"""Program files: what is written is read back; anything else is one sentence."""

import dataclasses

import numpy as np
import pytest

from celosia.rtl.config import PRESETS
from celosia.sim.graphs import random_graph
from celosia.tools.compiler.pipeline import compile_graph
from celosia.tools.errors import BadProgram
from celosia.tools.program import EngineSegment, HostSegment, Model, is_program_file, load, save

TEST = PRESETS["test"]


@pytest.fixture
def model():
    program = compile_graph(random_graph(4), TEST)
    return Model(
        source="net.onnx",
        sha256="ab" * 32,
        inputs=(("x", "int8", (1, 3, 4)),),
        outputs=(("y", "float32", (1, 10)),),
        segments=(
            EngineSegment(program=program),
            HostSegment(onnx=b"\x00\xffonnx", inputs=("t",), outputs=("y",), nodes=(("n", "Softmax", "no"),)),
        ),
        nodes=(("n", "Softmax", "host", "no"),),
    )


def same(a, b):
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return type(a) is type(b) and a == b


def test_what_is_saved_is_loaded(model, tmp_path):
    save(model, tmp_path / "net.celosia")
    assert is_program_file(tmp_path / "net.celosia")
    assert same(load(tmp_path / "net.celosia", TEST), model)


def test_a_program_alone_is_saved_as_a_model(model, tmp_path):
    program = model.segments[0].program
    save(program, tmp_path / "p")
    (segment,) = load(tmp_path / "p").segments
    assert same(segment.program, program)


def test_numpys_numbers_are_saved_as_the_languages(model, tmp_path):
    program = model.segments[0].program
    (port, *others) = program.outputs
    numpys = dataclasses.replace(port, matrix=np.bool_(port.matrix), address=np.int64(port.address))
    save(dataclasses.replace(program, outputs=(numpys, *others)), tmp_path / "p")
    (segment,) = load(tmp_path / "p").segments
    assert same(segment.program, program)


def test_a_program_for_another_engine_is_refused(model, tmp_path):
    save(model, tmp_path / "p")
    with pytest.raises(BadProgram, match=r"was compiled for engine 'test' \(digest 0x[0-9a-f]{8}\), not for 'mac64'"):
        load(tmp_path / "p", PRESETS["mac64"])


def test_damaged_files_are_refused(model, tmp_path):
    path = tmp_path / "p"
    save(model, path)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BadProgram, match="is not a compiled program, or damaged"):
            load(path)
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        broken[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            assert same(load(path), model)  # a bit of the archive's unused fields
        except BadProgram:
            pass


def test_changed_contents_are_refused(model, tmp_path):
    path = tmp_path / "p"
    save(model, path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["array0"] = arrays["array0"] ^ 1
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(BadProgram, match="is damaged"):
        load(path)


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(BadProgram, match="cannot be read: No such file"):
        load(tmp_path / "missing")
    np.savez(tmp_path / "array.npz", x=np.arange(3))
    with pytest.raises(BadProgram, match="is not a compiled program"):
        load(tmp_path / "array.npz")
    (tmp_path / "text").write_text("hello")
    assert not is_program_file(tmp_path / "text")
    with pytest.raises(BadProgram, match="is not a compiled program"):
        load(tmp_path / "text")
