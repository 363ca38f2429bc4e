"""What this machine's processor brings for 8-bit integers, as far as the system says so."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_X86 = frozenset({"x86_64", "amd64", "i386", "i486", "i586", "i686", "x86"})
_ARM = frozenset({"aarch64", "arm64", "arm", "armv6l", "armv7l", "armv8l"})

# Linux gives Arm cores as numbers. Source: Arm's technical reference manuals, register MIDR_EL1.
_ARM_CORES = {
    "0xd0c": "Arm Neoverse N1", "0xd40": "Arm Neoverse V1", "0xd49": "Arm Neoverse N2", "0xd4a": "Arm Neoverse E1",
    "0xd4f": "Arm Neoverse V2",
}  # fmt: skip


@dataclass(frozen=True)
class CpuFeatures:
    """Name, architecture as `platform.machine()` calls it, and instruction sets: True, False, or None for unknown.

    avx512 means F, BW, DQ and VL together, which integer kernels ask for. i8mm, dotprod and neon are Arm's.
    """

    name: str | None
    architecture: str
    avx2: bool | None = None
    avx512: bool | None = None
    avx_vnni: bool | None = None
    avx512_vnni: bool | None = None
    amx_int8: bool | None = None
    neon: bool | None = None
    dotprod: bool | None = None
    i8mm: bool | None = None

    @property
    def vnni(self) -> bool | None:
        """Whether some instruction adds four 8-bit products in 32 bits; None where unknown."""
        known = (self.avx_vnni, self.avx512_vnni)
        return True if True in known else None if None in known else False

    @property
    def saturates_pairs(self) -> bool | None:
        """Whether 8-bit kernels go through vpmaddubsw, which adds pairs of products in saturating 16 bits.

        So it is on x86 with AVX2 and without VNNI, also with AVX-512. None where the instruction sets are unknown.
        Source: ONNX Runtime, mlas/lib/platform.cpp.
        """
        if self.architecture.lower() in _ARM:
            return False
        if self.vnni or self.avx2 is False:
            return False
        return None if self.vnni is None or self.avx2 is None else True


def cpu_features() -> CpuFeatures:
    """Of the machine this runs on: from /proc/cpuinfo on Linux; elsewhere the instruction sets stay unknown."""
    machine = platform.machine()
    if platform.system() == "Linux" and CPUINFO.exists():
        return parse_cpuinfo(CPUINFO.read_text(encoding="utf-8", errors="replace"), machine)
    return CpuFeatures(platform.processor() or None, machine)


def parse_cpuinfo(text: str, architecture: str) -> CpuFeatures:
    """From the text of Linux's /proc/cpuinfo. Cores that differ count with what all of them have."""
    cores = _cores(text)
    name = _name(cores)
    kind = architecture.lower()
    key = "flags" if kind in _X86 else "Features" if kind in _ARM else None
    listed = [set(core[key].split()) for core in cores if key in core] if key else []
    if not listed:
        return CpuFeatures(name, architecture)
    has = set.intersection(*listed)
    if kind in _X86:
        return CpuFeatures(
            name,
            architecture,
            avx2="avx2" in has,
            avx512={"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= has,
            avx_vnni="avx_vnni" in has,
            avx512_vnni="avx512_vnni" in has,
            amx_int8="amx_int8" in has,
            neon=False,
            dotprod=False,
            i8mm=False,
        )
    return CpuFeatures(
        name,
        architecture,
        avx2=False,
        avx512=False,
        avx_vnni=False,
        avx512_vnni=False,
        amx_int8=False,
        neon=bool({"asimd", "neon"} & has),
        dotprod="asimddp" in has,
        i8mm="i8mm" in has,
    )


def _cores(text: str) -> list[dict[str, str]]:
    """One mapping for each block of lines `key : value`; a block without them is left out."""
    blocks = text.replace("\r\n", "\n").split("\n\n")
    parsed = [
        {k.strip(): v.strip() for k, found, v in (line.partition(":") for line in block.splitlines()) if found}
        for block in blocks
    ]
    return [core for core in parsed if core]


def _name(cores: list[dict[str, str]]) -> str | None:
    for core in cores:
        if core.get("model name"):
            return core["model name"]
        part = core.get("CPU part")
        if part:
            maker = core.get("CPU implementer", "unknown")
            known = _ARM_CORES.get(part.lower()) if maker == "0x41" else None
            return known or f"implementer {maker}, part {part}"
    return None
