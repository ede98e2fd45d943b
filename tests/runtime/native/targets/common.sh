# Steps that the tests on other machines share; sourced by arm64.sh and windows.sh. Needs $PYTHON and $OUT.

# install_packages NAME... : Debian packages, where we may; otherwise says what to install.
install_packages() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
  else
    echo "expected the packages $*: install them (on Debian: apt-get install $*) and run again" >&2
    exit 2
  fi
}

# fetch_onnxruntime PLATFORM_TAG... : unpacks the first wheel that exists, of this machine's onnxruntime version.
fetch_onnxruntime() {
  local version tag
  version=$("$PYTHON" -c "import importlib.metadata as m; print(m.version('onnxruntime'))")
  [ -d "$OUT/onnxruntime-$version" ] && { ONNXRUNTIME=$OUT/onnxruntime-$version/onnxruntime/capi; return; }
  mkdir -p "$OUT/wheel"
  for tag in "$@"; do
    if "$PYTHON" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --platform "$tag" \
      --python-version 3.11 -d "$OUT/wheel" "onnxruntime==$version"; then
      "$PYTHON" -m zipfile -e "$OUT"/wheel/onnxruntime-"$version"-*.whl "$OUT/onnxruntime-$version.part"
      mv "$OUT/onnxruntime-$version.part" "$OUT/onnxruntime-$version"
      ONNXRUNTIME=$OUT/onnxruntime-$version/onnxruntime/capi
      return
    fi
  done
  echo "no onnxruntime $version wheel for $*" >&2
  exit 1
}

# build_for TOOLCHAIN : the library and the test programs in $OUT/build.
build_for() {
  cmake -S runtime/native/tests -B "$OUT/build" -DCMAKE_TOOLCHAIN_FILE="$PWD/runtime/native/toolchains/$1.cmake" \
    -DCMAKE_BUILD_TYPE=Release >/dev/null
  cmake --build "$OUT/build" -j "${JOBS:-$(nproc)}"
}

# expect_failure TEXT COMMAND... : the command fails and says TEXT.
expect_failure() {
  local text=$1 said
  shift
  if said=$("$@" 2>&1) || ! grep -qF "$text" <<<"$said"; then
    echo "FAIL: expected a failure that says '$text', got: $said"
    exit 1
  fi
}
