#!/usr/bin/python3
"""Holds every #include of the tree to the layers of ARCHITECTURE.md.

    scripts/check_layers.py              check the tree; prints each fault as file:line, exits 1 when there is one
    scripts/check_layers.py --self-test  check the checker: bad examples must be refused, good ones pass
"""
import re
import sys
from pathlib import Path

# What each layer may include besides itself. The first folder that is a prefix of the file's decides.
LAYERS = {
    "core/kernels": ("core/parallel.h", "core/error.h"),
    "core": (),
    "autograd": ("core",),
    "nn": ("autograd", "core"),
    "optim": ("autograd", "core"),
    "data": ("core",),
    "profile": ("nn", "optim", "data", "autograd", "core"),
}
OURS_OUTSIDE_THE_LIBRARY = ("tests", "examples", "report", "bench", "tools")

# Each costs every user's compile a third of a second or more (docs/decisions/0004).
HEAVY = {"random", "chrono", "memory", "functional", "iostream", "sstream", "ranges", "regex", "fstream", "thread", "future"}
# (public header, heavy header) pairs that are worth their cost; say why.
HEAVY_ALLOWED = set()

# Where `using namespace` may stand in a header: the alias that gives the library its name.
USING_ALLOWED = {"core/namespace.h"}

# System headers that are not the C++ standard library, and the only places that may know them.
SYSTEM_ONLY_IN = {"omp.h": ("core/parallel.cpp",), "sys/single_threaded.h": ("core/ref_count.h",)}

C_HEADERS = {
    f"{name}.h" for name in "assert complex ctype errno fenv float inttypes limits locale math setjmp signal stdarg stdbool "
    "stddef stdint stdio stdlib string time uchar wchar wctype".split()
}
CXX_HEADERS = set(
    "algorithm any array atomic barrier bit bitset cassert cctype cerrno cfenv cfloat charconv chrono cinttypes climits clocale "
    "cmath codecvt compare complex concepts condition_variable coroutine csetjmp csignal cstdarg cstddef cstdint cstdio cstdlib "
    "cstring ctime cuchar cwchar cwctype deque exception execution filesystem format forward_list fstream functional future "
    "initializer_list iomanip ios iosfwd iostream istream iterator latch limits list locale map memory memory_resource mutex new "
    "numbers numeric optional ostream queue random ranges ratio regex scoped_allocator semaphore set shared_mutex "
    "source_location span sstream stack stdexcept stop_token streambuf string string_view strstream syncstream system_error "
    "thread tuple type_traits typeindex typeinfo unordered_map unordered_set utility valarray variant vector version".split()
)
STANDARD = C_HEADERS | CXX_HEADERS

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
USING = re.compile(r"^\s*using\s+namespace\b")


def layer_of(path):
    """'core/kernels/gemm.h' -> 'core/kernels'; None outside the library."""
    return next((layer for layer in LAYERS if path.startswith(layer + "/")), None)


def is_public(path):
    return path.endswith(".h") and (layer_of(path) not in (None, "core/kernels") or path == "rewind.h")


def fault(path, quote, target):
    """Why `path` may not include `target`, or None."""
    layer = layer_of(path)
    if quote == '"' and (layer is not None or path == "rewind.h"):
        return f'"{target}": our headers are spelled <rewind/...>, others with angle brackets'

    if target.startswith("rewind/"):
        inner = target[len("rewind/"):]
        if ".." in inner or "//" in inner:
            return f"<{target}>: not the one spelling"
        if layer is None:
            if path == "rewind.h" and inner.startswith(OURS_OUTSIDE_THE_LIBRARY):
                return f"<{target}>: the library does not know its {inner.split('/')[0]}"
            return None
        if inner.split("/")[0] in OURS_OUTSIDE_THE_LIBRARY:
            return f"<{target}>: the library does not know its {inner.split('/')[0]}"
        if inner == "rewind.h":
            return f"<{target}>: the umbrella is for users; include what you use"
        if inner.startswith(layer + "/"):
            return None
        if layer == "core" and inner.startswith("core/kernels/"):  # by prefix, so for readers
            return None
        for allowed in LAYERS[layer]:
            if inner == allowed or (inner.startswith(allowed + "/") and not allowed.endswith(".h")):
                return None
        return f"<{target}>: {layer} may include only {', '.join((layer,) + LAYERS[layer])}"

    only_in = SYSTEM_ONLY_IN.get(target)
    if only_in:
        return None if path in only_in else f"<{target}>: only {', '.join(only_in)} may"
    if is_public(path):
        if target not in STANDARD:
            return f"<{target}>: a public header includes our own and the standard library only"
        if target in HEAVY and (path, target) not in HEAVY_ALLOWED:
            return f"<{target}>: too slow to parse for a public header; include it in the .cpp"
    return None


def check_text(path, text):
    for number, line in enumerate(text.splitlines(), 1):
        if match := INCLUDE.match(line):
            if why := fault(path, *match.groups()):
                yield f"{path}:{number}: {why}"
        elif is_public(path) and path not in USING_ALLOWED and USING.match(line):
            yield f"{path}:{number}: using namespace in a public header"
    if path.endswith(".h") and layer_of(path) and "#pragma once" not in text:
        yield f"{path}:1: #pragma once is missing"


def check_tree(root):
    folders = {layer.split("/")[0] for layer in LAYERS} | set(OURS_OUTSIDE_THE_LIBRARY)
    suffixes = (".h", ".cpp", ".inc", ".def")
    files = [p for folder in sorted(folders) for p in sorted((root / folder).rglob("*")) if p.suffix in suffixes]
    files += sorted(root.glob("*.h"))
    faults = []
    for file in files:
        faults += check_text(file.relative_to(root).as_posix(), file.read_text())
    return len(files), faults


REFUSED = [
    ("core/tensor.h", "#include <sys/single_threaded.h>"),
    ("core/kernels/gemm.h", "#include <rewind/core/tensor.h>"),
    ("core/kernels/gemm.cpp", "#include <rewind/core/shape.h>"),
    ("core/tensor.h", "#include <rewind/autograd/tape.h>"),
    ("core/tensor.cpp", "#include <rewind/autograd/tape.h>"),
    ("autograd/tape.cpp", "#include <rewind/nn/module.h>"),
    ("autograd/ops/add.cpp", "#include <rewind/optim/sgd.h>"),
    ("nn/linear.cpp", "#include <rewind/optim/sgd.h>"),
    ("nn/models/resnet.h", "#include <rewind/data/idx.h>"),
    ("optim/sgd.cpp", "#include <rewind/nn/module.h>"),
    ("data/idx.cpp", "#include <rewind/autograd/tape.h>"),
    ("nn/linear.cpp", "#include <rewind/profile/profile.h>"),
    ("core/tensor.cpp", "#include <rewind/tests/support.h>"),
    ("nn/linear.cpp", "#include <rewind/examples/progress.h>"),
    ("nn/linear.cpp", "#include <rewind/rewind.h>"),
    ("core/tensor.cpp", "#include <omp.h>"),
    ("core/kernels/gemm.cpp", "#  include  <omp.h>"),
    ("core/tensor.cpp", '#include "tensor.h"'),
    ("core/tensor.cpp", '#include "rewind/core/tensor.h"'),
    ("core/tensor.cpp", "#include <rewind/core/../nn/module.h>"),
    ("data/idx.h", "#include <zlib.h>"),
    ("core/tensor.h", "#include <cblas.h>"),
    ("core/tensor.h", "#include <sys/mman.h>"),
    ("rewind.h", "#include <nlohmann/json.hpp>"),
    ("rewind.h", "#include <rewind/tests/support.h>"),
    ("core/random.h", "#include <random>"),
    ("nn/module.h", "#include <memory>"),
    ("nn/module.h", "using namespace std;"),
]
PASSED = [
    ("core/kernels/gemm.cpp", "#include <rewind/core/kernels/gemm.h>"),
    ("core/kernels/gemm.cpp", "#include <rewind/core/parallel.h>"),
    ("core/kernels/gemm.cpp", "#include <cblas.h>"),
    ("core/parallel.cpp", "#include <omp.h>"),
    ("core/ref_count.h", "#include <sys/single_threaded.h>"),
    ("core/tensor.cpp", "#include <rewind/core/kernels/pool.h>"),
    ("core/tensor.cpp", "#include <memory>"),
    ("core/tensor.h", "#include <vector>"),
    ("autograd/ops/add.cpp", "#include <rewind/core/kernels/pointwise.h>"),
    ("nn/linear.h", "#include <rewind/autograd/tape.h>"),
    ("optim/sgd.h", "#include <rewind/core/tensor.h>"),
    ("data/idx.cpp", "#include <zlib.h>"),
    ("profile/profile.h", "#include <rewind/optim/optimizer.h>"),
    ("tests/core/tensor.cpp", "#include <doctest/doctest.h>"),
    ("examples/hello.cpp", "#include <rewind/rewind.h>"),
    ("examples/train_digits.cpp", '#include "support/classifier.h"'),
    ("rewind.h", "#include <rewind/nn/module.h>"),
]


def self_test():
    wrong = [f"not refused: {path}: {line}" for path, line in REFUSED if not list(check_text(path, "#pragma once\n" + line))]
    wrong += [f"refused: {why}" for path, line in PASSED for why in check_text(path, "#pragma once\n" + line)]
    if not list(check_text("core/a.h", "int a;")):
        wrong.append("not refused: a header without #pragma once")
    return len(REFUSED) + len(PASSED) + 1, wrong


def main():
    if sys.argv[1:] == ["--self-test"]:
        count, faults = self_test()
        what = "examples"
    else:
        count, faults = check_tree(Path(__file__).resolve().parent.parent)
        what = "files"
    print("\n".join(faults + [f"layers: {count} {what}, {len(faults)} faults"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
