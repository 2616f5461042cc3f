"""Decode the capabilities of a function: what they say, by names, for people and for JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vfio_user.errors import BoundsError, MalformedReplyError
from vfio_user.pci.config import CapabilityId, ConfigSpace, ExtendedCapabilityId

__all__ = ["Decoded", "decode"]

Value = str | int | bool
Fields = dict[str, Value]
Decoder = Callable[[ConfigSpace, int], Fields]

_SPEEDS = {1: "2.5 GT/s", 2: "5 GT/s", 3: "8 GT/s", 4: "16 GT/s", 5: "32 GT/s", 6: "64 GT/s"}
_PORTS = {
    0: "endpoint",
    1: "legacy endpoint",
    4: "root port",
    5: "upstream port",
    6: "downstream port",
    7: "bridge to PCI",
    8: "bridge from PCI",
    9: "endpoint in the root complex",
    10: "event collector",
}
_AER_BITS = {
    4: "data link protocol",
    5: "surprise down",
    12: "poisoned TLP",
    13: "flow control",
    14: "completion timeout",
    15: "completer abort",
    16: "unexpected completion",
    17: "receiver overflow",
    18: "malformed TLP",
    19: "ECRC",
    20: "unsupported request",
    21: "ACS violation",
    22: "internal",
}
_ACS_BITS = (
    "source validation",
    "translation blocking",
    "request redirect",
    "completion redirect",
    "upstream forwarding",
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """One capability."""

    name: str
    """Its name: ``"msix"``."""
    offset: int
    """Where it is in configuration space."""
    extended: bool
    """Whether it is of the extended list."""
    fields: Fields = field(default_factory=dict)
    """What it says; empty for those that are only named."""

    def to_json(self) -> dict[str, object]:
        """Give it as plain data."""
        return {"name": self.name, "offset": self.offset, "extended": self.extended, **self.fields}

    def __str__(self) -> str:
        return ", ".join(filter(None, map(_words, self.fields.items())))


def _words(field: tuple[str, Value]) -> str:
    name, value = field
    if not isinstance(value, bool):
        return f"{name} {value}"
    if value:
        return name
    # What is off is worth a word only where people look for it.
    return {"enabled": "not enabled", "function-level reset": "no function-level reset"}.get(name, "")


def decode(config: ConfigSpace) -> Iterator[Decoded]:
    """Decode all capabilities of a configuration space, in the order of the lists.

    Raises:
        MalformedReplyError: a list leaves its bounds or runs in a circle.
    """
    try:
        for each in config.capabilities():
            yield Decoded(each.name, each.offset, False, _fields(config, each.offset, _STANDARD.get(each.identity)))
        for other in config.extended_capabilities():
            yield Decoded(other.name, other.offset, True, _fields(config, other.offset, _EXTENDED.get(other.identity)))
    except BoundsError as error:
        raise MalformedReplyError(f"a capability leaves configuration space: {error}") from error


def _fields(config: ConfigSpace, offset: int, decoder: Decoder | None) -> Fields:
    return decoder(config, offset) if decoder is not None else {}


def _power(config: ConfigSpace, at: int) -> Fields:
    abilities, control = config.read16(at + 2), config.read16(at + 4)
    states = [name for bit, name in ((9, "D1"), (10, "D2")) if abilities >> bit & 1]
    return {
        "version": abilities & 7,
        "state": f"D{control & 3}",
        "also": " ".join(states) or "none",
        "PME": bool(control & 0x100),
    }


def _msi(config: ConfigSpace, at: int) -> Fields:
    control = config.read16(at + 2)
    return {
        "vectors": 1 << (control >> 1 & 7),
        "64 bits": bool(control & 0x80),
        "masking": bool(control & 0x100),
        "enabled": bool(control & 1),
    }


def _msix(config: ConfigSpace, at: int) -> Fields:
    control, table, pending = config.read16(at + 2), config.read32(at + 4), config.read32(at + 8)
    return {
        "vectors": (control & 0x7FF) + 1,
        "table": f"BAR {table & 7} at {table & ~7:#x}",
        "pending bits": f"BAR {pending & 7} at {pending & ~7:#x}",
        "enabled": bool(control & 0x8000),
        "all masked": bool(control & 0x4000),
    }


def _express(config: ConfigSpace, at: int) -> Fields:
    head, abilities = config.read16(at + 2), config.read32(at + 4)
    control, link, state = config.read16(at + 8), config.read32(at + 0x0C), config.read16(at + 0x12)
    kind = head >> 4 & 0xF
    fields: Fields = {
        "type": _PORTS.get(kind, f"{kind:#x}"),
        "payload": f"{128 << (control >> 5 & 7)} of {128 << (abilities & 7)} bytes",
        "function-level reset": bool(abilities & 1 << 28),
    }
    if kind not in (9, 10):
        now = f"x{state >> 4 & 0x3F} {_SPEEDS.get(state & 0xF, '?')}"
        fields["link"] = f"{now} of x{link >> 4 & 0x3F} {_SPEEDS.get(link & 0xF, '?')}"
    return fields


def _advanced_features(config: ConfigSpace, at: int) -> Fields:
    return {"function-level reset": bool(config.read8(at + 3) & 2)}


def _vendor(config: ConfigSpace, at: int) -> Fields:
    return {"length": config.read8(at + 2)}


def _subsystem(config: ConfigSpace, at: int) -> Fields:
    return {"id": f"{config.read16(at + 4):04x}:{config.read16(at + 6):04x}"}


def _aer(config: ConfigSpace, at: int) -> Fields:
    return {
        "uncorrectable": _names(config.read32(at + 4), _AER_BITS),
        "correctable": f"{config.read32(at + 0x10):#x}",
    }


def _acs(config: ConfigSpace, at: int) -> Fields:
    bits = dict(enumerate(_ACS_BITS))
    return {"can": _names(config.read16(at + 4), bits), "does": _names(config.read16(at + 6), bits)}


def _serial(config: ConfigSpace, at: int) -> Fields:
    number = config.read32(at + 8) << 32 | config.read32(at + 4)
    return {"number": "-".join(f"{number >> shift & 0xFF:02x}" for shift in range(56, -8, -8))}


def _sriov(config: ConfigSpace, at: int) -> Fields:
    return {
        "virtual functions": f"{config.read16(at + 0x10)} of {config.read16(at + 0x0E)}",
        "first at": f"+{config.read16(at + 0x14)}",
        "apart": config.read16(at + 0x16),
        "device id": f"{config.read16(at + 0x1A):04x}",
        "enabled": bool(config.read16(at + 8) & 1),
    }


def _ats(config: ConfigSpace, at: int) -> Fields:
    return {"queue": config.read16(at + 4) & 0x1F or 32, "enabled": bool(config.read16(at + 6) & 0x8000)}


def _pri(config: ConfigSpace, at: int) -> Fields:
    return {"outstanding": config.read32(at + 8), "enabled": bool(config.read16(at + 4) & 1)}


def _pasid(config: ConfigSpace, at: int) -> Fields:
    return {"bits": config.read16(at + 4) >> 8 & 0x1F, "enabled": bool(config.read16(at + 6) & 1)}


def _ari(config: ConfigSpace, at: int) -> Fields:
    return {"next function": config.read16(at + 4) >> 8}


def _extended_vendor(config: ConfigSpace, at: int) -> Fields:
    head = config.read32(at + 4)
    return {"id": f"{head & 0xFFFF:04x}", "revision": head >> 16 & 0xF, "length": head >> 20}


def _dvsec(config: ConfigSpace, at: int) -> Fields:
    head = config.read32(at + 4)
    return {"vendor": f"{head & 0xFFFF:04x}", "revision": head >> 16 & 0xF, "id": f"{config.read16(at + 8):04x}"}


def _names(value: int, bits: dict[int, str]) -> str:
    return " ".join(f"[{name}]" for bit, name in bits.items() if value >> bit & 1) or "none"


_STANDARD: dict[int, Decoder] = {
    CapabilityId.POWER_MANAGEMENT: _power,
    CapabilityId.MSI: _msi,
    CapabilityId.VENDOR: _vendor,
    CapabilityId.SUBSYSTEM: _subsystem,
    CapabilityId.EXPRESS: _express,
    CapabilityId.MSIX: _msix,
    CapabilityId.ADVANCED_FEATURES: _advanced_features,
}
_EXTENDED: dict[int, Decoder] = {
    ExtendedCapabilityId.AER: _aer,
    ExtendedCapabilityId.SERIAL_NUMBER: _serial,
    ExtendedCapabilityId.VENDOR: _extended_vendor,
    ExtendedCapabilityId.ACS: _acs,
    ExtendedCapabilityId.ARI: _ari,
    ExtendedCapabilityId.ATS: _ats,
    ExtendedCapabilityId.SRIOV: _sriov,
    ExtendedCapabilityId.PRI: _pri,
    ExtendedCapabilityId.PASID: _pasid,
    ExtendedCapabilityId.DVSEC: _dvsec,
}
