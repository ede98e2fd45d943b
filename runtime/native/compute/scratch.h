// Buffers for intermediate results, kept from call to call: no allocation in a steady state.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace lfm {

// A set of growing buffers for one running call.
class Scratch {
 public:
  enum Slot { kPackedInput, kPackedHidden, kHidden, kResults, kScores, kRouting, kChunks, kGroups, kSlots };

  // At least `count` uninitialized elements, 64-byte aligned, valid until the next Get of the same slot.
  template <class T>
  T* Get(Slot slot, int64_t count) {
    return static_cast<T*>(Reserve(slot, static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* bytes) const { ::operator delete(bytes, kAlignment); }
  };
  struct Buffer {
    std::unique_ptr<std::byte, Free> bytes;
    size_t size = 0;
  };

  void* Reserve(Slot slot, size_t bytes);

  std::array<Buffer, kSlots> buffers_;
};

// A Scratch of one's own until the end of the scope. Returned ones wait in a few slots of the whole process, so that
// all nodes of a model share one, and concurrent runs take one each, without a lock.
class ScratchLease {
 public:
  ScratchLease();
  ~ScratchLease();
  ScratchLease(const ScratchLease&) = delete;
  ScratchLease& operator=(const ScratchLease&) = delete;

  Scratch& operator*() const { return *scratch_; }
  Scratch* operator->() const { return scratch_.get(); }

 private:
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace lfm
