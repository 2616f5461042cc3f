"""The compiled extension itself: its typed face, its import, its system calls."""

from __future__ import annotations

import errno
import importlib.util
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vfio_user._uapi import ffi, lib

ROOT = Path(__file__).parent.parent.parent


def test_the_typed_face_has_what_the_extension_has() -> None:
    spec = importlib.util.spec_from_file_location("stub", ROOT / "_cdefs" / "stub.py")
    assert spec is not None
    assert spec.loader is not None
    stub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stub)
    written = (ROOT / "vfio_user" / "_uapi.pyi").read_text()
    assert written == stub.render(), "run: python _cdefs/stub.py"
    for name in dir(lib):
        assert f" {name}:" in written or f"def {name}(" in written


def test_import_needs_no_cffi_and_no_compiler() -> None:
    code = (
        "import sys, vfio_user.kernel.ioctl, vfio_user.kernel.uapi\n"
        "print(*sorted({'cffi', 'pycparser', 'ctypes', 'ioctl_opt', 'setuptools'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_functions_give_negative_errno() -> None:
    assert lib.vu_ioctl(-1, 0, ffi.NULL) == -errno.EBADF
    assert lib.vu_munmap(1, 4096) == -errno.EINVAL
    assert lib.vu_mprotect(1, 4096, 0) == -errno.EINVAL
    assert lib.vu_madvise(1, 4096, 0) == -errno.EINVAL
    assert lib.vu_mlock(0, 4096) == -errno.ENOMEM
    assert lib.vu_munlock(0, 4096) == -errno.ENOMEM
    assert lib.vu_mmap(0, 0, 0, lib.MAP_PRIVATE | lib.MAP_ANONYMOUS, -1, 0) == -errno.EINVAL
    buffer = ffi.new("char[4]")
    assert lib.vu_pread(-1, buffer, 4, 0) == -errno.EBADF
    assert lib.vu_pwrite(-1, buffer, 4, 0) == -errno.EBADF


def test_mapping_reading_and_writing_a_file(tmp_path: Path) -> None:
    page = mmap.PAGESIZE
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, 3 * page)
        text = ffi.new("char[]", b"hello")
        assert lib.vu_pwrite(fd, text, 5, 2 * page) == 5
        address = lib.vu_mmap(0, page, lib.PROT_READ, lib.MAP_SHARED, fd, 2 * page)
        assert address > 0
        assert bytes(ffi.buffer(ffi.cast("char *", address), 5)) == b"hello"
        assert lib.vu_madvise(address, page, lib.MADV_DONTFORK) == 0
        assert lib.vu_mprotect(address, page, lib.PROT_NONE) == 0
        assert lib.vu_munmap(address, page) == 0
        back = ffi.new("char[8]")
        assert lib.vu_pread(fd, back, 8, 2 * page) == 8
        assert bytes(ffi.buffer(back, 5)) == b"hello"
    finally:
        os.close(fd)


def test_many_ioctls_stop_at_the_first_failure() -> None:
    # FIONREAD writes an int for each element; an element that can't be written to ends the series.
    import termios

    reader, writer = os.pipe()
    try:
        os.write(writer, b"12345")
        done = ffi.new("size_t *")
        counts = ffi.new("int[3]")
        assert lib.vu_ioctl_many(reader, termios.FIONREAD, counts, 4, 3, done) == 0
        assert (done[0], list(counts)) == (3, [5, 5, 5])
        place = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(place)))
        assert lib.vu_mprotect(address + mmap.PAGESIZE, mmap.PAGESIZE, lib.PROT_NONE) == 0
        start = ffi.cast("void *", address)
        assert lib.vu_ioctl_many(reader, termios.FIONREAD, start, mmap.PAGESIZE, 2, done) == -errno.EFAULT
        assert done[0] == 1
        assert lib.vu_mprotect(address + mmap.PAGESIZE, mmap.PAGESIZE, lib.PROT_READ | lib.PROT_WRITE) == 0
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(("shift", "name"), [(21, "MAP_HUGE_2MB"), (30, "MAP_HUGE_1GB")])
def test_huge_page_flags_carry_the_size(shift: int, name: str) -> None:
    assert getattr(lib, name) == shift << 26
