// A flexbuffer ends with its root value, that value's type and its width. A map consists of the distance back to
// its vector of keys, the width of those, the number of entries (here the map's own position points), the values, and a
// byte for the type of each. Distances count backwards from their own position.
#include "host/flexbuffer.h"

#include <cstring>

namespace binaryvit {
namespace {

enum FlexType : uint8_t { kInteger = 1, kUnsigned = 2, kMap = 9, kBoolean = 26 };

bool IsWidth(size_t width) { return width == 1 || width == 2 || width == 4 || width == 8; }

}  // namespace

bool Options::ReadUnsigned(size_t position, size_t width, uint64_t* value) const {
  if (position > size_ || width > size_ - position) return false;
  *value = 0;
  std::memcpy(value, data_ + position, width);  // little-endian, as every host of LiteRT
  return true;
}

bool Options::ReadTarget(size_t position, size_t width, size_t* target) const {
  uint64_t distance;
  if (!ReadUnsigned(position, width, &distance) || distance > position) return false;
  *target = position - static_cast<size_t>(distance);
  return true;
}

Options::Options(const void* data, size_t size) : data_(static_cast<const uint8_t*>(data)), size_(data ? size : 0) {
  if (size_ < 3) return;
  const size_t root_width = data_[size_ - 1];
  const uint8_t root_type = data_[size_ - 2];
  if (!IsWidth(root_width) || root_width > size_ - 2 || root_type >> 2 != kMap) return;
  width_ = size_t{1} << (root_type & 3);
  if (!ReadTarget(size_ - 2 - root_width, root_width, &values_) || values_ < 3 * width_) return;

  uint64_t key_width, count, key_count;
  if (!ReadTarget(values_ - 3 * width_, width_, &keys_)) return;
  if (!ReadUnsigned(values_ - 2 * width_, width_, &key_width) || !IsWidth(key_width)) return;
  if (!ReadUnsigned(values_ - width_, width_, &count) || count > (size_ - values_) / (width_ + 1)) return;
  key_width_ = static_cast<size_t>(key_width);
  count_ = static_cast<size_t>(count);
  if (keys_ < key_width_ || !ReadUnsigned(keys_ - key_width_, key_width_, &key_count) || key_count != count) return;
  valid_ = count <= (size_ - keys_) / key_width_;
}

bool Options::KeyIs(size_t position, const char* name) const {
  const size_t length = std::strlen(name) + 1;  // with the zero at its end
  return length <= size_ - position && std::memcmp(data_ + position, name, length) == 0;
}

bool Options::GetInteger(const char* name, int64_t* value) const {
  if (!valid_) return false;
  for (size_t i = 0; i < count_; ++i) {
    size_t key;
    if (!ReadTarget(keys_ + i * key_width_, key_width_, &key) || !KeyIs(key, name)) continue;
    uint64_t bits;
    if (!ReadUnsigned(values_ + i * width_, width_, &bits)) return false;
    const uint8_t type = data_[values_ + count_ * width_ + i] >> 2;
    if (type == kInteger && width_ < 8) {
      const int shift = 64 - 8 * static_cast<int>(width_);
      *value = static_cast<int64_t>(bits << shift) >> shift;  // extends the sign
    } else if (type == kInteger || type == kBoolean || (type == kUnsigned && bits <= INT64_MAX)) {
      *value = static_cast<int64_t>(bits);
    } else {
      return false;
    }
    return true;
  }
  return false;
}

}  // namespace binaryvit
