"""Give devices to ``vfio-pci`` and put them back: transactions on ``driver_override``, with a journal on disk."""

from __future__ import annotations

from vfio_user.binding.journal import Journal
from vfio_user.binding.lend import lent
from vfio_user.binding.moves import Fate
from vfio_user.binding.record import Record
from vfio_user.binding.restoring import Restored, records, restore
from vfio_user.binding.sriov import VirtualFunctions, create_vfs
from vfio_user.binding.state import BindState, NodeState
from vfio_user.binding.transaction import Binding
from vfio_user.binding.uses import Use, UseKind, openers, uses
from vfio_user.binding.verbs import bind, bound, unbind

__all__ = [
    "BindState",
    "Binding",
    "Fate",
    "Journal",
    "NodeState",
    "Record",
    "Restored",
    "Use",
    "UseKind",
    "VirtualFunctions",
    "bind",
    "bound",
    "create_vfs",
    "lent",
    "openers",
    "records",
    "restore",
    "unbind",
    "uses",
]
