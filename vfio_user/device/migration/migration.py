"""Move the state of a device to another one like it: migration, protocol 2."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from vfio_user.device.migration.states import DATA_STATES, path
from vfio_user.device.migration.stream import MigrationStream, PrecopyInfo
from vfio_user.device.migration.transfer import NAP, all_first_read, in_thread, loading, saving, send, whole
from vfio_user.device.migration.wire import Packer, Sink, Source, reader_of, writer_of
from vfio_user.errors import MalformedReplyError, MigrationError, VfioError, VfioIoctlError
from vfio_user.kernel.uapi import DeviceFeature, MigrationFlags, MigrationState

if TYPE_CHECKING:
    import asyncio
    import socket

    from vfio_user.device.base import VfioDevice

__all__ = ["Migration"]

_CTYPE = "struct vfio_device_feature_mig_state"


class Migration:
    """The migration of one device: ``vdev.migration``.

    `save` and `load` do all of it. By hand it goes in steps, which are the kernel's own::

        with source.set_state(MigrationState.STOP_COPY) as stream:
            data = b"".join(iter(stream.read, b""))
        with target.set_state(MigrationState.RESUMING) as stream:
            stream.write(data)
        target.set_state(MigrationState.RUNNING)

    Where a step fails, a `MigrationError` says in which state the device is; from ERROR only a reset leads out.

    Lifetime:
        Lives as long as its device; holds nothing.
    Locking:
        Each step is one system call. The states are the device's: one at a time moves it.
    """

    def __init__(self, vdev: VfioDevice) -> None:
        """Ask what the device can do: ``MIGRATION``.

        Raises:
            UnsupportedError: it can't be migrated.
        """
        self._vdev = vdev
        reply = vdev.features.get(DeviceFeature.MIGRATION, "struct vfio_device_feature_migration")
        self.flags = MigrationFlags(reply.data.flags)
        """What it can do besides being moved while it is stopped."""

    @property
    def name(self) -> str:
        """The device's name."""
        return self._vdev.name

    @property
    def state(self) -> MigrationState:
        """The state that it is in: ``MIG_DEVICE_STATE``.

        Raises:
            MalformedReplyError: it is in none that is known.
        """
        value = int(self._vdev.features.get(DeviceFeature.MIG_DEVICE_STATE, _CTYPE).data.device_state)
        try:
            return MigrationState(value)
        except ValueError:
            raise MalformedReplyError(f"{self.name} is in migration state {value}, which has no name") from None

    @property
    def data_size(self) -> int:
        """Bytes that it would give away if it were stopped now, as it estimates: ``MIG_DATA_SIZE``.

        Raises:
            UnsupportedError: the kernel can't tell (before 6.2).
        """
        reply = self._vdev.features.get(DeviceFeature.MIG_DATA_SIZE, "struct vfio_device_feature_mig_data_size")
        return int(reply.data.stop_copy_length)

    def set_state(self, target: MigrationState) -> MigrationStream | None:
        """Go to a state, step by step as the kernel would: ``MIG_DEVICE_STATE``.

        Returns:
            The stream of the device's data, where one begins; `None` where there is none, or where it is the one that
            the caller has already (PRE_COPY to STOP_COPY).

        Raises:
            UnsupportedError: the device has no such state.
            ArgumentError: there is no way to it.
            MigrationError: a step failed; says which, and in which state the device is now.
        """
        current = self.state
        stream = None
        for following in path(current, target, self.flags):
            stream = self._step(current, following)
            current = following
        return stream

    def _step(self, current: MigrationState, following: MigrationState) -> MigrationStream | None:
        try:
            reply = self._vdev.features.set(
                DeviceFeature.MIG_DEVICE_STATE, _CTYPE, device_state=int(following), data_fd=-1
            )
        except VfioIoctlError as error:
            raise self._failed(f"did not go from {current.name} to {following.name} ({error})") from error
        fd = int(reply.data.data_fd)
        if fd >= 0:
            return MigrationStream(fd, self.name)
        if following in DATA_STATES and current not in DATA_STATES:
            raise MalformedReplyError(f"{self.name} went to {following.name}, and gave no stream for its data")
        return None

    def _failed(self, what: str) -> MigrationError:
        try:
            state = self.state
        except VfioError as error:
            return MigrationError(f"{self.name} {what}; its state is not known ({error})")
        advice = {
            MigrationState.ERROR: ": only a reset leads out of it",
            MigrationState.RESUMING: ": a reset lets it run again, with nothing loaded",
        }
        return MigrationError(f"{self.name} {what}; it is in state {state.name} now{advice.get(state, '')}", state.name)

    def ask_for_precopy_flags(self) -> None:
        """Make `MigrationStream.precopy_info` say when a device begins anew: ``MIG_PRECOPY_INFOv2``.

        Does nothing where the kernel or the device can't. `save` does this by itself.
        """
        features = self._vdev.features
        if DeviceFeature.MIG_PRECOPY_INFOV2 in features:
            features.set(DeviceFeature.MIG_PRECOPY_INFOV2)

    def save(
        self,
        sink: Sink | socket.socket,
        *,
        tag: str = "",
        precopy: bool = True,
        until: Callable[[PrecopyInfo], bool] = all_first_read,
        patience: float = 30.0,
    ) -> int:
        """Write the device's state to a file or socket, and leave it in STOP.

        A device that can is read while it runs, until ``until`` says that little is left; then it is stopped for the
        rest. If anything fails it goes back to the state that it was in, and runs on: nothing was lost.

        Args:
            sink: a binary file, or a socket; what bounds its writes (a socket's timeout) is the caller's business.
            tag: what kind of device it is; `load` asks for the same.
            precopy: read it while it runs, if it can do that.
            until: tells from what is left whether to stop the device now.
            patience: seconds after which it is stopped anyway.

        Returns:
            Bytes of the state.

        Raises:
            MigrationError: a step failed; says which, and in which state the device is now.
            OSError: the sink failed; the device is where it was.
        """
        write, packer = writer_of(sink), Packer()
        with self._put_back_on_failure(), closing(saving(self, packer, tag, precopy, until, patience)) as pieces:
            for piece in pieces:
                if piece:
                    write(piece)
                else:
                    time.sleep(NAP)
        return packer.total

    async def save_async(
        self,
        writer: asyncio.StreamWriter,
        *,
        tag: str = "",
        precopy: bool = True,
        until: Callable[[PrecopyInfo], bool] = all_first_read,
        patience: float = 30.0,
    ) -> int:
        """Do what `save` does, to a stream of asyncio; the device is read in a thread."""
        import asyncio

        packer = Packer()
        with self._put_back_on_failure(), closing(saving(self, packer, tag, precopy, until, patience)) as pieces:
            while (piece := await in_thread(next, pieces, None)) is not None:
                if piece:
                    writer.write(piece)
                    await writer.drain()
                else:
                    await asyncio.sleep(NAP)
        return packer.total

    def load(
        self, source: Source | socket.socket, *, tag: str = "", then: MigrationState = MigrationState.RUNNING
    ) -> int:
        """Give the device a state that `save` has written, and let it run.

        The state is read to its end and not beyond: more may follow. The device leaves RESUMING when all of it has
        come, undamaged. If anything fails before, it stays in RESUMING, and a reset gives it back.

        Args:
            source: a binary file, or a socket; what bounds its reads (a socket's timeout) is the caller's business.
            tag: what kind of device it is to be of, as `save` was told.
            then: the state to go to.

        Returns:
            Bytes of the state.

        Raises:
            MigrationError: it is not a whole, undamaged state of that kind, or the driver does not take it; says in
                which state the device is now.
            OSError: the source failed; a note says in which state the device is now.
        """
        read = reader_of(source)
        with self._told_of_failure(), closing(loading(self, tag, then)) as steps:
            done, number = False, next(steps)
            while not done:
                done, number = send(steps, whole(read(number), number))
            return number

    async def load_async(
        self, reader: asyncio.StreamReader, *, tag: str = "", then: MigrationState = MigrationState.RUNNING
    ) -> int:
        """Do what `load` does, from a stream of asyncio; the device is written to in a thread."""
        import asyncio

        with self._told_of_failure(), closing(loading(self, tag, then)) as steps:
            done, number = False, next(steps)
            while not done:
                try:
                    data = await reader.readexactly(number)
                except asyncio.IncompleteReadError as error:
                    data = error.partial
                done, number = await in_thread(send, steps, whole(data, number))
            return number

    @contextmanager
    def _put_back_on_failure(self) -> Iterator[None]:
        before = self.state
        try:
            yield
        except BaseException as error:
            try:
                stream = self.set_state(before)
                if stream is not None:
                    stream.close()
            except VfioError as trouble:
                error.add_note(f"and it could not be put back: {trouble}")
            raise

    @contextmanager
    def _told_of_failure(self) -> Iterator[None]:
        try:
            yield
        except MigrationError as error:
            if error.state:  # a step that says where it has led
                raise
            raise self._failed(f"was not loaded: {error}") from error
        except OSError as error:  # of the source
            error.add_note(str(self._failed("was not loaded")))
            raise

    def __repr__(self) -> str:
        return f"<Migration of {self.name} {self.flags!r}>"
