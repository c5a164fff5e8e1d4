"""The instruction encoding: literal words reviewed by hand, ranges at their first value outside, layouts that fill their word."""

import pytest
from amaranth.hdl import Shape

from celosia.rtl import isa
from celosia.rtl.isa import Instruction, Opcode, decode, encode, pack

# Reviewed against the struct offsets: 0x40300002 = signal.store (bit 30) | 3 << 20 (wait.store) | EXECUTE.
EXECUTE = Instruction(
    Opcode.EXECUTE, wait_store=3, signal_store=1, weights=0x1234, start=0xFFDF, y0=-1, x0=-1, in_height=32, in_width=32,
    tile_rows=4, tile_cols=32, kernel_y=3, kernel_x=3, blocks=2, stride_y=1, stride_x=1, dilation_y=1, dilation_x=1,
    row_step=32, ky_step=32, block_step=1024, pad=-128, bank=1,
)  # fmt: skip
STORE = Instruction(
    Opcode.STORE, wait_execute=1, signal_execute=1, dest=0x100, row_step=32, col_step=1, tile_rows=4, tile_cols=32, blocks=1,
    bank=1, params=7, zero_point=-128, low=-128, high=127,
)  # fmt: skip
# The last fields, from bit 171: combine (3), combine_params (14), operand, combine_low, combine_high, the operand's steps, still, raw.
COMBINE = STORE.replace(
    combine=isa.Combine.MUL, combine_params=0x1234, operand=0xABCD, combine_low=-3, combine_high=100, operand_block_step=0x8001,
    operand_row_step=0x7F, operand_still=1, raw=4,
)  # fmt: skip
UNFOLD = Instruction(
    Opcode.UNFOLD, signal_execute=1, start=0xFFFE0, dest=0x200, in_height=32, groups=2, row_step=32, channel_step=0x3C0, tile_step=0xFF420,
    kernel_y=3, streams=5, last_streams=4, tile_rows=4, tile_cols=32, y0=-1, stride_y=1, stride_x=1, left=1, inside=32, pad=0x80,
)  # fmt: skip
FILL = Instruction(
    Opcode.FILL, wait_execute=1, signal_execute=1, weights=0x123, source=0x4560, row_step=0x20, rows=13, tiles=3,
    slot=1,
)  # fmt: skip
TRANSFER = Instruction(
    Opcode.TRANSFER, wait_store=1, signal_load=1, memory=isa.Memory.PARAMS, write=1, pad=0x80, external=0x12345678, external_row_step=0x1000,
    external_plane_step=0xFFFFF000, local=0x155555, local_row_step=0x20, local_plane_step=0x3FFFFF, run=0x1001, rows=3, planes=4096,
)  # fmt: skip
WORDS = [
    (EXECUTE, 0x10020010000080008010444042081F00C080083FFFFFFFFDF123440300002),
    # 0xA54 << 244 = slot (bit 253) 5, tail (250) 1, gap (247) 2, depthwise (246).
    (EXECUTE.replace(depthwise=1, gap=2, tail=1, slot=5), 0xA5410020010000080008010444042081F00C080083FFFFFFFFDF123440300002),
    (STORE, 0x1FE0200003C000007C030100000020010020001003),
    (COMBINE, 0x9007F800164FDABCD48D101FE0200003C000007C030100000020010020001003),
    (UNFOLD, 0x10000F80088FFFC07C031902020FF420003C0010200200FFFE020000004),
    (FILL, 0x1000200200D01230456020001005),
    (TRANSFER, 0x201BFFC0084003FFFFF00008155555FFFFF000000010001234567810100006),
    # The slots of their own units are the transfer unit's: signal.execute is bit 29, wait.store bits 20 to 27.
    (EXECUTE.replace(signal_transfer=1), 0x10020010000080008010444042081F00C080083FFFFFFFFDF123460300002),
    (STORE.replace(wait_transfer=2), 0x1FE0200003C000007C030100000020010020201003),
    (Instruction(Opcode.END), 1),
]


@pytest.mark.parametrize("instruction, word", WORDS, ids=lambda value: getattr(getattr(value, "opcode", None), "name", ""))
def test_encodes_to_the_reviewed_word_and_back(instruction, word):
    assert encode(instruction) == word
    assert decode(word) == instruction


@pytest.mark.parametrize("struct", isa.LAYOUTS.values(), ids=lambda struct: struct.__name__)
def test_every_layout_is_exactly_one_instruction_wide_and_only_its_end_is_reserved(struct):
    assert Shape.cast(struct).width == isa.INSTRUCTION_BITS
    names = [name for name, *_ in isa._fields(struct)]
    assert "reserved" not in names[:-1]


def test_parameter_entries_are_whole_64_bit_words():
    assert Shape.cast(isa.ChannelParams).width == 64
    assert Shape.cast(isa.AddParams).width == 128


@pytest.mark.parametrize("struct", [*isa.LAYOUTS.values(), isa.ChannelParams, isa.AddParams], ids=lambda s: s.__name__)
def test_first_value_outside_each_field_is_refused(struct):
    sizes = {name: 1 for name, *_ in isa._fields(struct) if name in isa.MINUS_ONE[struct]}
    for name, _, width, is_signed in isa._fields(struct):
        bias = 1 if name in isa.MINUS_ONE[struct] else 0
        low, high = (-(1 << width - 1), (1 << width - 1) - 1) if is_signed else (bias, (1 << width) - 1 + bias)
        assert isa.largest(struct, name) == high
        for value in (low, high):
            assert isa.unpack(struct, pack(struct, **sizes | {name: value}))[name] == value
        for value in (low - 1, high + 1):
            with pytest.raises(ValueError, match=rf"{struct.__name__}\.{name} must be between {low} and {high}, not {value}"):
                pack(struct, **sizes | {name: value})


def test_unknown_field_and_missing_size_are_named():
    with pytest.raises(ValueError, match="ExecuteInstruction has no field 'rows'"):
        isa.largest(isa.ExecuteInstruction, "rows")
    with pytest.raises(ValueError, match="EXECUTE has no field 'rows'"):
        Instruction(Opcode.EXECUTE, rows=1)
    with pytest.raises(ValueError, match=r"UnfoldInstruction\.groups must be given"):
        Instruction(Opcode.UNFOLD)


def test_the_own_units_slot_is_the_transfer_units_and_reads_as_zero():
    assert EXECUTE.wait_execute == 0 and EXECUTE.replace(wait_transfer=3).wait_transfer == 3
    assert TRANSFER.wait_transfer == TRANSFER.signal_transfer == 0
    with pytest.raises(ValueError, match="STORE has no field 'signal_store'"):
        STORE.replace(signal_store=1)
    for opcode in (Opcode.EXECUTE, Opcode.STORE, Opcode.FILL):
        own = set(isa.zero_bits(opcode)) - set(isa.zero_bits(opcode, memory_port=True))
        assert len(own) == 9
    assert isa.zero_bits(Opcode.END) == isa.zero_bits(Opcode.END, memory_port=True)


def test_only_an_engine_with_a_memory_port_transfers():
    assert set(Opcode) - set(isa.opcodes(False)) == {Opcode.TRANSFER}
    assert isa.opcodes(True) == tuple(Opcode)


def test_unlisted_opcode_does_not_decode():
    with pytest.raises(ValueError, match="illegal opcode 0"):
        decode(0)


def test_replace_keeps_the_other_fields():
    changed = EXECUTE.replace(bank=0)
    assert changed.bank == 0 and changed.replace(bank=1) == EXECUTE and hash(changed) != hash(EXECUTE)


def test_reserved_bits_of_the_header_and_of_the_payload_are_kept_apart():
    word = encode(STORE) | 1 << 31
    assert decode(word).header_reserved == 1 and decode(word).reserved == 0 and encode(decode(word)) == word
