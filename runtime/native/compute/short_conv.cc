// Walks along time with the last L columns of B * x of a strip of channels in a ring.
#include "short_conv.h"

#include <algorithm>

namespace lfm {
namespace {

constexpr int64_t kStripFloats = kMaxTaps;
constexpr int64_t kStripChannels = 256;

// Channels [first, first + count) of one batch row.
void RunStrip(const ShortConv& conv, int64_t row, int64_t first, int64_t count) {
  const int64_t hidden = conv.hidden, taps = conv.taps;
  const float* mask = conv.mask + row * conv.sequence;
  const float* past = conv.past + (row * hidden + first) * taps;
  const float* bcx = conv.bcx + row * conv.sequence * 3 * hidden + first;
  float* y = conv.y + row * conv.sequence * hidden + first;

  float ring[kStripFloats];  // column j of the window stands at ((oldest + j) % taps) * count
  float total[kStripChannels];
  int64_t oldest = 0;
  for (int64_t j = 0; j < taps; ++j) {
    for (int64_t c = 0; c < count; ++c) ring[j * count + c] = past[c * taps + j];
  }
  int64_t end = conv.sequence;  // the token after the row's last
  while (end > 0 && mask[end - 1] == 0) --end;
  bool started = false;
  for (int64_t t = 0; t < conv.sequence; ++t, bcx += 3 * hidden, y += hidden) {
    const bool is_token = mask[t] != 0;
    started = started || is_token;
    if (!started || t >= end) {
      std::fill_n(y, count, 0.0f);
      continue;
    }
    // The oldest column leaves, and the newest takes its place; a gap between tokens counts as 0.
    float* newest = ring + oldest * count;
    const float *b = bcx, *gate = bcx + hidden, *x = bcx + 2 * hidden;
    for (int64_t c = 0; c < count; ++c) newest[c] = is_token ? b[c] * x[c] : 0.0f;
    oldest = oldest + 1 == taps ? 0 : oldest + 1;
    for (int64_t j = 0, column = oldest; j < taps; ++j, column = column + 1 == taps ? 0 : column + 1) {
      const float* weight = conv.weight + j * hidden + first;
      const float* u = ring + column * count;
      if (j == 0) {
        for (int64_t c = 0; c < count; ++c) total[c] = weight[c] * u[c];
      } else {
        for (int64_t c = 0; c < count; ++c) total[c] += weight[c] * u[c];
      }
    }
    if (conv.bias != nullptr) {
      for (int64_t c = 0; c < count; ++c) total[c] += conv.bias[first + c];
    }
    for (int64_t c = 0; c < count; ++c) y[c] = gate[c] * total[c];
  }
  float* present = conv.present + (row * hidden + first) * taps;
  for (int64_t j = 0, column = oldest; j < taps; ++j, column = column + 1 == taps ? 0 : column + 1) {
    for (int64_t c = 0; c < count; ++c) present[c * taps + j] = ring[column * count + c];
  }
}

}  // namespace

void RunShortConv(const ShortConv& conv, Parallel& parallel) {
  if (conv.batch == 0 || conv.hidden == 0) return;
  const int64_t strip = std::clamp<int64_t>(kStripFloats / conv.taps, 1, kStripChannels);
  const int64_t strips = (conv.hidden + strip - 1) / strip;
  const auto run = [&](int64_t task) {
    const int64_t first = task % strips * strip;
    RunStrip(conv, task / strips, first, std::min(strip, conv.hidden - first));
  };
  // A token's strips take less time than waking the threads.
  constexpr int64_t kFewFloats = 32 * 1024;
  if (conv.batch * conv.sequence * conv.hidden <= kFewFloats) {
    for (int64_t task = 0; task < conv.batch * strips; ++task) run(task);
  } else {
    parallel.For(conv.batch * strips, run);
  }
}

}  // namespace lfm
