#!/bin/bash
# Installs the Debian packages that the named groups need and that are missing; without any missing, it does nothing and
# does not touch the network.
#   scripts/bootstrap.sh [build] [examples] [test] [data] [browser] [bench] [python] [peers] [trace] [tsan] [format]
set -euo pipefail

declare -A packages=(
  [build]="g++ cmake ninja-build pkg-config libopenblas-openmp-dev zlib1g-dev"
  [examples]="nlohmann-json3-dev libcli11-dev libjs-chart.js"
  [test]="doctest-dev python3 clang-format make libopenblas0-openmp libopenblas0-pthread"
  [data]="dataset-fashion-mnist"
  [browser]="chromium chromium-driver python3-selenium"
  [bench]="libbenchmark-dev"
  [python]="python3"
  [peers]="python3-torch libtorch-dev"
  [trace]="nodejs npm"
  [tsan]="clang-14 libclang-rt-14-dev libomp-14-dev"
  [format]="clang-format"
)

wanted=()
for group in "${@:-build}"; do
  if [[ -z "${packages[$group]:-}" ]]; then
    echo "bootstrap: no group '$group'; the groups are: ${!packages[*]}" >&2
    exit 2
  fi
  read -ra names <<<"${packages[$group]}"
  wanted+=("${names[@]}")
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "bootstrap: not a Debian system; assuming that these (Debian's names) are here: ${wanted[*]}" >&2
  exit 0
fi

missing=()
for name in "${wanted[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null || true)
  grep -qx installed <<<"$status" || missing+=("$name")
done
((${#missing[@]})) || exit 0

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "bootstrap: these packages are missing, and neither root nor sudo is at hand to install them: ${missing[*]}" >&2
    echo "bootstrap: as root, run: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

echo "bootstrap: installing ${missing[*]}"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
