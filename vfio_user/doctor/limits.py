"""Limits of this process and its surroundings: locked memory, mappings, huge pages, containers, lockdown."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator

from vfio_user import findings
from vfio_user.binding import files
from vfio_user.binding.files import entries, text
from vfio_user.findings import Finding, Severity
from vfio_user.kernel import sysfs

__all__ = ["limit_findings"]

_LOW = 64 << 20
_CAP_IPC_LOCK = 14
_USUAL_MAPPINGS = 65535
_FILTERED = "2"  # SECCOMP_MODE_FILTER


def limit_findings() -> Iterator[Finding]:
    """Look at what limits this process."""
    yield _memlock()
    yield from _mappings()
    yield _huge_pages()
    yield from _surroundings()


def _memlock() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    status = _status()
    if int(status.get("CapEff", "0"), 16) >> _CAP_IPC_LOCK & 1:
        return Finding("memlock", Severity.OK, "this process may pin as much memory as there is (CAP_IPC_LOCK)")
    if soft == resource.RLIM_INFINITY:
        return Finding("memlock", Severity.OK, "this process may pin as much memory as there is")
    words = f"{soft >> 10} KiB"
    if soft < _LOW:
        finding = findings.memlock(words, severity=Severity.WARNING)
        raised = "unlimited" if hard == resource.RLIM_INFINITY else str(hard >> 10)
        if hard == resource.RLIM_INFINITY or hard > soft:
            return Finding(finding.key, finding.severity, finding.what, finding.why, "Raise it", f"ulimit -l {raised}")
        return finding
    return Finding("memlock", Severity.OK, f"this process may pin {words} of memory")


def _mappings() -> Iterator[Finding]:
    limit = text(sysfs.SYSFS / "module/vfio_iommu_type1/parameters/dma_entry_limit")
    if not limit.isdecimal():
        return
    low = int(limit) < _USUAL_MAPPINGS
    yield Finding(
        "dma-entry-limit",
        Severity.WARNING if low else Severity.OK,
        f"a container takes {limit} mappings",
        f"The usual limit is {_USUAL_MAPPINGS}." if low else "",
        "Raise it" if low else "",
        f"echo {_USUAL_MAPPINGS} > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit" if low else "",
    )


def _huge_pages() -> Finding:
    sizes = {}
    for folder in entries(sysfs.SYSFS / "kernel/mm/hugepages"):
        found = re.fullmatch(r"hugepages-(\d+)kB", folder.name)
        free = text(folder / "free_hugepages")
        if found and free.isdecimal() and int(free):
            sizes[int(found[1]) >> 10] = int(free)
    if sizes:
        what = ", ".join(f"{number} of {size} MiB" for size, number in sorted(sizes.items()))
        return Finding("huge-pages", Severity.OK, f"huge pages are free: {what}")
    return Finding(
        "huge-pages",
        Severity.NOTE,
        "no huge pages are free",
        "Large buffers are mapped much faster from huge pages (backing='huge2m'); small ones do not need them.",
        "Reserve some",
        "echo 64 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    )


def _surroundings() -> Iterator[Finding]:
    lockdown = re.search(r"\[(\w+)\]", text(sysfs.SYSFS / "kernel/security/lockdown"))
    if lockdown and lockdown[1] != "none":
        yield Finding(
            "lockdown",
            Severity.NOTE,
            f"the kernel is locked down ({lockdown[1]}), as Secure Boot does it",
            "VFIO works. Modules that are not signed do not load, and tools that map BARs through sysfs are refused.",
        )
    if _read_only():
        yield Finding(
            "sysfs-read-only",
            Severity.WARNING,
            "sysfs can't be written here, as in a container",
            "Devices can't be bound to a driver from here.",
            "Bind them on the host, and pass their nodes in",
            "--device /dev/vfio/vfio --device /dev/vfio/NUMBER --ulimit memlock=-1",
        )
    if _status().get("Seccomp") == _FILTERED:
        yield Finding(
            "seccomp",
            Severity.NOTE,
            "system calls of this process are filtered (seccomp)",
            "ioctl, mmap, mlock and eventfd must pass; the usual profiles of containers let them.",
        )


def _read_only() -> bool:
    try:
        return bool(os.statvfs(sysfs.SYSFS).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _status() -> dict[str, str]:
    lines = text(files.PROC / "self/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
