// Texts that several libraries must say with the same words.
#pragma once
#include <bit>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "segops/types.h"

namespace segops {

// A flat position as that of a tensor of this shape: "[0, 7, 12]".
inline std::string describe_position(int64_t position, const std::vector<int64_t>& shape) {
  std::vector<int64_t> index(shape.size());
  for (size_t i = shape.size(); i-- > 0;) {
    const int64_t extent = shape[i] > 0 ? shape[i] : 1;
    index[i] = position % extent;
    position /= extent;
  }
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < index.size(); ++i) text << (i ? ", " : "") << index[i];
  text << "]";
  return text.str();
}

// "segops.<op>: target has 3 labels outside [0, 19) that are not ignore_index (255); the first is 42 at [0, 7, 12]"
inline std::string describe_labels(const std::string& op, const BadData& bad, const std::vector<int64_t>& shape,
                                   const std::string& range, const std::string& value, std::optional<int64_t> ignore_index,
                                   const std::string& name) {
  std::ostringstream text;
  text << "segops." << op << ": " << name << " has " << bad.count << (bad.count == 1 ? " label" : " labels") << " outside "
       << range;
  if (ignore_index) text << " that " << (bad.count == 1 ? "is" : "are") << " not ignore_index (" << *ignore_index << ")";
  text << "; the first is " << value << " at " << describe_position(bad.position, shape);
  return text.str();
}

// Class indices.
inline std::string describe_bad_labels(const std::string& op, const BadData& bad, const std::vector<int64_t>& shape,
                                       int64_t classes, std::optional<int64_t> ignore_index,
                                       const std::string& name = "target") {
  return describe_labels(op, bad, shape, "[0, " + std::to_string(classes) + ")", std::to_string(bad.value), ignore_index,
                         name);
}

// Labels of two classes: 0 and 1, or `soft` ones between them, whose value is recorded as the bits of a double.
inline std::string describe_bad_probabilities(const std::string& op, const BadData& bad, const std::vector<int64_t>& shape,
                                              bool soft, std::optional<int64_t> ignore_index,
                                              const std::string& name = "target") {
  std::ostringstream value;
  if (soft)
    value << std::bit_cast<double>(bad.value);
  else
    value << bad.value;
  return describe_labels(op, bad, shape, soft ? "[0, 1]" : "{0, 1}", value.str(), ignore_index, name);
}

// "segops.<op>: 2 indices are outside their window of 3 x 3, [0, 9), or the output of 7 x 9; the first is 9 at [n, c, y, x]
// = [0, 1, 2, 3]". Without a window (a kernel of 0 x 0) the indices are flat ones, and the range of those in the output is
// told.
inline std::string describe_bad_indices(const std::string& op, const BadData& bad, const std::vector<int64_t>& shape,
                                        int64_t height, int64_t width, int64_t kernel_h, int64_t kernel_w) {
  std::ostringstream text;
  const bool one = bad.count == 1;
  text << "segops." << op << ": " << bad.count << (one ? " index is" : " indices are") << " outside ";
  if (kernel_h > 0)
    text << (one ? "its" : "their") << " window of " << kernel_h << " x " << kernel_w << ", [0, " << kernel_h * kernel_w
         << "), or the output of " << height << " x " << width;
  else
    text << "the output of " << height << " x " << width << ", [0, " << height * width << ")";
  text << "; the first is " << bad.value << " at " << (shape.size() == 4 ? "[n, c, y, x] = " : "")
       << describe_position(bad.position, shape);
  return text.str();
}

}  // namespace segops
