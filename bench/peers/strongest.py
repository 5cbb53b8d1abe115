"""What has to be in the environment before PyTorch is loaded, for its strongest set-up."""
import os
import subprocess
import sys
from pathlib import Path

OPENBLAS = Path("/usr/lib/x86_64-linux-gnu/openblas-openmp")  # the variant that shares PyTorch's own OpenMP threads
CHOSEN = "BENCH_PEER_KERNELS"  # kernels() answers what this says, so that many programs ask once

# Prints the name of the kernels that OpenBLAS uses and the seconds that the forward product of an MLP's first layer takes.
TRIAL = f"""
import ctypes, time
blas = ctypes.CDLL("{OPENBLAS}/libopenblas.so.0")
blas.openblas_get_corename.restype = ctypes.c_char_p
m, n, k = 128, 512, 784
x, w, y = (ctypes.c_float * (m * k))(), (ctypes.c_float * (n * k))(), (ctypes.c_float * (m * n))()
def product():
    begin, one = time.perf_counter(), ctypes.c_float(1)
    blas.cblas_sgemm(101, 111, 112, m, n, k, one, x, k, w, k, ctypes.c_float(0), y, n)
    return time.perf_counter() - begin
print(blas.openblas_get_corename().decode(), min(product() for _ in range(200)))
"""


def kernels():
    """The fastest kernels of OpenBLAS here, tried out: it takes a CPU newer than itself for an older one (Debian's an Emerald
    Rapids for a Prescott, of 2004: products three times as slow), and OPENBLAS_CORETYPE may name some that run everywhere."""
    if CHOSEN in os.environ:
        return os.environ[CHOSEN]
    flags = Path("/proc/cpuinfo").read_text().split()
    trials = []
    for name in [None, *["Haswell"] * ("avx2" in flags), *["SkylakeX"] * ("avx512vl" in flags)]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": name or ""}
        if name is None:  # what it takes the CPU for
            del environment["OPENBLAS_CORETYPE"]
        answer = subprocess.run([sys.executable, "-c", TRIAL], env=environment, capture_output=True, text=True, check=True)
        core, seconds = answer.stdout.split()
        trials.append((float(seconds), core))
    return min(trials)[1]


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
            "OPENBLAS_CORETYPE": kernels(),
        }
    os.environ.update(settings | (more or {}))
    os.execv(sys.executable, [sys.executable, *sys.argv])
