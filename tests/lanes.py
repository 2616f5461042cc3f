"""Run the lanes of tests and print a summary.

A lane is one row of `LANES`: tests on this machine, tests inside of a guest, or a command that must succeed. A lane
that can't run, or that runs no test, has failed. Results and logs of each lane are left in ``.out/lanes/NAME``.

    python tests/lanes.py              all lanes
    python tests/lanes.py unit guest-* those that match
    python tests/lanes.py --jobs 1     one after the other, with their output as it comes

As many lanes run at once as there are processors, two at most: a guest is emulated by one thread. The output of a lane
is then shown as a whole when it has ended.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from vfio_user.testing import Guest, GuestCrashedError, GuestError, GuestTimeoutError, run

TOP = Path(__file__).resolve().parent.parent
OUT = TOP / ".out" / "lanes"
#: Seconds for one test in a guest: emulation on a busy machine is slow, and some tests start programs.
PATIENCE = 240
#: What `tests/guest` needs: edu alone, two in one slot, one on the root bus; two NVMe; memory; I/O ports; a slot of two
#: functions in two groups; one that errors can be injected into; a virtio disk.
DEVICES = (
    "edu",
    "nvme,size=256M",
    "edu+edu",
    "nvme,size=64M",
    "ivshmem",
    "e1000e",
    "igb+igb",
    "edu,port=no",
    "virtio-net,aer=on",
    "virtio-blk",
)
#: What network and virtio drivers need: ports on one hub, a disk, and a device that would bypass the IOMMU.
NETWORK = ("igb+igb", "virtio-net", "virtio-net", "virtio-blk", "virtio-rng", "virtio-rng,iommu_platform=off", "edu")
NETWORK_TESTS = tuple(f"tests/guest/test_{name}.py" for name in ("igb", "virtio_blk", "virtio_net"))
ELSEWHERE = tuple(f"--ignore={test}" for test in NETWORK_TESTS)

#: What `tests/stress` needs: the first edu and the first NVMe are unplugged, killed and reset.
STRESS_DEVICES = ("edu", "edu+edu", "nvme,size=64M", "ivshmem")

#: What `tests/traffic` needs: every device that has a driver which moves much.
TRAFFIC_DEVICES = ("nvme,size=256M", "virtio-blk,size=128M", "igb+igb")

#: Binding is sysfs and a journal, slow to show and the same everywhere, and so are the programs of the documentation:
#: one kernel shows them, one that has file systems and network drivers to be in use.
ONCE = tuple(f"--ignore=tests/guest/test_{name}.py" for name in ("binding", "docs"))
#: What is shown over iommufd and its stand-ins for containers too, in three guests: five modes take their time.
EVERY_MODE = {
    name: tuple(f"tests/guest/test_{each}.py" for each in names)
    for name, names in {
        "drivers": (
            *("guest", "device", "edu", "irq", "nvme", "nvme_queues", "regs", "events", "ioeventfd"),
            *("tracing", "watch", "terminal", "examples", "unprivileged"),
        ),
        "iommu": ("dirty", "dma", "iommufd", "unmap", "p2p", "reexec", "features", "mdev", "migration", "display"),
        "resets": ("memory_lock", "regions", "reset", "reset_dev_ids", "reset_trouble", "unplug"),
    }.items()
}

#: What `tests/buses` needs on arm64, and what of it needs no IOMMU.
SOLDERED = ("pl031", "flash", "virtio-rng-mmio")
ARM64 = (*SOLDERED, "edu", "nvme,size=256M", "nvme,size=64M")
ON_ARM64 = tuple(f"tests/buses/test_{name}.py" for name in ("clock", "flash", "entropy", "platform"))
ON_ARM64_PCI = (
    *("tests/buses/test_docs.py", "tests/buses/test_smmu.py", "tests/guest/test_edu.py", "tests/guest/test_nvme.py"),
)
#: Unit tests of what is written down as bytes, for devices and for the kernel: they also run on s390x, which is the
#: machine with the other byte order. `NOT_ON_WIRE` are those that need not.
ON_WIRE = (
    *(f"tests/unit/{folder}" for folder in ("buses", "ccw", "igb", "virtio")),
    *(
        f"tests/unit/{folder}/test_{name}.py"
        for folder, names in {
            "device": ("display", "dma_log", "info", "irq", "regmap", "region"),
            "drivers": ("edu",),
            "iommu": ("bitmap", "bulk", "container", "dirty", "viommu"),
            "kernel": ("capabilities", "ioctl", "passing", "table"),
            "memory": ("accessor", "block", "program", "rings"),
            "migration": ("migration", "wire"),
            "nvme": ("arrays", "commands", "controller", "identify", "logs", "namespace", "prp", "regs", "status"),
            "pci": ("capabilities", "config", "decode", "guard", "hot_reset_info", "msix"),
        }.items()
        for name in names
    ),
    *(f"tests/unit/test_{name}.py" for name in ("hostile", "monitor", "tracing")),
    "--deselect=tests/unit/virtio/test_queue.py::test_indexes_wrap",  # half a minute, of arithmetic
)
#: Unit tests that handle bytes, and why the other byte order has no say in what they show.
NOT_ON_WIRE = {
    "tests/unit/iommu/test_pool.py": "stamps of its own in buffers",
    "tests/unit/memory/test_fault.py": "faults on memory of all-ones, and x86's registers",
    "tests/unit/memory/test_window.py": "where memory is mapped",
}
#: On s390x those, and its devices.
ON_S390X = (
    *ON_WIRE,
    *(f"tests/buses/test_{name}.py" for name in ("channel", "docs", "zpci")),
    *("tests/guest/test_nvme.py", "--deselect=tests/guest/test_nvme.py::test_examples"),
)
S390X = (*2 * ("virtio-blk-ccw,size=1M",), "nvme,size=256M", "nvme,size=64M", "virtio-blk,size=1M", "virtio-rng")

_SAID = 200  # characters of what a failed test said, in the summary
#: How the runner says that QEMU ended by a signal.
_EMULATOR_DIED = "QEMU ended with -"


@dataclass(frozen=True, slots=True)
class Lane:
    """One way of running some of the tests."""

    name: str
    tests: tuple[str, ...] = ()
    """What pytest is given."""
    guest: Guest | None = None
    """Where it runs; None is this machine."""
    command: tuple[str, ...] = ()
    """Instead of tests: the ``vfio-user`` command that must succeed, which counts as one test."""
    timeout: float = 1800.0
    """Seconds for all of it."""
    minutes: float = 0.0
    """How long its tests run together, for tests that take as long as they are told to; others are what they are."""
    gib: float = 0.0
    """How much its tests carry, for tests that carry as much as they are told to."""

    def lasting(self, minutes: float) -> Lane:
        """Give the lane with other minutes, if it is one that has some."""
        if not self.minutes:
            return self
        return dataclasses.replace(self, minutes=minutes, timeout=self.timeout + 180 * minutes)

    def carrying(self, gib: float) -> Lane:
        """Give the lane with another amount, if it is one that has some."""
        if not self.gib:
            return self
        return dataclasses.replace(self, gib=gib, timeout=self.timeout + 300 * gib)


@dataclass(slots=True)
class Outcome:
    """What became of a lane."""

    lane: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    problem: str = ""
    failures: list[str] = dataclasses.field(default_factory=list)
    """Each failed test, and what it said, in a line."""


LANES = (
    Lane("unit", ("tests/unit",)),
    Lane("native", ("tests/native",)),
    Lane("uapi", ("tests/uapi",)),
    Lane("docs", ("tests/docs",)),
    Lane("runner", ("tests/runner",)),
    Lane("guest-6.1", ("tests/guest", *ONCE, *ELSEWHERE), Guest(kernel="6.1", devices=DEVICES)),
    Lane("guest-6.12", ("tests/guest", *ELSEWHERE), Guest(kernel="6.12", devices=DEVICES)),
    *(Lane(f"guest-{name}", tests, Guest(kernel="feature", devices=DEVICES)) for name, tests in EVERY_MODE.items()),
    Lane("network-6.12", NETWORK_TESTS, Guest(kernel="6.12", devices=NETWORK)),
    Lane("network-feature", NETWORK_TESTS, Guest(kernel="feature", devices=NETWORK)),
    Lane("no-iommu", ("tests/unusual/test_no_iommu.py",), Guest(iommu="none", devices=("edu",), bind=False)),
    Lane(
        "noiommu",
        ("tests/unusual/test_noiommu.py",),
        Guest(
            kernel="feature",
            iommu="none",
            append="vfio.enable_unsafe_noiommu_mode=1",
            devices=("edu,dma_mask=0xffffffffffffffff", "nvme,size=64M"),
        ),
    ),
    Lane(
        "corners",
        ("tests/corners",),
        Guest(
            kernel="feature",
            memory="4G",
            append="hugepagesz=1G hugepages=1",
            devices=("edu,dma_mask=0xffffffffffffffff", "nvme,vfs=4,size=64M", "virtio-net,aer=on", "igb"),
        ),
    ),
    Lane(
        "no-remapping",
        ("tests/unusual/test_no_interrupt_remapping.py",),
        Guest(append="intremap=off", devices=("edu",)),
    ),
    *(
        Lane(
            name,
            ("tests/unusual/test_other_iommu.py",),
            Guest(kernel="feature", iommu=name, devices=("edu", "nvme,size=64M", "VGA")),
        )
        for name in ("amd", "virtio")
    ),
    Lane("stress-6.12", ("tests/stress",), Guest(kernel="6.12", devices=STRESS_DEVICES), minutes=0.3),
    Lane("stress-feature", ("tests/stress",), Guest(kernel="feature", devices=STRESS_DEVICES), minutes=0.3),
    Lane("traffic", ("tests/traffic",), Guest(kernel="feature", devices=TRAFFIC_DEVICES), gib=0.25),
    Lane("demo", command=("demo",)),
    Lane("arm64", ON_ARM64 + ON_ARM64_PCI, Guest(arch="arm64", devices=ARM64)),
    Lane("arm64-no-iommu", ON_ARM64, Guest(arch="arm64", iommu="none", devices=SOLDERED)),
    Lane("s390x", ON_S390X, Guest(arch="s390x", devices=S390X)),
)


def run_lane(lane: Lane) -> Outcome:
    """Run one lane; whatever goes wrong is in its outcome."""
    print(f"== {lane.name}", flush=True)
    folder = OUT / lane.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begin = time.monotonic()
    try:
        outcome = _run_command(lane) if lane.command else _run_tests(lane, folder)
    except (GuestError, subprocess.SubprocessError, OSError) as error:
        outcome = Outcome(lane.name, problem=f"{type(error).__name__}: {error}")
    if outcome.problem:
        outcome.failed += 1
    outcome.seconds = time.monotonic() - begin
    return outcome


def _run_command(lane: Lane) -> Outcome:
    command = [sys.executable, "-m", "vfio_user.cli", *lane.command]
    done = subprocess.run(command, cwd=TOP, timeout=lane.timeout, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        return Outcome(lane.name, problem=f"vfio-user {' '.join(lane.command)} ended with {done.returncode}")
    return Outcome(lane.name, passed=1)


def _run_tests(lane: Lane, folder: Path) -> Outcome:
    code = _pytest_in_guest(lane, lane.guest, folder) if lane.guest else _pytest(lane, folder)
    outcome = read_junit(lane.name, folder / "junit.xml")
    # pytest says 0 when all is well, 1 when tests failed; anything else means that it did not do its work.
    if code not in (0, 1) or (code == 1 and not outcome.failed):
        outcome.problem = outcome.problem or f"pytest ended with {code}"
    return outcome


def _pytest(lane: Lane, folder: Path) -> int:
    command = _command(lane, str(folder / "junit.xml"))
    return subprocess.run(command, cwd=TOP, timeout=lane.timeout, stdin=subprocess.DEVNULL, check=False).returncode


def _pytest_in_guest(lane: Lane, guest: Guest, folder: Path) -> int:
    try:
        return _one_guest(lane, guest, folder)
    except GuestTimeoutError as error:
        # Seen on 6.1: the guest sleeps for ever in a request of its 9p root. A test that hangs does so twice.
        print(f"{lane.name}: the guest has gone silent, so once more: {error}", flush=True)
        return _one_guest(lane, guest, folder)
    except GuestCrashedError as error:
        if _EMULATOR_DIED not in error.reason:
            raise
        # An assertion of QEMU's own that fails says nothing of what ran in it; twice in a row would. Seen with a thread
        # for each processor (iotlb_to_section), which guests no longer have.
        print(f"{lane.name}: the emulator itself died, so once more: {error.reason}", flush=True)
        return _one_guest(lane, guest, folder)


def _one_guest(lane: Lane, guest: Guest, folder: Path) -> int:
    # The folder has the same path inside, but what is written there stays inside: the result goes to the share.
    command = ["sh", "-c", 'exec "$@" --junit-xml="$VFIO_USER_OUTPUT/junit.xml"', "sh", *_command(lane, "")]
    return run(
        guest,
        command,
        cwd=TOP,
        output=folder,
        timeout=lane.timeout,
        silence=1.5 * PATIENCE,
        stdout=sys.stdout.buffer,
        stderr=sys.stderr.buffer,
    ).returncode


def _command(lane: Lane, junit: str) -> list[str]:
    report = [f"--junit-xml={junit}"] if junit else []
    patience = ["-o", f"timeout={PATIENCE}", "-o", f"faulthandler_timeout={PATIENCE - 10}"] if lane.guest else []
    record = ["-p", "tests.uapi_record"] if lane.guest else []  # for the table in docs/uapi.md
    amount = [f"--minutes={lane.minutes:g}", "-rP"] if lane.minutes else []  # with what they counted
    amount += [f"--gib={lane.gib:g}"] if lane.gib else []
    python = "python3" if lane.guest and lane.guest.machine.foreign else sys.executable
    return [python, "-m", "pytest", "-q", *record, *patience, *report, *amount, *lane.tests]


def read_junit(lane: str, path: Path) -> Outcome:
    """Count the results in a JUnit XML file; none at all is a problem."""
    if not path.exists():
        return Outcome(lane, problem="no results: pytest did not come to its end")
    outcome = Outcome(lane)
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        total, failures, errors, skipped = (
            int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")
        )
        outcome.failed += failures + errors
        outcome.skipped += skipped
        outcome.passed += total - failures - errors - skipped
        outcome.failures += map(_failure, suite.iterfind("testcase[failure]"))
        outcome.failures += map(_failure, suite.iterfind("testcase[error]"))
    if outcome.passed + outcome.failed == 0:
        outcome.problem = "it ran no test"
    return outcome


def _failure(case: ElementTree.Element) -> str:
    (what, *_) = (*case.iterfind("failure"), *case.iterfind("error"))
    said = what.get("message", "").strip().splitlines()
    return f"{case.get('classname')}::{case.get('name')}: {said[0][:_SAID] if said else 'it does not say why'}"


def summary(outcomes: list[Outcome]) -> str:
    """Return what failed, and the table of lanes; its last line is the total, in the form that CI reads."""
    rows = [f"failed in {each.lane}: {failure}" for each in outcomes for failure in each.failures]
    rows += [f"{'lane':<16} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}"]
    for each in outcomes:
        line = f"{each.lane:<16} {each.passed:>7} {each.failed:>7} {each.skipped:>8} {each.seconds:>8.1f}"
        rows.append(f"{line}  {each.problem.splitlines()[0]}" if each.problem else line)
    sums = [sum(getattr(each, name) for each in outcomes) for name in ("passed", "failed", "skipped")]
    rows += ["", "total: {} passed, {} failed, {} skipped".format(*sums)]
    return "\n".join(rows)


def run_lanes(lanes: Sequence[Lane], jobs: int) -> Iterator[Outcome]:
    """Run lanes, several at once when there are several `jobs`; yield the outcomes as they come."""
    if jobs == 1 or len(lanes) == 1:
        yield from map(run_lane, lanes)
        return
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_run_apart, lane): lane for lane in lanes}
        try:
            for each in as_completed(running):
                outcome = each.result()
                sys.stdout.buffer.write(_log_of(running[each]).read_bytes())
                yield outcome
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run_apart(lane: Lane) -> Outcome:
    """Run one lane in a process of its own, with its output in a file."""
    print(f"-- {lane.name} begins", flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    log, result = _log_of(lane), OUT / f"{lane.name}.json"
    result.unlink(missing_ok=True)
    with log.open("wb") as output:
        command = [sys.executable, __file__, "--jobs", "1", "--result", str(result), lane.name]
        command += [f"--minutes={lane.minutes}"] if lane.minutes else []
        command += [f"--gib={lane.gib}"] if lane.gib else []
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False).returncode
    if not result.exists():
        return Outcome(lane.name, failed=1, problem=f"the lane itself ended with {code}, without a result")
    return Outcome(**json.loads(result.read_text()))


def _log_of(lane: Lane) -> Path:
    return OUT / f"{lane.name}.log"


def main(words: Sequence[str]) -> int:
    """Run the lanes that match; return 0 when all passed."""
    parser = argparse.ArgumentParser(
        description="Run lanes of tests.", usage="%(prog)s [--jobs N] [--minutes N] [--gib N] [LANE ...]"
    )
    parser.add_argument("patterns", nargs="*", metavar="LANE", help="names; * and ? match as in the shell")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many at once")
    parser.add_argument("--minutes", type=float, help="of lanes that take as long as they are told: stress")
    parser.add_argument("--gib", type=float, help="of lanes that carry as much as they are told: traffic")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)  # what `_run_apart` reads
    arguments = parser.parse_args(words)
    patterns = arguments.patterns or ["*"]
    chosen = [lane for lane in LANES if any(fnmatch.fnmatch(lane.name, pattern) for pattern in patterns)]
    if arguments.minutes:
        chosen = [lane.lasting(arguments.minutes) for lane in chosen]
    if arguments.gib:
        chosen = [lane.carrying(arguments.gib) for lane in chosen]
    unmatched = [each for each in patterns if not any(fnmatch.fnmatch(lane.name, each) for lane in LANES)]
    if unmatched:
        print(f"no lane matches {' '.join(unmatched)}; there are {' '.join(lane.name for lane in LANES)}")
        return 2
    os.environ.setdefault("COLUMNS", "110")
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # kernels that are fetched or built
    outcomes = []
    for outcome in run_lanes(chosen, max(1, arguments.jobs)):
        if not arguments.result:
            told = outcome.problem or f"{outcome.passed} passed, {outcome.failed} failed"
            print(f"-- {outcome.lane}: {told}, {outcome.seconds:.0f} s", flush=True)
        outcomes.append(outcome)
    if arguments.result:
        arguments.result.write_text(json.dumps(dataclasses.asdict(outcomes[0])))
    else:
        outcomes.sort(key=lambda each: [lane.name for lane in LANES].index(each.lane))
        print(f"\n{summary(outcomes)}", flush=True)
    return 1 if any(each.failed for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
