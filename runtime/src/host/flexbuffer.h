// Options: the integers of a custom operator's options, a flexbuffer map. The bytes may be invalid.
#ifndef BINARYVIT_HOST_FLEXBUFFER_H_
#define BINARYVIT_HOST_FLEXBUFFER_H_

#include <cstddef>
#include <cstdint>

namespace binaryvit {

class Options {
 public:
  // `data` must outlive this object.
  Options(const void* data, size_t size);

  // Whether the bytes hold a map at all.
  bool valid() const { return valid_; }

  // Finds the integer or boolean `name`. False if there is none, or if it has another type.
  bool GetInteger(const char* name, int64_t* value) const;

 private:
  bool ReadUnsigned(size_t position, size_t width, uint64_t* value) const;
  bool ReadTarget(size_t position, size_t width, size_t* target) const;
  bool KeyIs(size_t position, const char* name) const;

  const uint8_t* data_;
  size_t size_;
  bool valid_ = false;
  size_t values_ = 0;  // where the map's values begin; their types follow them
  size_t width_ = 0;   // bytes of a value
  size_t keys_ = 0;
  size_t key_width_ = 0;
  size_t count_ = 0;
};

}  // namespace binaryvit

#endif  // BINARYVIT_HOST_FLEXBUFFER_H_
