"""What fits a namespace: which blocks there are, and which memory is a whole number of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user.drivers.nvme.errors import NvmeUnsupportedError
from vfio_user.drivers.nvme.memory import view_of
from vfio_user.errors import AlignmentError, BoundsError

if TYPE_CHECKING:
    from vfio_user.drivers.nvme.identify_namespace import LbaFormat
    from vfio_user.drivers.nvme.memory import Data

__all__ = ["Geometry", "spans"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """The blocks of a namespace; checks what callers ask for, before any command is made."""

    nsid: int
    """Namespace id, for messages."""
    format: LbaFormat
    """How the namespace is formatted."""
    num_blocks: int
    """Number of blocks."""

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return self.format.block_size

    def check(self, lba: int, num_blocks: int) -> None:
        """Check that blocks are inside of the namespace, and that this driver can transfer them.

        Raises:
            BoundsError: they are not.
            NvmeUnsupportedError: the blocks have metadata.
        """
        if self.format.metadata_size:
            raise NvmeUnsupportedError(
                f"namespace {self.nsid} has {self.format.metadata_size} bytes of metadata for each block, "
                "which this driver does not transfer; format it without"
            )
        if num_blocks < 1:
            raise BoundsError(f"{num_blocks} blocks: the least is 1")
        if lba < 0 or lba + num_blocks > self.num_blocks:
            raise BoundsError(
                f"blocks {lba} to {lba + num_blocks - 1} are outside of namespace {self.nsid}, "
                f"which has blocks 0 to {self.num_blocks - 1}"
            )

    def whole_blocks(self, data: Data, lba: int) -> memoryview:
        """Check memory that is to be transferred from or to block ``lba`` on; give its bytes.

        Raises:
            ArgumentError: it is no contiguous memory.
            AlignmentError: it is not a whole number of blocks.
            BoundsError: the blocks are outside of the namespace.
        """
        view = view_of(data)
        if view.nbytes % self.block_size:
            raise AlignmentError(
                f"{view.nbytes} bytes are not a whole number of blocks of {self.block_size} bytes: pad or cut them"
            )
        self.check(lba, view.nbytes // self.block_size)
        return view.cast("B")


def spans(lba: int, num_blocks: int, most: int) -> list[tuple[int, int]]:
    """Cut a range of blocks into ``(lba, num_blocks)`` ranges of at most ``most``."""
    end = lba + num_blocks
    return [(start, min(most, end - start)) for start in range(lba, end, most)]
