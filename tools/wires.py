"""Wires to a board, byte by byte: serial ports, and SPI behind an FTDI chip."""

import errno
import time
from abc import ABC, abstractmethod

from celosia.rtl.link import FLAG
from celosia.tools.places import parse

__all__ = ["SerialWire", "SpiWire", "Wire", "WireError", "open_wire"]

_SLICE = 0.02


class WireError(RuntimeError):
    """A port that cannot be opened, or a connection that broke; the message does not name the port."""


def open_wire(text):
    """Return the :class:`Wire` to a place of :func:`celosia.tools.places.parse`.

    Raises
    ------
    BadConfig, WireError
    """
    place = parse(text)
    if place.kind == "spi":
        return SpiWire(place.port, place.rate, name=text)
    port = _usb_port(place.port) if place.kind == "usb" else place.port
    return SerialWire(port, place.rate, name=text)


class Wire(ABC):
    """Bytes to and from a board.

    Attributes
    ----------
    name : str
        As the user gave it.
    byte_time : float
        Seconds that a byte takes on the line.
    hint : str
        What else to ask if nobody answers.
    """

    name: str
    byte_time: float
    hint: str

    @abstractmethod
    def send(self, data):
        """Send bytes; raise :exc:`WireError` if the connection has broken."""

    @abstractmethod
    def receive(self, timeout):
        """Return the bytes that have come, after ``timeout`` seconds at most and as soon as there is one; raise as :meth:`send`."""

    @abstractmethod
    def close(self):
        """Give up the port."""


class SerialWire(Wire):
    """A serial port, through pyserial.

    Parameters
    ----------
    port : str
        A device, or the end of a pseudo-terminal.
    baud : int
    """

    def __init__(self, port, baud, *, name=None):
        import serial

        self.name = name or f"uart:{port}"
        self.byte_time = 10 / baud
        self.hint = f"does its line run at {baud:,} baud"
        try:
            self._port = serial.Serial(port, baud, timeout=_SLICE, write_timeout=10, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as error:
            raise WireError(_why_not(port, baud, error)) from error
        try:
            self._port.set_low_latency_mode(True)  # an FTDI chip would keep short replies for 16 ms
        except (AttributeError, NotImplementedError, ValueError, OSError):
            pass  # not on this system, or no such chip
        self._port.reset_input_buffer()

    def send(self, data):
        self._call(self._port.write, data)

    def receive(self, timeout):
        deadline = time.monotonic() + timeout
        while True:
            data = self._call(self._port.read, max(1, self._call(lambda: self._port.in_waiting)))
            if data or time.monotonic() >= deadline:
                return data

    def close(self):
        self._port.close()

    def _call(self, function, *arguments):
        import serial

        try:
            return function(*arguments)
        except serial.SerialTimeoutException:
            raise WireError("the port takes no more bytes: nobody reads at its other end") from None
        except (serial.SerialException, OSError) as error:
            raise WireError(f"the connection broke ({_said(error)}); plug the board in again and start once more") from error


class SpiWire(Wire):
    """SPI mode 0 of an FTDI chip, through pyftdi. The target sends only while the controller does, so flags are sent to fetch replies."""

    FETCHED = 64
    """Bytes that are clocked to look for replies."""

    def __init__(self, url, frequency, *, name=None):
        self.name = name or f"spi:{url}"
        self.byte_time = 8 / frequency
        self.hint = f"does its line run at {frequency:,} Hz"
        try:
            from pyftdi.spi import SpiController
        except ImportError:
            raise WireError("SPI needs pyftdi: pip install 'celosia[spi]'") from None
        self._controller = SpiController()
        try:
            self._controller.configure(url)
            self._port = self._controller.get_port(cs=0, freq=frequency, mode=0)
        except Exception as error:  # pyftdi raises its own, pyusb's and OSError
            raise WireError(f"the SPI port cannot be opened: {_said(error)}") from error
        self._received = b""

    def send(self, data):
        self._received += self._exchange(data)

    def receive(self, timeout):
        deadline = time.monotonic() + timeout
        while True:
            data, self._received = self._received, b""
            data += self._exchange(bytes([FLAG] * self.FETCHED))
            if data.strip(bytes([FLAG])) or time.monotonic() >= deadline:
                return data

    def close(self):
        self._controller.close()

    def _exchange(self, data):
        try:
            return bytes(self._port.exchange(data, len(data), duplex=True))
        except Exception as error:
            raise WireError(f"the connection broke ({_said(error)}); plug the board in again and start once more") from error


def _usb_port(identifiers):
    """Return the serial port of the USB device ``VENDOR:PRODUCT``; of several on one chip the last, which is the UART of FTDI's pairs."""
    from serial.tools.list_ports import comports

    vendor, product = (int(part, 16) for part in identifiers.split(":"))
    found = [port for port in comports() if (port.vid, port.pid) == (vendor, product)]
    if not found:
        raise WireError(f"no serial port belongs to a USB device {identifiers}; {_ports_found()}")
    if len({port.serial_number for port in found}) > 1:
        raise WireError(f"several such USB devices are there: {', '.join(port.device for port in found)}; give uart:PORT")
    return max(found, key=lambda port: (port.location or "", port.device)).device


def _ports_found():
    from serial.tools.list_ports import comports

    names = sorted(port.device for port in comports())
    return f"ports found: {', '.join(names)}" if names else "no serial port was found at all"


def _why_not(port, baud, error):
    """Return why a serial port cannot be opened, and what to do."""
    said = str(error).lower()
    number = getattr(error, "errno", None)
    if number == errno.ENOENT or "no such file" in said or "could not find" in said or "filenotfound" in said:
        return f"there is no such port; {_ports_found()}"
    if number == errno.EACCES or "permission denied" in said or "access is denied" in said:
        return "you may not use this port; become a member of its group (on most systems: sudo usermod -a -G dialout $USER) and log in again"
    if number in (errno.EBUSY, errno.EAGAIN) or "exclusively lock" in said or "busy" in said:
        return "another program uses this port; end it"
    if isinstance(error, ValueError) or "baud" in said:
        return f"the port cannot be set to {baud:,} baud: {_said(error)}"
    return f"the port cannot be opened: {_said(error)}"


def _said(error):
    return " ".join(str(error).split()) or type(error).__name__
