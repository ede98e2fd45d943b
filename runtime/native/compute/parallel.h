// Running independent tasks on somebody's threads: ONNX Runtime's pool in the library, any other in tests.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lfm {

class Parallel {
 public:
  // Calls body(0) .. body(tasks - 1), each once, in any order and on any thread, and returns when all are done.
  // Nothing may be thrown out of body.
  template <class Body>
  void For(int64_t tasks, const Body& body) {
    if (tasks <= 0) return;
    if (tasks == 1) {
      body(int64_t{0});
      return;
    }
    const auto call = [](void* user, size_t index) noexcept {
      (*static_cast<const Body*>(user))(static_cast<int64_t>(index));
    };
    Run(static_cast<size_t>(tasks), call, const_cast<void*>(static_cast<const void*>(&body)));
  }

 protected:
  ~Parallel() = default;
  virtual void Run(size_t tasks, void (*body)(void* user, size_t index), void* user) = 0;
};

}  // namespace lfm
