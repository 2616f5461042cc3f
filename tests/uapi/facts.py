"""Facts of the uAPI, once from the kernel's headers and once from our extension, in a form that can be compared.

The headers are parsed (which names there are) and compiled (what numbers they have): a parser alone would have to
know the compiler's layout, a compiler alone can't say which names exist.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycparser import c_ast, c_parser

from vfio_user._uapi import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["HEADERS", "Facts", "Field", "differences", "of_extension", "of_headers"]

HEADERS = ("vfio.h", "iommufd.h", "vfio_ccw.h", "vfio_zdev.h")
#: Constants of ours that are the C library's.
_SYSTEM = ("PROT_", "MAP_", "MADV_")


@dataclass(frozen=True)
class Field:
    """A field; of a flexible array, one element."""

    offset: int
    size: int


@dataclass
class Facts:
    """What there is, and its numbers."""

    constants: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    fields: dict[str, dict[str, Field]] = field(default_factory=dict)
    enums: dict[str, set[str]] = field(default_factory=dict)
    requests: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Type and number within it, of each request; of the headers only."""
    functions: set[str] = field(default_factory=set)
    """Macros with arguments; of the headers only."""


def differences(theirs: Facts, ours: Facts) -> list[str]:
    """Say in words what differs, nothing if all is the same."""
    found: list[str] = []
    found += _compare("constant", theirs.constants, ours.constants)
    found += _compare("text", theirs.texts, ours.texts)
    found += _compare("size of struct", theirs.sizes, ours.sizes)
    found += _compare("enum", theirs.enums, ours.enums)
    for name in theirs.fields.keys() & ours.fields.keys():
        found += _compare(f"field of struct {name}:", theirs.fields[name], ours.fields[name])
    return sorted(found)


def _compare(what: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    for name in theirs.keys() - ours.keys():
        yield f"{what} {name}: the kernel has it, we do not declare it"
    for name in ours.keys() - theirs.keys():
        yield f"{what} {name}: we declare it, the kernel does not have it"
    for name in theirs.keys() & ours.keys():
        if theirs[name] != ours[name]:
            yield f"{what} {name}: the kernel has {theirs[name]}, we declare {ours[name]}"


def of_extension() -> Facts:
    """Read what `vfio_user._uapi` declares; touches every structure, so that cffi checks each against the compiler."""
    facts = Facts()
    for name in dir(lib):
        value = getattr(lib, name)
        if isinstance(value, int):
            if not name.startswith(_SYSTEM):
                facts.constants[name] = value
        elif not name.startswith("vu_"):
            facts.texts[name] = ffi.string(value).decode()
    _, structs, _ = ffi.list_types()
    for name in structs:
        if name.startswith("$"):
            continue
        facts.sizes[name] = ffi.sizeof(f"struct {name}")
        facts.fields[name] = dict(_cffi_fields(ffi.typeof(f"struct {name}").fields, 0))
    return facts


def _cffi_fields(fields: Iterable[tuple[str, Any]], base: int) -> Iterator[tuple[str, Field]]:
    for name, member in fields:
        kind = member.type
        if not name:  # an anonymous union
            yield from _cffi_fields(kind.fields, base + member.offset)
        elif kind.kind == "array" and kind.length is None:
            yield name, Field(base + member.offset, ffi.sizeof(kind.item))
        else:
            yield name, Field(base + member.offset, ffi.sizeof(kind))


def add_enums(facts: Facts, names: Iterable[str]) -> None:
    """Add the enumerations of `names` that we declare: cffi does not list them."""
    for name in names:
        try:
            facts.enums[name] = set(ffi.typeof(f"enum {name}").relements)
        except ffi.error:
            continue


def of_headers(include: Path, scratch: Path) -> Facts:
    """Read and compile the kernel's headers.

    Args:
        include: directory that has ``linux/vfio.h``.
        scratch: an empty directory for the probe.
    """
    facts = Facts()
    flags = _flags(include)
    enumerators: set[str] = set()
    for header in HEADERS:
        _parse(facts, enumerators, include / "linux" / header, flags)
    numbers, texts, requests = _defines([(include / "linux" / header).read_text() for header in HEADERS], facts)
    probe = _probe(facts, numbers | enumerators, texts, requests)
    (scratch / "probe.c").write_text(probe)
    _run(["cc", "-w", *flags, "-o", str(scratch / "probe"), str(scratch / "probe.c")])
    for kind, owner, name, first, second in json.loads(_run([str(scratch / "probe")])):
        if kind == "constant":
            facts.constants[name] = first
        elif kind == "text":
            facts.texts[name] = first
        elif kind == "size":
            facts.sizes[name] = first
        elif kind == "field":
            facts.fields[owner][name] = Field(first, second)
        else:
            facts.requests[name] = (first, second)
    return facts


def _flags(include: Path) -> list[str]:
    triplet = _run(["cc", "-print-multiarch"]).strip()
    return ["-isystem", str(include), "-isystem", str(include / triplet)]


def _parse(facts: Facts, enumerators: set[str], header: Path, flags: list[str]) -> None:
    """Find the structures, fields and enumerations of one header, and leave those that it includes alone."""
    # pycparser reads standard C only.
    plain = ["-D__attribute__(x)=", "-D__signed__=signed", "-D__extension__=", "-D__inline__=", "-D__int128=long"]
    text = _run(["cc", "-E", *plain, *flags, str(header)])
    own = str(header)
    for node in c_parser.CParser().parse(text, own).ext:
        if node.coord is None or node.coord.file != own:
            continue
        kind = node.type
        if isinstance(kind, c_ast.Struct) and kind.decls:
            facts.fields[kind.name] = dict.fromkeys(_field_names(kind), Field(-1, -1))
        elif isinstance(kind, c_ast.Enum) and kind.values:
            names = {each.name for each in kind.values.enumerators}
            enumerators |= names
            if kind.name:
                facts.enums[kind.name] = names


def _field_names(struct: Any) -> Iterator[str]:
    for member in struct.decls:
        if member.name:
            yield member.name + ("[]" if isinstance(member.type, c_ast.ArrayDecl) and not member.type.dim else "")
        else:
            yield from _field_names(member.type)


def _defines(sources: list[str], facts: Facts) -> tuple[set[str], set[str], dict[str, tuple[str, str]]]:
    """Find the macros: names of numbers, names of texts, and requests with their two arguments."""
    numbers: set[str] = set()
    texts: set[str] = set()
    requests: dict[str, tuple[str, str]] = {}
    for source in sources:
        code = re.sub(r"/\*.*?\*/|//[^\n]*", " ", source, flags=re.DOTALL).replace("\\\n", " ")
        for name, arguments, body in re.findall(
            r"^[ \t]*#[ \t]*define[ \t]+(\w+)(\([^)]*\))?(.*)$", code, re.MULTILINE
        ):
            request = re.fullmatch(r"_IO[RW]*\(([^,]+),([^,)]+).*\)", body.strip())
            if arguments:
                facts.functions.add(name)
            elif request:
                numbers.add(name)
                requests[name] = (request[1], request[2])
            elif body.strip().startswith('"'):
                texts.add(name)
            elif body.strip():
                numbers.add(name)
    return numbers, texts, requests


def _probe(facts: Facts, numbers: set[str], texts: set[str], requests: dict[str, tuple[str, str]]) -> str:
    """Write a program that prints rows of JSON: kind, owner, name, and two values."""
    rows = [f'ROW("constant", "", "{name}", {name}, 0)' for name in sorted(numbers)]
    rows += [f'TEXT("{name}", {name})' for name in sorted(texts)]
    rows += [f'ROW("request", "", "{name}", {kind}, {nr})' for name, (kind, nr) in sorted(requests.items())]
    for struct, fields in facts.fields.items():
        rows.append(f'ROW("size", "", "{struct}", sizeof(struct {struct}), 0)')
        for name in fields:
            plain = name.removesuffix("[]")
            element = f"((struct {struct} *)0)->{plain}{'[0]' if name != plain else ''}"
            rows.append(f'ROW("field", "{struct}", "{plain}", offsetof(struct {struct}, {plain}), sizeof({element}))')
        facts.fields[struct] = {}
    return (
        "#include <stddef.h>\n#include <stdio.h>\n"
        + "".join(f"#include <linux/{name}>\n" for name in HEADERS)
        # (1 << 31) is negative in C; the fields that it goes into are unsigned.
        + "static long long number(long long value, int is_int)\n"
        + "{ return value < 0 && is_int ? value & 0xffffffff : value; }\n"
        + "#define ROW(kind, owner, name, first, second) \\\n"
        + '  printf("%s[\\"" kind "\\", \\"" owner "\\", \\"" name "\\", %lld, %lld]", comma, '
        + 'number((long long)(first), sizeof(first) == 4), (long long)(second)); comma = ",\\n";\n'
        + "#define TEXT(name, text) \\\n"
        + '  printf("%s[\\"text\\", \\"\\", \\"" name "\\", \\"%s\\", 0]", comma, text); comma = ",\\n";\n'
        + 'int main(void) {\n  const char *comma = "";\n  printf("[");\n  '
        + "\n  ".join(rows)
        + '\n  printf("]\\n");\n  return 0;\n}\n'
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout
