"""What has to be in the environment before PyTorch is loaded, for its strongest set-up."""
import ctypes
import os
import sys
from pathlib import Path

OPENBLAS = Path("/usr/lib/x86_64-linux-gnu/openblas-openmp")  # the variant that shares PyTorch's own OpenMP threads


def kernels():
    """OpenBLAS takes a CPU that is newer than itself for one of twenty years ago, and is three times as slow as it could be."""
    library = ctypes.CDLL(OPENBLAS / "libopenblas.so.0")
    library.openblas_get_corename.restype = ctypes.c_char_p
    if library.openblas_get_corename() in (b"Haswell", b"Zen", b"SkylakeX", b"Cooperlake", b"SapphireRapids"):
        return {}
    flags = Path("/proc/cpuinfo").read_text().split()
    core = "SkylakeX" if "avx512vl" in flags else "Haswell" if "avx2" in flags else None
    return {"OPENBLAS_CORETYPE": core} if core else {}


def start_again(threads, more=None, shipped=False):
    """Runs this program again in that environment, unless it is in it; `more` is added. shipped: as Debian ships PyTorch."""
    if "BENCH_PEER" in os.environ:
        return
    settings = {"BENCH_PEER": "1", "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    if not shipped:
        # Freed memory is kept and lies on huge pages.
        settings |= {
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": "100000000000",
            "MALLOC_TOP_PAD_": "67108864",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
            "LD_LIBRARY_PATH": str(OPENBLAS),
            **kernels(),
        }
    os.environ.update(settings | (more or {}))
    os.execv(sys.executable, [sys.executable, *sys.argv])
