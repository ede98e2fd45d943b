// The inner loops of the ARM kernels as functions of their own, for arm_cycles.py to read their assembly.
//
// LFM_KERNELS is the file of an instruction set, LFM_DOT its dot products.
#include LFM_KERNELS

namespace lfm {

using Int4 = BlockFormat<4, 32, true, false>;
using Int8 = BlockFormat<8, 32, true, false>;

#define LFM_VECTOR_LOOP(name, Format)                                                                         \
  extern "C" __attribute__((flatten)) float32x2_t name(const RowPointers(&rows)[kVectorRows], int64_t blocks, \
                                                       int64_t ahead, const uint8_t* token) {                 \
    return MultiplyVector<LFM_DOT, Format>(rows, blocks, ahead, token);                                       \
  }
#define LFM_TILE_LOOP(name, Format)                                                                               \
  extern "C" __attribute__((flatten)) void name(const RowPointers(&rows)[kRowTile], int64_t blocks,               \
                                                const uint8_t* quads, int64_t quad_bytes, float32x4_t* outputs) { \
    float32x4_t tile[kMaxTileQuads][kQuad];                                                                       \
    MultiplyTile<LFM_DOT, Format, kMaxTileQuads>(rows, blocks, quads, quad_bytes, tile);                          \
    for (int i = 0; i < kMaxTileQuads * kQuad; ++i) outputs[i] = tile[i / kQuad][i % kQuad];                      \
  }

LFM_VECTOR_LOOP(vector_int4, Int4)
LFM_VECTOR_LOOP(vector_int8, Int8)
LFM_TILE_LOOP(tile_int4, Int4)
LFM_TILE_LOOP(tile_int8, Int8)

}  // namespace lfm
