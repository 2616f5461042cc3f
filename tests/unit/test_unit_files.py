"""The examples for udev and systemd: written as those want it, and with commands that exist."""

from __future__ import annotations

import argparse
import configparser
import importlib
import re
import shlex
from pathlib import Path

import pytest

from vfio_user.cli import COMMANDS
from vfio_user.handover import SOCKET, Policy

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
UNITS = sorted((EXAMPLES / "systemd").iterdir())
#: What a rule may match (==, !=) and set (=, +=, :=), as far as these do; ``udev(7)``.
MATCHED, SET = {"SUBSYSTEM", "KERNEL"}, {"GROUP", "MODE"}
#: Directives of ``systemd.unit(5)``, ``systemd.service(5)``, ``systemd.socket(5)`` and ``systemd.exec(5)``.
DIRECTIVES = {
    "Unit": {"Description", "Requires", "After", "Before"},
    "Socket": {"ListenSequentialPacket", "SocketMode", "SocketGroup"},
    "Service": {
        *("ExecStart", "ExecStop", "Type", "RemainAfterExit", "User", "LimitMEMLOCK", "CapabilityBoundingSet"),
        *("DevicePolicy", "DeviceAllow", "NoNewPrivileges", "ProtectHome", "ProtectSystem", "PrivateNetwork"),
        "MemoryDenyWriteExecute",
    },
    "Install": {"WantedBy"},
}


def read_unit(path: Path) -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # directives keep their case
    unit.read_string(path.read_text(), str(path))
    return unit


def test_udev_rules() -> None:
    (path,) = (EXAMPLES / "udev").iterdir()
    assert re.fullmatch(r"\d\d-[a-z-]+\.rules", path.name)
    rules = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(rules) == 4
    for rule in rules:
        words = [re.fullmatch(r'\s*([A-Z]+)(==|!=|=|\+=|:=)"([^"]*)"\s*', word) for word in rule.split(",")]
        assert all(words), rule
        found = [word.groups() for word in words if word is not None]
        assert all(key in (MATCHED if operator in ("==", "!=") else SET) for key, operator, _ in found), rule
        assert {key for key, operator, _ in found if operator == "=="} == MATCHED, "a rule is for one kind of node"
        assert all(re.fullmatch("0[0-7]{3}", value) for key, _, value in found if key == "MODE")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_units(path: Path) -> None:
    unit = read_unit(path)
    assert unit.has_section("Unit")
    assert unit.has_section("Socket" if path.suffix == ".socket" else "Service")
    for section in unit.sections():
        assert set(unit[section]) <= DIRECTIVES[section], section
    for name in ("Requires", "After", "Before"):
        wanted = unit.get("Unit", name, fallback="")
        assert not wanted or (EXAMPLES / "systemd" / wanted).exists()


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_commands_in_units_are_ours(path: Path) -> None:
    unit = read_unit(path)
    for directive in ("ExecStart", "ExecStop"):
        program, *words = shlex.split(unit.get("Service", directive, fallback="none"))
        if not program.endswith("vfio-user"):
            continue
        parser = argparse.ArgumentParser()
        importlib.import_module(f"vfio_user.cli.{COMMANDS[words[0]]}").add(parser.add_subparsers())
        parsed = parser.parse_args([word.replace("%I", "0000:03:00.0") for word in words])
        if words[0] == "broker":
            grants = [each.replace("alice", "root").replace("@dma", "@root") for each in parsed.allow]
            assert len(Policy.parse(grants).grants) == 2


def test_socket_is_where_drivers_look() -> None:
    unit = read_unit(EXAMPLES / "systemd" / "vfio-user-broker.socket")
    assert unit["Socket"]["ListenSequentialPacket"] == str(SOCKET)
