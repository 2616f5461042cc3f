"""The guest's initramfs: static busybox, the modules that lead to the host's root, and one script.

It is a plain cpio archive ("newc", Documentation/driver-api/early-userspace/buffer-format.rst), not
compressed: an emulated processor takes longer to unpack it than QEMU to hand it over.
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_user.testing import cache
from vfio_user.testing.errors import GuestSetupError

if TYPE_CHECKING:
    from vfio_user.testing.kernels import Kernel

__all__ = ["MODULES", "archive", "build", "closure"]

#: Modules to load before the host's root is there, in this order; a kernel may have them built in.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "vfio-pci", "vfio_iommu_type1")
#: Modules that are loaded where the kernel has them. An IOMMU comes first: it must be there before its
#: devices.
OPTIONAL_FIRST = ("virtio_iommu",)

_APPLETS = ("cat", "cp", "ln", "mkdir", "modprobe", "mount", "poweroff", "sh", "switch_root")


def build(kernel: Kernel, busybox: Path) -> Path:
    """Return the initramfs for `kernel`, from the cache or built into it."""
    files = _scripts() | {"bin/busybox": busybox.read_bytes()}
    modules = _module_names(kernel)
    key = cache.digest(kernel.key, *modules, *(part for item in files.items() for part in item))

    def write(place: Path) -> None:
        tree = files | {"modules": "\n".join(modules).encode() + b"\n"} | dict(_module_files(kernel, modules))
        (place / "initramfs.cpio").write_bytes(archive(tree, {f"bin/{name}": "busybox" for name in _APPLETS}))

    return cache.entry("initramfs", f"{kernel.release}-{key}", write) / "initramfs.cpio"


def _scripts() -> dict[str, bytes]:
    here = resources.files("vfio_user.testing")
    return {"init": (here / "init.sh").read_bytes(), "main.sh": (here / "main.sh").read_bytes()}


def _normal(name: str) -> str:
    """Return a module's name as the kernel has it: file names mix ``-`` and ``_``."""
    return name.replace("-", "_")


def _module_names(kernel: Kernel) -> list[str]:
    """Return the modules that the guest has to load itself."""
    if kernel.modules is None:
        return []
    loadable = {_stem(path) for path in _dependencies(kernel.modules)}
    builtin = {_stem(line) for line in (kernel.modules / "modules.builtin").read_text().split()}
    missing = [name for name in MODULES if _normal(name) not in loadable | builtin]
    if missing:
        raise GuestSetupError(f"kernel {kernel.release} lacks {', '.join(missing)}; take one that has them")
    return [name for name in OPTIONAL_FIRST + MODULES if _normal(name) in loadable]


def _stem(path: str) -> str:
    return _normal(Path(path).name.split(".ko")[0])


def _dependencies(modules: Path) -> dict[str, list[str]]:
    """Return the rows of modules.dep: path and the paths of what it needs."""
    rows = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        rows[path] = needs.split()
    return rows


def closure(rows: Mapping[str, Iterable[str]], names: Iterable[str]) -> list[str]:
    """Return the paths of the modules `names` and of everything that they need, each once.

    Args:
        rows: modules.dep: path → paths that it needs. Some depmods list direct needs only, so they are
            followed.
        names: module names; those that `rows` has not are built in.
    """
    by_name = {_stem(path): path for path in rows}
    todo = [by_name[_normal(name)] for name in names if _normal(name) in by_name]
    found: dict[str, None] = {}
    while todo:
        path = todo.pop()
        if path not in found:
            found[path] = None
            todo += rows.get(path, ())
    return sorted(found)


def _module_files(kernel: Kernel, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the modules, unpacked, and a modules.dep that speaks of them."""
    if kernel.modules is None:
        return
    rows = _dependencies(kernel.modules)
    base = f"lib/modules/{kernel.release}"
    table = []
    for path in closure(rows, names):
        yield f"{base}/{_plain(path)}", _unpacked(kernel.modules / path)
        table.append(f"{_plain(path)}: {' '.join(_plain(need) for need in rows[path])}".rstrip())
    yield f"{base}/modules.dep", "\n".join(table).encode() + b"\n"


def _plain(path: str) -> str:
    return path.removesuffix(".xz")


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def archive(files: Mapping[str, bytes], links: Mapping[str, str]) -> bytes:
    """Return a cpio archive of executable `files` and symbolic `links`, and of the folders that they need."""
    folders = {str(parent) for name in (*files, *links) for parent in Path(name).parents} - {"."}
    folders |= {"dev", "proc", "sys"}
    parts = [_record(name, stat.S_IFDIR | 0o755, b"") for name in sorted(folders)]
    # The kernel opens /dev/console for PID 1 before anything is mounted.
    parts.append(_record("dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1)))
    parts += [_record(name, stat.S_IFREG | 0o755, data) for name, data in files.items()]
    parts += [_record(name, stat.S_IFLNK | 0o777, target.encode()) for name, target in links.items()]
    parts.append(_record("TRAILER!!!", 0, b""))
    return b"".join(parts)


def _record(name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> bytes:
    """Return one entry: 13 fields of 8 hexadecimal digits, name, data; both padded to 4 bytes."""
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + path
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
