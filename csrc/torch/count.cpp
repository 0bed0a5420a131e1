#include "count.h"

#include <atomic>

namespace segops {

static std::atomic<int64_t> bad_data{0};

void count_bad_data(int64_t elements) { bad_data += elements; }
int64_t take_bad_data_count() { return bad_data.exchange(0); }

}  // namespace segops
