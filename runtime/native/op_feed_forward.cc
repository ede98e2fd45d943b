// Reads the inputs of a feed-forward op.
#include "op_feed_forward.h"

namespace lfm {

FeedForward ReadFeedForward(const OpInputs& inputs, const KernelTable& kernels, const WeightFormat& format,
                            const FeedForwardInputs& at, int64_t stack, int64_t gate_up_rows, int64_t hidden) {
  const Weights gate_up = FindWeights(inputs, format, at.gate_up, stack, gate_up_rows, hidden);
  if (gate_up.row_count % 2) inputs.FailInput(at.gate_up.data, "expected an even number of rows: gate and up in turn");
  const int64_t width = gate_up.row_count / 2, columns = gate_up.rows.columns;
  const Weights down = FindWeights(inputs, format, at.down, stack, columns, width);
  return {kernels, gate_up.rows, down.rows, columns, width, format.activation};
}

Tensor RequireActivations(const OpInputs& inputs, size_t index, int64_t size) {
  const Tensor x = inputs.Require(index);
  if (x.shape.rank == 0 || x.shape.Last() != size) {
    inputs.FailInput(index, "expected a last axis of " + std::to_string(size) + ", found shape " + x.shape.Text());
  }
  return x;
}

}  // namespace lfm
