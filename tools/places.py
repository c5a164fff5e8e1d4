"""Where a program runs, as ``--on`` takes it: a simulator, the golden executor, or a board at the end of a wire.

====================================  ==============================================================================================
form                                  wire
====================================  ==============================================================================================
``uart:PORT[:BAUD]``                  a serial port: ``uart:/dev/ttyUSB1``, ``uart:COM4:115200``
``usb:VENDOR:PRODUCT[:BAUD]``         the serial port of the USB device with these identifiers, four hexadecimal digits each: ``usb:0403:6010``
``spi:URL[:HZ]``                      SPI of an FTDI chip, as pyftdi calls it: ``spi:ftdi://ftdi:2232h/1``
====================================  ==============================================================================================

A serial port runs at :data:`celosia.rtl.link.BAUD` unless it is said.
"""

import re
from dataclasses import dataclass

from celosia.rtl.link import BAUD
from celosia.tools.errors import BadConfig

__all__ = ["BACKENDS", "FORMS", "Place", "check_backend", "is_place", "parse"]

BACKENDS = ("verilator", "icarus", "amaranth", "golden")
FORMS = ("uart:PORT[:BAUD]", "usb:VENDOR:PRODUCT[:BAUD]", "spi:URL[:HZ]")
SPI_HZ = 1_000_000
"""Clock of SPI where none is given: less than an eighth of any engine's."""


@dataclass(frozen=True)
class Place:
    """Where a board is: ``kind`` is ``"uart"``, ``"usb"`` or ``"spi"``; ``rate`` in bits per second."""

    kind: str
    port: str
    rate: int


def check_backend(text):
    """Return ``text`` if it is one of :data:`BACKENDS` or the place of a board in a right form; raise :exc:`BadConfig` if not."""
    if is_place(text):
        parse(text)
    elif text not in BACKENDS:
        raise BadConfig(f"on must be one of {', '.join(BACKENDS)}, not {text!r}; a board is given as {' or '.join(FORMS)}")
    return text


def is_place(text):
    """Return whether ``text`` means a board, in a right form or a wrong one."""
    return text.partition(":")[0] in ("uart", "usb", "spi")


def parse(text):
    """Return the :class:`Place` of a text in one of :data:`FORMS`.

    Raises
    ------
    BadConfig
        If the form is wrong; the sentence says what is.
    """
    kind, _, rest = text.partition(":")
    forms = {form.partition(":")[0]: form for form in FORMS}
    port, rate = rest, SPI_HZ if kind == "spi" else BAUD
    head, separator, tail = rest.rpartition(":")
    if separator and (tail.isdecimal() or tail == "") and (kind != "usb" or head.count(":")):
        port, rate = head, int(tail or 0)
        if not rate:
            raise BadConfig(f"the rate of {text!r} must be a positive number of bits per second: {forms[kind]}")
    if not port:
        example = {"uart": "uart:/dev/ttyUSB0", "usb": "usb:0403:6010", "spi": "spi:ftdi://ftdi:2232h/1"}[kind]
        raise BadConfig(f"{text!r} names no port: it must be {forms[kind]}, for example {example}")
    if kind == "usb" and not re.fullmatch(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{4}", port):
        raise BadConfig(f"{text!r} must hold vendor and product of the USB device, four hexadecimal digits each: usb:0403:6010")
    if kind == "spi" and "://" not in port:
        raise BadConfig(f"{text!r} must hold a URL as pyftdi has them: spi:ftdi://ftdi:2232h/1")
    return Place(kind, port, rate)
