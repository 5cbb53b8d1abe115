#!/bin/bash
# Rewrites our C++ sources in the style of .clang-format, as Debian 12's clang-format does; with --check, fails where one differs.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=(-i)
[[ "${1:-}" == --check ]] && mode=(--dry-run --Werror)
find . \( -name build -o -name '.?*' \) -prune -o \( -name '*.h' -o -name '*.cpp' \) -print0 |
  xargs -0 --no-run-if-empty clang-format-14 --style=file "${mode[@]}"
