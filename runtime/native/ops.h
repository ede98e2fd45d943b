// The custom ops of this library, one file each.
#pragma once

#include "ort_abi.h"

namespace lfm {

const OrtCustomOp* GatedShortConvOp();
const OrtCustomOp* SparseMoEOp();
const OrtCustomOp* QLinearOp();
const OrtCustomOp* SwiGLUOp();
const OrtCustomOp* SplitQKVNormOp();
const OrtCustomOp* GatherDequantizeOp();
const OrtCustomOp* GroupQueryAttentionOp();

}  // namespace lfm
