"""Whether a latency means anything: emulated processes and simulated accelerators."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from edgetie.providers.emulation import describe_emulation, latency_problem


def elf(machine: int, order: str) -> bytes:
    head = b"\x7fELF\x02" + (b"\x01" if order == "<" else b"\x02") + bytes(10)
    return head + struct.pack(f"{order}HH", 2, machine)


def test_emulation_is_told_by_the_running_program(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(elf(62, "<"))  # what runs is made for x86-64
    assert describe_emulation(program, "aarch64") == "this aarch64 process is emulated"
    assert describe_emulation(program, "x86_64") is None
    program.write_bytes(elf(183, "<"))
    assert describe_emulation(program, "aarch64") is None
    assert describe_emulation(program, "armv7l") is None  # a 64-bit core runs 32-bit programs
    program.write_bytes(elf(22, ">"))
    assert describe_emulation(program, "x86_64") == "this x86_64 process is emulated"
    program.write_bytes(b"#!/bin/sh\n")
    assert describe_emulation(program, "x86_64") is None
    assert describe_emulation(tmp_path / "missing", "x86_64") is None


def test_a_simulated_accelerator_is_no_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert latency_problem("qnn") == "qnn on x86_64 is a simulator"
