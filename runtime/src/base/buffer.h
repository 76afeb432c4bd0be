// Buffer: aligned memory. Allocation can fail, because sizes come from files, and this library has no exceptions.
#ifndef BINARYVIT_BASE_BUFFER_H_
#define BINARYVIT_BASE_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace binaryvit {

constexpr size_t kAlignment = 64;  // a cache line, and the widest vector

// A hundred times what real networks need. A wrong shape may ask for so much memory that the system kills the process
// instead of refusing.
constexpr size_t kMaxBufferBytes = size_t{1} << 28;

template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // Allocates `size` zeros and frees the old elements. False if there is no memory.
  [[nodiscard]] bool Resize(size_t size) {
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
    if (size > kMaxBufferBytes / sizeof(T)) return false;
    const size_t bytes = (size * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, bytes ? bytes : kAlignment) != 0) return false;
    std::memset(memory, 0, bytes);
    data_ = static_cast<T*>(memory);
    size_ = size;
    return true;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t index) { return data_[index]; }
  const T& operator[](size_t index) const { return data_[index]; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace binaryvit

#endif  // BINARYVIT_BASE_BUFFER_H_
