"""What the kernel of a Raspberry Pi says of its processor, in /proc/cpuinfo and /sys/devices/system/cpu.

The interpreters choose their arithmetic by it. QEMU's user mode would show them this machine's files, which describe
another kind of processor: ai-edge-litert's cpuinfo library then reads through a null pointer.
"""

from dataclasses import dataclass
from pathlib import Path

CORES = 4


@dataclass(frozen=True)
class Board:
    """`cpu` is QEMU's name of the processor; `cpuinfo` one core's entry; `cache_kib` its second-level cache."""

    cpu: str
    cpuinfo: str
    cache_kib: int

    def write(self, root: Path) -> None:
        """Put the files into a userland's root."""
        all_cores = f"0-{CORES - 1}"
        files = {"kernel_max": str(CORES - 1), "possible": all_cores, "present": all_cores}
        for core in range(CORES):
            topology, cache = f"cpu{core}/topology", f"cpu{core}/cache/index2"
            files |= {f"{topology}/physical_package_id": "0", f"{topology}/core_id": str(core)}
            files |= {f"{topology}/{name}_list": all_cores for name in ("cluster_cpus", "core_siblings")}
            files |= {
                f"{cache}/level": "2",
                f"{cache}/size": f"{self.cache_kib}K",
                f"{cache}/shared_cpu_list": all_cores,
            }
        (root / "proc").mkdir()
        (root / "proc" / "cpuinfo").write_text("".join(f"processor\t: {n}\n{self.cpuinfo}\n" for n in range(CORES)))
        for name, content in files.items():
            path = root / "sys/devices/system/cpu" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")


PI_4 = Board(
    cpu="cortex-a72",
    cpuinfo="""\
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
""",
    cache_kib=1024,
)
PI_2 = Board(
    cpu="cortex-a7",
    cpuinfo="""\
model name\t: ARMv7 Processor rev 5 (v7l)
BogoMIPS\t: 57.60
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x0
CPU part\t: 0xc07
CPU revision\t: 5
""",
    cache_kib=512,
)
