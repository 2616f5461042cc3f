"""What Identify says of the controller (NVMe Base 2.0, 5.17.2.1), as frozen values.

The attributes have readable names; the specification's abbreviation stands in each field's description.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from vfio_user.drivers.nvme.layout import At, parse, whole_page
from vfio_user.drivers.nvme.regs import Version
from vfio_user.errors import MalformedReplyError

__all__ = ["IdentifyController", "PowerState"]

_POWER_STATES = 2048
_MAX_POWER_STATES = 32


@dataclass(frozen=True, slots=True)
class PowerState:
    """One power state of the controller (NVMe Base 2.0, figure "Power State Descriptor Data Structure")."""

    max_power_raw: Annotated[int, At(0, 2)]
    """Maximum power (MP), in the unit that bit 0 of ``flags`` selects."""
    flags: Annotated[int, At(3, 1)]
    """Bit 0 max power scale (MXPS), bit 1 non-operational state (NOPS)."""
    entry_latency_us: Annotated[int, At(4, 4)]
    """Longest time to enter the state, microseconds (ENLAT)."""
    exit_latency_us: Annotated[int, At(8, 4)]
    """Longest time to leave the state, microseconds (EXLAT)."""

    @property
    def max_power(self) -> float:
        """Maximum power in watts; 0 when not reported."""
        return self.max_power_raw * (0.0001 if self.flags & 1 else 0.01)

    @property
    def operational(self) -> bool:
        """Tell whether I/O commands are processed in this state."""
        return not self.flags & 2


@dataclass(frozen=True, slots=True)
class IdentifyController:
    """Identify Controller, CNS 01h (NVMe Base 2.0, figure "Identify Controller Data Structure")."""

    vendor_id: Annotated[int, At(0, 2)]
    """PCI vendor id (VID)."""
    subsystem_vendor_id: Annotated[int, At(2, 2)]
    """PCI subsystem vendor id (SSVID)."""
    serial: Annotated[str, At(4, 20)]
    """Serial number (SN), without padding."""
    model: Annotated[str, At(24, 40)]
    """Model number (MN), without padding."""
    firmware: Annotated[str, At(64, 8)]
    """Firmware revision (FR), without padding."""
    recommended_arbitration_burst: Annotated[int, At(72, 1)]
    """Recommended arbitration burst, a power of two (RAB)."""
    ieee_oui: Annotated[int, At(73, 3)]
    """IEEE OUI of the vendor (IEEE)."""
    multi_path: Annotated[int, At(76, 1)]
    """Multi-path I/O and namespace sharing capabilities (CMIC)."""
    max_transfer_shift: Annotated[int, At(77, 1)]
    """Maximum data transfer size (MDTS): a power of two in units of CAP.MPSMIN; 0 means no limit."""
    controller_id: Annotated[int, At(78, 2)]
    """Controller id inside of the subsystem (CNTLID)."""
    version_raw: Annotated[int, At(80, 4)]
    """Version (VER) as the register VS has it; see `version`."""
    resume_latency_us: Annotated[int, At(84, 4)]
    """RTD3 resume latency, microseconds (RTD3R); 0 when not reported."""
    shutdown_latency_us: Annotated[int, At(88, 4)]
    """RTD3 entry latency, microseconds (RTD3E); bounds an orderly shutdown; 0 when not reported."""
    async_events: Annotated[int, At(92, 4)]
    """Optional asynchronous events supported (OAES)."""
    attributes: Annotated[int, At(96, 4)]
    """Controller attributes (CTRATT)."""
    read_recovery_levels: Annotated[int, At(100, 2)]
    """Read recovery levels supported (RRLS)."""
    controller_type: Annotated[int, At(111, 1)]
    """Controller type (CNTRLTYPE): 1 I/O, 2 discovery, 3 administrative, 0 not reported."""
    fru_guid: Annotated[bytes, At(112, 16)]
    """FRU globally unique id (FGUID)."""
    retry_delay_1: Annotated[int, At(128, 2)]
    """Command retry delay time 1, units of 100 ms (CRDT1)."""
    retry_delay_2: Annotated[int, At(130, 2)]
    """Command retry delay time 2, units of 100 ms (CRDT2)."""
    retry_delay_3: Annotated[int, At(132, 2)]
    """Command retry delay time 3, units of 100 ms (CRDT3)."""
    admin_commands: Annotated[int, At(256, 2)]
    """Optional admin commands supported (OACS)."""
    abort_limit_raw: Annotated[int, At(258, 1)]
    """Abort command limit, minus one (ACL)."""
    async_event_limit_raw: Annotated[int, At(259, 1)]
    """Asynchronous event request limit, minus one (AERL)."""
    firmware_updates: Annotated[int, At(260, 1)]
    """Firmware updates (FRMW): bits 3:1 number of slots."""
    log_page_attributes: Annotated[int, At(261, 1)]
    """Log page attributes (LPA)."""
    error_log_entries_raw: Annotated[int, At(262, 1)]
    """Entries of the Error Information log, minus one (ELPE)."""
    num_power_states_raw: Annotated[int, At(263, 1)]
    """Number of power states, minus one (NPSS)."""
    warning_temperature: Annotated[int, At(266, 2)]
    """Warning composite temperature threshold, kelvin (WCTEMP); 0 when not reported."""
    critical_temperature: Annotated[int, At(268, 2)]
    """Critical composite temperature threshold, kelvin (CCTEMP); 0 when not reported."""
    host_memory_preferred: Annotated[int, At(272, 4)]
    """Host memory buffer preferred size, units of 4 KiB (HMPRE)."""
    host_memory_minimum: Annotated[int, At(276, 4)]
    """Host memory buffer minimum size, units of 4 KiB (HMMIN)."""
    total_capacity: Annotated[int, At(280, 16)]
    """Total NVM capacity, bytes (TNVMCAP); 0 when not reported."""
    unallocated_capacity: Annotated[int, At(296, 16)]
    """Unallocated NVM capacity, bytes (UNVMCAP)."""
    keep_alive_granularity: Annotated[int, At(320, 2)]
    """Keep alive granularity, units of 100 ms; 0 when there is no keep alive (KAS)."""
    sq_entry_sizes: Annotated[int, At(512, 1)]
    """Submission queue entry sizes (SQES): bits 3:0 required, 7:4 largest, powers of two."""
    cq_entry_sizes: Annotated[int, At(513, 1)]
    """Completion queue entry sizes (CQES): bits 3:0 required, 7:4 largest, powers of two."""
    max_outstanding: Annotated[int, At(514, 2)]
    """Most commands in flight at once (MAXCMD); 0 when not reported."""
    num_namespaces: Annotated[int, At(516, 4)]
    """Highest valid namespace id (NN)."""
    nvm_commands: Annotated[int, At(520, 2)]
    """Optional NVM commands supported (ONCS); see `has_dataset_management` and `has_write_zeroes`."""
    fused_operations: Annotated[int, At(522, 2)]
    """Fused operations supported (FUSES)."""
    format_attributes: Annotated[int, At(524, 1)]
    """Format NVM attributes (FNA)."""
    write_cache: Annotated[int, At(525, 1)]
    """Volatile write cache (VWC): bit 0 present."""
    atomic_write_unit_raw: Annotated[int, At(526, 2)]
    """Atomic write unit, blocks, minus one (AWUN)."""
    atomic_write_unit_power_fail_raw: Annotated[int, At(528, 2)]
    """Atomic write unit at a power failure, blocks, minus one (AWUPF)."""
    sgl_support: Annotated[int, At(536, 4)]
    """SGL support (SGLS)."""
    subsystem_nqn: Annotated[str, At(768, 256)]
    """NVM subsystem qualified name (SUBNQN)."""
    power_states: tuple[PowerState, ...] = field(repr=False)
    """The power states that the controller has, 1 to 32 (PSD0 to PSD31)."""

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> IdentifyController:
        """Read the 4096 bytes that Identify with CNS 01h returns.

        Raises:
            MalformedReplyError: fewer bytes, or more power states than there is room for.
        """
        raw = whole_page(cls.__name__, data)
        count = raw[263] + 1
        if count > _MAX_POWER_STATES:
            raise MalformedReplyError(f"Identify Controller claims {count} power states, 32 at most can be")
        states = (parse(PowerState, raw[_POWER_STATES + 32 * i :][:32]) for i in range(count))
        return parse(cls, raw, power_states=tuple(states))

    @property
    def version(self) -> Version:
        """Version of the specification that the controller follows."""
        return Version.from_int(self.version_raw)

    @property
    def has_write_cache(self) -> bool:
        """Tell whether there is a volatile write cache, so that `Namespace.flush` matters."""
        return bool(self.write_cache & 1)

    @property
    def has_dataset_management(self) -> bool:
        """Tell whether Dataset Management (deallocate) works: ONCS bit 2."""
        return bool(self.nvm_commands & 1 << 2)

    @property
    def has_write_zeroes(self) -> bool:
        """Tell whether Write Zeroes works: ONCS bit 3."""
        return bool(self.nvm_commands & 1 << 3)

    @property
    def abort_limit(self) -> int:
        """Most Abort commands in flight at once."""
        return self.abort_limit_raw + 1

    @property
    def error_log_entries(self) -> int:
        """Number of entries of the Error Information log."""
        return self.error_log_entries_raw + 1

    def max_transfer(self, min_page_size: int) -> int | None:
        """Most bytes that one command may transfer; `None` when there is no limit.

        Args:
            min_page_size: `Capabilities.min_page_size`, the unit of MDTS.
        """
        return min_page_size << self.max_transfer_shift if self.max_transfer_shift else None
