// What the lanes of a warp do together, atomics, and copies that are waited for later.
#include <string.h>

#include <bit>

#include "runtime.h"

namespace segops::simt {
namespace {

constexpr int kRowBytes = 16;  // of an 8 x 8 matrix of 16-bit elements

// The matrix elements that a lane brings to an mma, in the order of its registers: 16-bit operands have two in each, tf32
// ones one.
struct Elements {
  float a[8], b[4];
};

float float_of(uint16_t bits, Matrix matrix) {
  if (matrix == Matrix::bf16_16x8x16) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  return __half2float(std::bit_cast<__half>(bits));
}

void unpack(float* elements, const uint32_t* registers, int count, Matrix matrix) {
  for (int i = 0; i < count; ++i) {
    if (matrix == Matrix::tf32_16x8x8) {
      elements[i] = std::bit_cast<float>(registers[i] & 0xffffe000u);
    } else {
      elements[2 * i] = float_of(static_cast<uint16_t>(registers[i]), matrix);
      elements[2 * i + 1] = float_of(static_cast<uint16_t>(registers[i] >> 16), matrix);
    }
  }
}

template <class T, class Combine>
T atomically(const void* instruction, T* address, T value, Where where, Combine combine) {
  check_aligned(address, sizeof(T), where);
  yield();
  touch(instruction, address, sizeof(T), Access::atomic);
  const T old = *address;
  *address = combine(old, value);
  return old;
}

constexpr auto kAdd = [](auto a, auto b) { return a + b; };
constexpr auto kMax = [](auto a, auto b) { return a > b ? a : b; };

}  // namespace

int lane() { return machine.current % kLanes; }

void sync_warp(Where where) { exchange(nullptr, 0, "SYNC_WARP", where); }

void shuffle(void* value, size_t bytes, int source_lane, Where where) {
  const Exchange& e = exchange(value, bytes, "shuffle", where);
  if (source_lane >= 0 && source_lane < kLanes && (e.lanes >> source_lane & 1)) {
    memcpy(value, e.slot[source_lane], bytes);
  } else {
    memset(value, 0xff, bytes);
  }
}

uint32_t ballot(bool vote, Where where) {
  const Exchange& e = exchange(&vote, 1, "vote", where);
  uint32_t votes = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((e.lanes >> lane & 1) && e.slot[lane][0]) votes |= 1u << lane;
  }
  return votes;
}

void mma(float* d, const uint32_t* a, const uint32_t* b, Matrix matrix, Where where) {
  Elements mine{};
  unpack(mine.a, a, 4, matrix);
  unpack(mine.b, b, 2, matrix);
  const Exchange& e = exchange(&mine, sizeof mine, "mma", where);
  const auto brought = [&](int lane) -> const Elements& {
    static const Elements nothing = [] {
      Elements all_ones;
      memset(&all_ones, 0xff, sizeof all_ones);
      return all_ones;
    }();
    return e.lanes >> lane & 1 ? *reinterpret_cast<const Elements*>(e.slot[lane]) : nothing;
  };
  // In order of k: half of a lane's elements come from each half of k, and four lanes share each half.
  const int width = matrix == Matrix::tf32_16x8x8 ? 1 : 2;
  const int g = lane() / 4, t = lane() % 4;
  for (int half = 0; half < 2; ++half) {
    for (int quad = 0; quad < 4; ++quad) {
      const float* rows = brought(4 * g + quad).a + half * 2 * width;  // row g, then row g + 8
      const float* left = brought(4 * (2 * t) + quad).b + half * width;
      const float* right = brought(4 * (2 * t + 1) + quad).b + half * width;
      for (int i = 0; i < width; ++i) {
        d[0] += rows[i] * left[i];
        d[1] += rows[i] * right[i];
        d[2] += rows[width + i] * left[i];
        d[3] += rows[width + i] * right[i];
      }
    }
  }
}

void ldmatrix_x4(uint32_t* r, const void* shared_row, bool transposed, Where where) {
  check_aligned(shared_row, kRowBytes, where);
  touch(__builtin_return_address(0), shared_row, kRowBytes, Access::read);
  const SharedArray* array = shared_array_at(shared_row);
  if (array == nullptr || static_cast<const unsigned char*>(shared_row) + kRowBytes > array->data + array->bytes) {
    fail("ldmatrix at " + name_of(where) + " reads a row that is not in shared memory");
  }
  const Exchange& e = exchange(shared_row, kRowBytes, transposed ? "ldmatrix_trans" : "ldmatrix", where);
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const int row = transposed ? 2 * t + j : g, column = transposed ? g : 2 * t + j, source = 8 * i + row;
      if (e.lanes >> source & 1) {
        memcpy(&pair[j], e.slot[source] + 2 * column, 2);
      } else {
        pair[j] = 0xffff;
      }
    }
    r[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

unsigned atomic_add(unsigned* address, unsigned value, Where where) {
  return atomically(__builtin_return_address(0), address, value, where, kAdd);
}

unsigned long long atomic_add(unsigned long long* address, unsigned long long value, Where where) {
  return atomically(__builtin_return_address(0), address, value, where, kAdd);
}

unsigned atomic_max(unsigned* address, unsigned value, Where where) {
  return atomically(__builtin_return_address(0), address, value, where, kMax);
}

unsigned long long atomic_max(unsigned long long* address, unsigned long long value, Where where) {
  return atomically(__builtin_return_address(0), address, value, where, kMax);
}

void cp_async_16(void* shared, const void* global, Where where) {
  yield();
  check_aligned(shared, 16, where);
  check_aligned(global, 16, where);
  touch(__builtin_return_address(0), global, 16, Access::read_only);
  touch(__builtin_return_address(0), shared, 16, Access::write);
  const SharedArray* array = shared_array_at(shared);
  if (array == nullptr || static_cast<unsigned char*>(shared) + 16 > array->data + array->bytes) {
    fail("cp_async_16 at " + name_of(where) + " writes to an address that is not in shared memory");
  }
  Thread& thread = machine.thread[machine.current];
  memset(shared, 0xff, 16);
  thread.copies.push_back({shared, global, thread.groups});
}

void cp_async_commit() { ++machine.thread[machine.current].groups; }

void cp_async_wait(int groups) {
  yield();
  Thread& thread = machine.thread[machine.current];
  size_t done = 0;
  for (; done < thread.copies.size() && thread.copies[done].group < thread.groups - groups; ++done) {
    const AsyncCopy copy = thread.copies[done];
    touch(__builtin_return_address(0), copy.global, 16, Access::read_only, true);
    touch(__builtin_return_address(0), copy.shared, 16, Access::write, true);
    memcpy(copy.shared, copy.global, 16);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace segops::simt
