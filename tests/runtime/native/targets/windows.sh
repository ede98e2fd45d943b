#!/usr/bin/env bash
# The native library as a Windows DLL, under wine.
#
# usage: [PYTHON=python3] [JOBS=2] tests/runtime/native/targets/windows.sh
set -euo pipefail
cd "$(dirname "$0")/../../../.."
PYTHON=${PYTHON:-python3}
OUT=$PWD/build/windows
# shellcheck source=tests/runtime/native/targets/common.sh
. tests/runtime/native/targets/common.sh
mkdir -p "$OUT"

# Debian keeps the program beside its libraries.
PATH=$PATH:/usr/lib/wine
if [ "$(command -v x86_64-w64-mingw32-g++-posix wine64 cmake make | wc -l)" -lt 4 ]; then
  install_packages g++-mingw-w64-x86-64-posix wine64 cmake make
fi
fetch_onnxruntime win_amd64
build_for mingw-w64-x86_64
"$PYTHON" tests/runtime/native/targets/write_model_cases.py "$OUT/cases.bin"

export WINEPREFIX=$OUT/wine WINEDEBUG=-all WINEDLLOVERRIDES="mscoree=;mshtml=;winemenubuilder.exe=" DISPLAY=
run() { wine64 "$@"; }

run "$OUT/build/kernel_tables_test.exe" any
tables=$(run "$OUT/build/kernel_tables_test.exe" list | tr -d '\r')
for isa in ${tables//,/ }; do
  LFM_OPS_ISA=$isa run "$OUT/build/model_test.exe" "$ONNXRUNTIME/onnxruntime.dll" "$OUT/build/lfm_ops/lfm_ops.dll" \
    "$OUT/cases.bin"
done
LFM_OPS_ISA=none expect_failure "choose from" \
  run "$OUT/build/model_test.exe" "$ONNXRUNTIME/onnxruntime.dll" "$OUT/build/lfm_ops/lfm_ops.dll" "$OUT/cases.bin"
echo "ok: Windows"
