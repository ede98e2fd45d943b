#!/usr/bin/env bash
# The native library on ARM64, under qemu: a CPU with i8mm, one with dotprod alone, one with neither.
#
# usage: [PYTHON=python3] [JOBS=2] tests/runtime/native/targets/arm64.sh
set -euo pipefail
cd "$(dirname "$0")/../../../.."
PYTHON=${PYTHON:-python3}
OUT=$PWD/build/arm64
# shellcheck source=tests/runtime/native/targets/common.sh
. tests/runtime/native/targets/common.sh
mkdir -p "$OUT"

if [ "$(command -v aarch64-linux-gnu-g++ qemu-aarch64-static cmake make | wc -l)" -lt 4 ]; then
  install_packages g++-aarch64-linux-gnu qemu-user-static cmake make
fi
fetch_onnxruntime manylinux_2_28_aarch64 manylinux_2_27_aarch64 manylinux2014_aarch64
build_for aarch64-linux-gnu
"$PYTHON" tests/runtime/native/targets/write_model_cases.py "$OUT/cases.bin"
LIBRARY=$OUT/build/lfm_ops/liblfm_ops.so

# on CPU FEATURES COMMAND... : ONNX Runtime reads the features of the CPU in /proc/cpuinfo, which qemu does not give.
on() {
  local cpu=$1 features=$2 root=$OUT/root-$1
  shift 2
  mkdir -p "$root/proc"
  ln -sfn /usr/aarch64-linux-gnu/lib "$root/lib"
  for core in 0 1; do
    printf 'processor\t: %s\nBogoMIPS\t: 100.00\nFeatures\t: %s\nCPU implementer\t: 0x41\n' "$core" "$features"
    printf 'CPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n'
  done >"$root/proc/cpuinfo"
  qemu-aarch64-static -cpu "$cpu" -L "$root" "$@"
}

BASE="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
DOTPROD="$BASE atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
I8MM="$DOTPROD i8mm"

# test_cpu CPU FEATURES TABLES
test_cpu() {
  local cpu=$1 features=$2 tables=$3 isa
  echo "== $cpu"
  on "$cpu" "$features" "$OUT/build/kernel_tables_test" "$tables"
  for isa in ${tables//,/ }; do
    LFM_OPS_ISA=$isa on "$cpu" "$features" "$OUT/build/model_test" "$ONNXRUNTIME"/libonnxruntime.so.* "$LIBRARY" \
      "$OUT/cases.bin"
  done
}

test_cpu max "$I8MM" i8mm,dotprod,neon,scalar
test_cpu neoverse-n1 "$DOTPROD" dotprod,neon,scalar
test_cpu cortex-a72 "$BASE" neon,scalar
LFM_OPS_ISA=i8mm expect_failure "choose from neon, scalar" \
  on cortex-a72 "$BASE" "$OUT/build/model_test" "$ONNXRUNTIME"/libonnxruntime.so.* "$LIBRARY" "$OUT/cases.bin"
echo "ok: ARM64"
