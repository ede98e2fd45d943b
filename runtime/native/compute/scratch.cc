// The process's idle scratch buffers.
#include "scratch.h"

#include <atomic>

namespace lfm {
namespace {

class IdleScratch {
 public:
  ~IdleScratch() {
    for (auto& slot : slots_) delete slot.exchange(nullptr);
  }

  std::unique_ptr<Scratch> Take() {
    for (auto& slot : slots_) {
      Scratch* scratch = slot.exchange(nullptr, std::memory_order_acquire);
      if (scratch != nullptr) return std::unique_ptr<Scratch>(scratch);
    }
    return std::make_unique<Scratch>();
  }

  // More than there are slots are freed: a burst of concurrent runs does not hold its memory for good.
  void Return(std::unique_ptr<Scratch> scratch) {
    for (auto& slot : slots_) {
      Scratch* empty = nullptr;
      if (slot.compare_exchange_strong(empty, scratch.get(), std::memory_order_release, std::memory_order_relaxed)) {
        static_cast<void>(scratch.release());  // the slot owns it now
        return;
      }
    }
  }

 private:
  std::array<std::atomic<Scratch*>, 4> slots_{};
};

IdleScratch& Idle() {
  static IdleScratch idle;
  return idle;
}

}  // namespace

void* Scratch::Reserve(Slot slot, size_t bytes) {
  constexpr size_t kGranule = 4096;
  Buffer& buffer = buffers_[slot];
  if (buffer.size < bytes) {
    buffer.bytes.reset();
    buffer.size = 0;
    const size_t rounded = (bytes + kGranule - 1) / kGranule * kGranule;
    buffer.bytes.reset(static_cast<std::byte*>(::operator new(rounded, kAlignment)));
    buffer.size = rounded;
  }
  return buffer.bytes.get();
}

ScratchLease::ScratchLease() : scratch_(Idle().Take()) {}

ScratchLease::~ScratchLease() { Idle().Return(std::move(scratch_)); }

}  // namespace lfm
