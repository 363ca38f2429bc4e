"""What /proc/cpuinfo says of several processors, and what follows for 8-bit kernels."""

import platform

import pytest

from qlab.runtime import cpu
from qlab.runtime.cpu import CpuFeatures, cpu_features, parse_cpuinfo

COMMON = "fpu vme de pse tsc msr cx8 sse sse2 ht syscall nx pdpe1gb rdtscp lm pni pclmulqdq ssse3 fma sse4_1 sse4_2 avx"


def x86(name, flags, cores=2):
    core = (
        "processor\t: {}\nvendor_id\t: some\nmodel name\t: {}\nbugs\t\t: spectre_v1\nflags\t\t: {}\npower management:\n"
    )
    return "\n".join(core.format(i, name, f"{COMMON} {flags}") for i in range(cores)) + "\n"


HASWELL = x86("Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz", "avx2 bmi1 bmi2 erms invpcid")
ZEN3 = x86("AMD EPYC 7763 64-Core Processor", "avx2 smep bmi2 erms vaes vpclmulqdq rdpid fsrm")
SKYLAKE_X = x86("Intel(R) Xeon(R) Platinum 8168", "avx2 avx512f avx512dq avx512cd avx512bw avx512vl")
ICE_LAKE = x86(
    "Intel(R) Xeon(R) Platinum 8358", "avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512vbmi avx512_vnni"
)
SAPPHIRE_RAPIDS = x86(
    "Intel(R) Xeon(R) Platinum 8480+",
    "avx2 avx512f avx512dq avx512bw avx512vl avx_vnni avx512_bf16 avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8",
)
ALDER_LAKE = x86("12th Gen Intel(R) Core(TM) i7-12700K", "avx2 bmi2 avx_vnni gfni vaes")
SANDY_BRIDGE = x86("Intel(R) Core(TM) i7-2600 CPU @ 3.40GHz", "xsaveopt")
NEOVERSE_N1 = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
NEOVERSE_V1 = NEOVERSE_N1.replace("0xd0c", "0xd40").replace("asimddp", "asimddp sve i8mm bf16")
CORTEX_A53 = NEOVERSE_N1.replace("0xd0c", "0xd03").replace(" asimddp", "")


@pytest.mark.parametrize(
    ("text", "features", "saturates"),
    [
        pytest.param(HASWELL, {"avx2"}, True, id="Haswell"),
        pytest.param(ZEN3, {"avx2"}, True, id="Zen 3"),
        pytest.param(SKYLAKE_X, {"avx2", "avx512"}, True, id="Skylake-X"),
        pytest.param(ICE_LAKE, {"avx2", "avx512", "avx512_vnni"}, False, id="Ice Lake"),
        pytest.param(
            SAPPHIRE_RAPIDS, {"avx2", "avx512", "avx512_vnni", "avx_vnni", "amx_int8"}, False, id="Sapphire Rapids"
        ),
        pytest.param(ALDER_LAKE, {"avx2", "avx_vnni"}, False, id="Alder Lake"),
        pytest.param(SANDY_BRIDGE, set(), False, id="Sandy Bridge: no vpmaddubsw on 256 bits"),
    ],
)
def test_x86(text, features, saturates):
    found = parse_cpuinfo(text, "x86_64")
    sets = ("avx2", "avx512", "avx_vnni", "avx512_vnni", "amx_int8", "neon", "dotprod", "i8mm")
    assert {s for s in sets if getattr(found, s)} == features
    assert all(getattr(found, s) is not None for s in sets)
    assert found.saturates_pairs is saturates


def test_the_name_is_the_one_the_system_gives():
    assert parse_cpuinfo(ZEN3, "x86_64").name == "AMD EPYC 7763 64-Core Processor"


@pytest.mark.parametrize(
    ("text", "name", "dotprod", "i8mm"),
    [
        pytest.param(NEOVERSE_N1, "Arm Neoverse N1", True, False, id="Neoverse N1"),
        pytest.param(NEOVERSE_V1, "Arm Neoverse V1", True, True, id="Neoverse V1"),
        pytest.param(CORTEX_A53, "implementer 0x41, part 0xd03", False, False, id="a part without a known name"),
    ],
)
def test_arm(text, name, dotprod, i8mm):
    found = parse_cpuinfo(text, "aarch64")
    assert (found.name, found.neon, found.dotprod, found.i8mm) == (name, True, dotprod, i8mm)
    assert found.avx2 is False
    assert found.saturates_pairs is False


def test_cores_that_differ_count_with_what_all_have():
    mixed = x86("big", "avx2 avx_vnni", cores=1) + "\n" + x86("little", "avx2", cores=1)
    assert parse_cpuinfo(mixed, "x86_64").avx_vnni is False


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        pytest.param("", "x86_64", id="empty"),
        pytest.param("processor\t: 0\nmodel name\t: Hidden\n", "x86_64", id="no flags"),
        pytest.param(ZEN3, "riscv64", id="another architecture"),
    ],
)
def test_what_is_not_said_is_unknown(text, machine):
    found = parse_cpuinfo(text, machine)
    assert found.avx2 is None
    assert found.avx512_vnni is None
    assert found.neon is None
    assert found.vnni is None
    assert found.saturates_pairs is None


def test_another_system_is_unknown(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "processor", lambda: "i386")
    assert cpu_features() == CpuFeatures("i386", "x86_64")
    assert cpu_features().saturates_pairs is None


def test_arm_never_saturates_even_where_its_sets_are_unknown():
    assert CpuFeatures(None, "arm64").saturates_pairs is False


def test_this_machine_is_read_from_its_own_file(monkeypatch, tmp_path):
    written = tmp_path / "cpuinfo"
    written.write_text(ICE_LAKE)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "CPUINFO", written)
    assert cpu_features() == parse_cpuinfo(ICE_LAKE, "x86_64")
