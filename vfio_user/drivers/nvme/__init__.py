"""NVMe controllers in user space (NVMe Base 2.0 over PCIe, NVM command set 1.0).

From the top down: `NvmeController` (controller.py, its life in lifecycle.py) has `Namespace`s (namespace.py), which
split `Transfer`s (transfer.py) into `Command`s (command.py) on `QueuePair`s (queue.py). The rings of a queue, and
commands as arrays, are in rings.py, over `vfio_user.memory.RingPair`; `Pieces` (pieces.py) make such arrays. Who waits
is, shared by drivers, in the modules waiting and tasks beside this package. What the bytes mean is in the modules
that need no device: regs.py, opcodes.py, commands.py, prp.py, status.py, coalescing.py, identify_*.py, logs.py.
"""

from __future__ import annotations

from vfio_user.drivers.nvme.coalescing import InterruptCoalescing
from vfio_user.drivers.nvme.command import Command
from vfio_user.drivers.nvme.commands import Completion, SubmissionEntry
from vfio_user.drivers.nvme.controller import NvmeController
from vfio_user.drivers.nvme.errors import (
    NvmeAbortedError,
    NvmeDeadlineError,
    NvmeError,
    NvmeFatalError,
    NvmeNotRunningError,
    NvmeQueueFullError,
    NvmeStatusError,
    NvmeUnknownCompletionError,
    NvmeUnsupportedError,
)
from vfio_user.drivers.nvme.identify_controller import IdentifyController, PowerState
from vfio_user.drivers.nvme.identify_namespace import IdentifyNamespace, LbaFormat, NamespaceDescriptors
from vfio_user.drivers.nvme.lifecycle import ControllerState
from vfio_user.drivers.nvme.logs import CriticalWarning, ErrorEntry, FirmwareSlots, SmartLog
from vfio_user.drivers.nvme.namespace import Namespace
from vfio_user.drivers.nvme.opcodes import AdminOpcode, FeatureId, IoOpcode
from vfio_user.drivers.nvme.pieces import Pieces, completion_dtype, submission_dtype
from vfio_user.drivers.nvme.queue import QueuePair
from vfio_user.drivers.nvme.regs import Capabilities, ControllerStatus, Version
from vfio_user.drivers.nvme.status import Status, StatusCodeType

__all__ = [
    "AdminOpcode",
    "Capabilities",
    "Command",
    "Completion",
    "ControllerState",
    "ControllerStatus",
    "CriticalWarning",
    "ErrorEntry",
    "FeatureId",
    "FirmwareSlots",
    "IdentifyController",
    "IdentifyNamespace",
    "InterruptCoalescing",
    "IoOpcode",
    "LbaFormat",
    "Namespace",
    "NamespaceDescriptors",
    "NvmeAbortedError",
    "NvmeController",
    "NvmeDeadlineError",
    "NvmeError",
    "NvmeFatalError",
    "NvmeNotRunningError",
    "NvmeQueueFullError",
    "NvmeStatusError",
    "NvmeUnknownCompletionError",
    "NvmeUnsupportedError",
    "Pieces",
    "PowerState",
    "QueuePair",
    "SmartLog",
    "Status",
    "StatusCodeType",
    "SubmissionEntry",
    "Version",
    "completion_dtype",
    "submission_dtype",
]
