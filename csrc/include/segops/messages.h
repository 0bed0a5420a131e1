// Texts that several libraries must say with the same words.
#pragma once
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "segops/types.h"

namespace segops {

// "segops.<op>: target has 3 labels outside [0, 19) that are not ignore_index (255); the first is 42 at [0, 7, 12]"
inline std::string describe_bad_labels(const std::string& op, const BadData& bad, const std::vector<int64_t>& shape,
                                       int64_t classes, std::optional<int64_t> ignore_index,
                                       const std::string& name = "target") {
  std::vector<int64_t> index(shape.size());
  int64_t rest = bad.position;
  for (size_t i = shape.size(); i-- > 0;) {
    const int64_t extent = shape[i] > 0 ? shape[i] : 1;
    index[i] = rest % extent;
    rest /= extent;
  }
  std::ostringstream text;
  text << "segops." << op << ": " << name << " has " << bad.count << (bad.count == 1 ? " label" : " labels")
       << " outside [0, " << classes << ")";
  if (ignore_index) text << " that " << (bad.count == 1 ? "is" : "are") << " not ignore_index (" << *ignore_index << ")";
  text << "; the first is " << bad.value << " at [";
  for (size_t i = 0; i < index.size(); ++i) text << (i ? ", " : "") << index[i];
  text << "]";
  return text.str();
}

}  // namespace segops
