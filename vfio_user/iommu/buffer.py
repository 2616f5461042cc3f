"""DMA memory with a face of Python: buffer protocol, slices that know their IOVA, numpy arrays."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from vfio_user._mmio import BufferProxy
from vfio_user.addresses import Iova
from vfio_user.errors import ArgumentError, BoundsError, ClosedError
from vfio_user.kernel.mman import Backing, Memory

if TYPE_CHECKING:
    import numpy

    from vfio_user.iommu.mapping import DmaMapping

__all__ = ["DmaBuffer", "DmaSlice"]


class DmaSlice(BufferProxy):
    """A part of DMA memory: bytes for Python, an IOVA for the device.

    Supports the buffer protocol (writable, format ``"B"``): ``bytes(part)``, ``memoryview(part)``,
    ``numpy.frombuffer(part, ...)``; ``part[a:b]`` is again a `DmaSlice`, ``part[a:b] = data`` writes.

    Lifetime:
        Keeps the memory alive, not its mapping: once the buffer is closed the device no longer reaches it.
    Locking:
        None; like any memory shared with a device, who writes when is the driver's business.
    """

    __slots__ = ("iova", "view")

    def __init__(self, view: memoryview, iova: Iova) -> None:
        super().__init__(view)
        self.view = view
        """The bytes: writable memoryview, format ``"B"``."""
        self.iova = iova
        """Where devices find the first byte."""

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.view.nbytes

    def __len__(self) -> int:
        return self.view.nbytes

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> DmaSlice: ...
    def __getitem__(self, key: int | slice) -> int | DmaSlice:
        view = self.view
        if isinstance(key, slice):
            start, stop, step = key.indices(view.nbytes)
            if step != 1:
                raise BoundsError("a slice of DMA memory is contiguous: the step must be 1")
            return DmaSlice(view[start : max(start, stop)], Iova(self.iova + start))
        return view[_index(key, view.nbytes)]

    def __setitem__(self, key: int | slice, value: Any) -> None:
        if isinstance(key, slice):
            target, data = self[key].view, _bytes_of(value)
            if data.nbytes != target.nbytes:
                raise BoundsError(f"{data.nbytes} bytes do not fill a slice of {target.nbytes}")
            target[:] = data
        else:
            if not 0 <= value <= 0xFF:
                raise BoundsError(f"{value} is not a byte")
            self.view[_index(key, self.view.nbytes)] = value

    def array(self, dtype: Any = "u1", shape: int | tuple[int, ...] = -1) -> numpy.ndarray[Any, Any]:
        """Give a numpy array over the memory, without a copy.

        Args:
            dtype: element type, ``"<u4"`` or a structured one; by default bytes.
            shape: by default one dimension over as many elements as fit.

        Raises:
            BoundsError: the shape does not fit, or has a negative dimension.
        """
        import numpy

        kind = numpy.dtype(dtype)
        usable = self.view.nbytes // kind.itemsize * kind.itemsize
        flat = numpy.frombuffer(self.view[:usable], dtype=kind)
        if shape == -1:
            return flat
        count = int(numpy.prod(shape))
        if not 0 <= count <= flat.size:
            raise BoundsError(f"shape {shape} of {kind.itemsize} bytes each does not fit {self.view.nbytes} bytes")
        return flat[:count].reshape(shape)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.iova:#x} size {self.view.nbytes:#x}>"


class DmaBuffer(DmaSlice):
    """Memory that was allocated and mapped together.

    Lifetime:
        `close()`, or the ``with`` block, takes it from the devices; the memory goes with the last view of it. Closing
        twice does nothing. It may be closed before or after its address space.
    Locking:
        `close()` may be called from any thread.
    """

    __slots__ = ("_fd", "backing", "mapping")

    def __init__(self, memory: Memory, mapping: DmaMapping) -> None:
        super().__init__(memory.view, mapping.iova)
        self._fd = memory.fd
        self.mapping = mapping
        """The mapping behind it."""
        self.backing: Backing = memory.backing
        """What stands behind the memory."""

    @property
    def closed(self) -> bool:
        """Tell whether devices no longer reach it."""
        return not self.mapping.mapped

    def fileno(self) -> int:
        """Give the memory file of a ``memfd`` or huge-page buffer, to pass it to another process.

        Raises:
            ClosedError: it is closed, or its memory is anonymous.
        """
        if self._fd < 0:
            raise ClosedError(f"{self!r} has no memory file: closed, or backing is {self.backing.value}")
        return self._fd

    def close(self) -> None:
        """Take the memory from the devices.

        Raises:
            VfioError: the kernel did not confirm the unmap; the memory is kept then.
        """
        self.mapping.unmap()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]} {self.backing.value}{' closed' if self.closed else ''}>"


def _index(key: int, size: int) -> int:
    if not -size <= key < size:
        raise BoundsError(f"index {key} is outside of {size} bytes")
    return key


def _bytes_of(value: Any) -> memoryview:
    try:
        return memoryview(value).cast("B")
    except TypeError as error:
        raise ArgumentError(f"{type(value).__name__} can't be written to DMA memory: {error}") from None
