#!/usr/bin/env bash
# What clang-format and clang-tidy say of the native library's sources. BIN: the folder of the two programs; on the PATH
# where it is not given. Code for another machine's instruction sets is formatted alike, but not analysed here.
set -euo pipefail
cd "$(dirname "$0")"
PATH=${BIN:+$BIN:}$PATH
machine=$(uname -m)
[ "$machine" != arm64 ] || machine=aarch64

find . ../../benchmarks/kernels -name '*.cc' -o -name '*.h' | xargs clang-format --dry-run --Werror

# Sources of the instruction sets: file, machine, compile flags.
declare -A flags
while read -r file target options; do
  [ "$target" = "$machine" ] && flags[./compute/$file]=$options || flags[./compute/$file]=skip
done < <(grep -v '^#' compute/isa_sources.txt)

analyse() {
  clang-tidy --quiet "$1" -- -std=c++17 -I. -Icompute -DLFM_OPS_VERSION='""' $2 2>/dev/null
}
export -f analyse
for source in $(find . -name '*.cc'); do
  [ "${flags[$source]-}" = skip ] || printf '%s\0%s\0' "$source" "${flags[$source]-}"
done | xargs -0 -n 2 -P "$(getconf _NPROCESSORS_ONLN)" bash -c 'analyse "$1" "$2"' analyse
