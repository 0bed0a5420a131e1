// Checks of every access: is the memory one that the kernel may touch, and is the access ordered with those of other
// threads?
//
// Order within a launch has a simple shape. Threads of a block are ordered by barriers, lanes of a warp also by warp
// operations, blocks not at all; launches are ordered. So "when" is a block's number, its count of barriers and the warp's
// count of operations, and what many threads have done to a byte sums up in one record: the latest of these, and whether it
// was one lane or several, one warp or several, one block or several.
#include "access.h"

#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "api.h"
#include "counts.h"
#include "places.h"
#include "runtime.h"

namespace segops::simt {
namespace {

constexpr uint8_t kSeveral = 0xff, kSeveralBlocks = 0xfe;

struct Record {
  uint32_t block;  // counted through all launches from 1
  uint32_t barrier, warp_epoch;
  uint8_t warp, lane;
  uint16_t site;
};

// What was last done to a byte.
struct Cell {
  Record read, write, atomic;
};

struct Buffer {
  size_t bytes;
  std::string name;
  bool writable;
};

struct Range {
  uintptr_t begin, end;
  bool holds(uintptr_t begin_of_access, size_t bytes) const {
    return begin_of_access >= begin && begin_of_access + bytes <= end;
  }
};

constexpr uintptr_t kPageBytes = 4096;
constexpr size_t kPagesKept = 512;

std::map<uintptr_t, Buffer> buffers;
std::unordered_map<uintptr_t, Cell*> pages;
std::vector<std::vector<Cell>> shared_cells;
uint32_t block_number = 0, first_block = 1;  // of the launch
std::vector<int64_t> blocks;                 // of the launch, in the order they ran

// Constants of the library that holds the kernels.
const std::vector<Range>& constants() {
  static const std::vector<Range> ranges = [] {
    std::vector<Range> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          std::vector<Range> of_module;
          bool is_own = false;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const ElfW(Phdr) & header = info->dlpi_phdr[i];
            const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
            const Range range{begin, begin + header.p_memsz};
            if (header.p_type == PT_LOAD && range.holds(reinterpret_cast<uintptr_t>(&builtins), 1)) is_own = true;
            const bool is_constant = header.p_type == PT_LOAD && !(header.p_flags & PF_W);
            if (is_constant || header.p_type == PT_GNU_RELRO) of_module.push_back(range);
          }
          if (is_own) *static_cast<std::vector<Range>*>(out) = of_module;
          return is_own ? 1 : 0;
        },
        &found);
    return found;
  }();
  return ranges;
}

const char* name_of(Access access) {
  switch (access) {
    case Access::read: return "read";
    case Access::read_only: return "read-only load";
    case Access::write: return "write";
    default: return "atomic";
  }
}

std::string place_of(int site) { return places_of({return_address_of(site)})[0]; }

std::string describe(Access access, size_t bytes, int site) {
  return std::string(name_of(access)) + " of " + std::to_string(bytes) + " bytes at " + place_of(site);
}

[[noreturn]] void fail_outside(uintptr_t address, size_t bytes, Access access, int site) {
  std::string text = describe(access, bytes, site) + " is outside every buffer and shared array";
  uintptr_t nearest = UINTPTR_MAX;
  const auto compare = [&](const std::string& name, uintptr_t begin, size_t size) {
    const uintptr_t end = begin + size;
    const uintptr_t distance = address < begin ? begin - address : address >= end ? address - end : 0;
    if (distance >= nearest) return;
    nearest = distance;
    const std::string side = address < begin ? " bytes before the start of " : " bytes past the end of ";
    const std::string where =
        address >= begin && address < end ? std::string("across the end of ") : std::to_string(distance) + side;
    text = describe(access, bytes, site) + " is out of bounds: " + where + name + " (" + std::to_string(size) + " bytes)";
  };
  for (const auto& [begin, buffer] : buffers) compare("buffer '" + buffer.name + "'", begin, buffer.bytes);
  for (const SharedArray& array : machine.shared) {
    compare("shared array '" + array.name + "'", reinterpret_cast<uintptr_t>(array.data), array.bytes);
  }
  fail(text);
}

[[noreturn]] void fail_race(const std::string& memory, size_t offset, Access access, size_t bytes, int site,
                            const char* earlier, const Record& other) {
  const bool several = other.warp == kSeveralBlocks || other.warp == kSeveral || other.lane == kSeveral;
  const std::string who =
      several ? "several threads, the last" : "thread " + std::to_string(other.warp * kLanes + other.lane);
  fail("data race on byte " + std::to_string(offset) + " of " + memory + ": " + describe(access, bytes, site) +
       " is not ordered after the " + earlier + " at " + place_of(other.site) + " by " + who + " of " +
       name_of_block(blocks[other.block - first_block]));
}

bool is_unordered(const Record& r, const Record& now, uint32_t since) {
  if (r.block < since) return false;
  if (r.block != now.block || r.warp == kSeveralBlocks) return true;
  if (r.barrier < now.barrier) return false;
  if (r.warp != now.warp) return true;
  return r.warp_epoch >= now.warp_epoch && r.lane != now.lane;
}

void add(Record& r, const Record& now, uint32_t since) {
  if (r.block >= since) {
    if (r.block != now.block || r.warp == kSeveralBlocks) {
      r = now;
      r.warp = kSeveralBlocks;
      return;
    }
    if (r.barrier == now.barrier) {
      if (r.warp != now.warp) {
        r = now;
        r.warp = kSeveral;
        return;
      }
      if (r.warp_epoch == now.warp_epoch && r.lane != now.lane) {
        r = now;
        r.lane = kSeveral;
        return;
      }
    }
  }
  r = now;
}

// Checks and records `bytes` bytes, whose cells lie in a row. Tells in `offset` where it failed.
const char* check(Cell* cells, size_t bytes, Access access, const Record& now, uint32_t since, size_t& offset,
                  Record& other) {
  for (size_t i = 0; i < bytes; ++i) {
    Cell& cell = cells[i];
    const bool reads = access == Access::read || access == Access::read_only;
    offset = i;
    other = cell.write;
    if (is_unordered(cell.write, now, since)) return "write";
    if (access == Access::read_only && cell.write.block >= since) return "write in the same launch";
    other = cell.atomic;
    if (access != Access::atomic && is_unordered(cell.atomic, now, since)) return "atomic";
    other = cell.read;
    if (!reads && is_unordered(cell.read, now, since)) return "read";
    if (reads) {
      add(cell.read, now, since);
    } else if (access == Access::write) {
      cell.write = now;
    } else {
      add(cell.atomic, now, since);
    }
  }
  return nullptr;
}

Cell* page_of(uintptr_t page) {
  static uintptr_t last_page = 0;
  static Cell* last = nullptr;
  if (pages.empty()) last = nullptr;
  if (last != nullptr && page == last_page) return last;
  Cell*& cells = pages[page];
  if (cells == nullptr) cells = static_cast<Cell*>(calloc(kPageBytes, sizeof(Cell)));
  if (cells == nullptr) abort();
  last_page = page;
  return last = cells;
}

Record now_at(int site) {
  const int t = machine.current, w = t / kLanes;
  return {block_number,
          machine.barrier_epoch,
          machine.warp[w].epoch,
          static_cast<uint8_t>(w),
          static_cast<uint8_t>(t % kLanes),
          static_cast<uint16_t>(site)};
}

void touch_shared(const SharedArray& array, uintptr_t address, size_t bytes, Access access, int site) {
  const size_t index = static_cast<size_t>(&array - machine.shared.data()),
               offset = address - reinterpret_cast<uintptr_t>(array.data);
  if (offset + bytes > array.bytes) fail_outside(address, bytes, access, site);
  if (index >= shared_cells.size()) shared_cells.resize(index + 1);
  if (shared_cells[index].empty()) shared_cells[index].resize(array.bytes);
  size_t at;
  Record other;
  // Another block's shared memory is other memory.
  const char* earlier = check(shared_cells[index].data() + offset, bytes, access, now_at(site), block_number, at, other);
  if (earlier != nullptr) fail_race("shared array '" + array.name + "'", offset + at, access, bytes, site, earlier, other);
}

// The buffer that holds the access, or null where nothing is registered.
const std::pair<const uintptr_t, Buffer>* buffer_of(uintptr_t address, size_t bytes, Access access, int site) {
  if (buffers.empty()) return nullptr;
  auto found = buffers.upper_bound(address);
  if (found == buffers.begin()) fail_outside(address, bytes, access, site);
  const auto& [begin, buffer] = *--found;
  if (address + bytes > begin + buffer.bytes) fail_outside(address, bytes, access, site);
  if ((access == Access::write || access == Access::atomic) && !buffer.writable) {
    fail(describe(access, bytes, site) + " goes to buffer '" + buffer.name + "', which is read-only");
  }
  return &*found;
}

void touch_global(uintptr_t address, size_t bytes, Access access, int site) {
  const auto* buffer = buffer_of(address, bytes, access, site);
  for (size_t done = 0; done < bytes;) {
    const uintptr_t place = address + done, offset = place % kPageBytes;
    const size_t part = std::min<size_t>(bytes - done, kPageBytes - offset);
    size_t at;
    Record other;
    const char* earlier = check(page_of(place / kPageBytes) + offset, part, access, now_at(site), first_block, at, other);
    if (earlier != nullptr) {
      const std::string memory =
          buffer != nullptr ? "buffer '" + buffer->second.name + "'" : "memory that is not registered";
      fail_race(memory, place + at - (buffer != nullptr ? buffer->first : 0), access, bytes, site, earlier, other);
    }
    done += part;
  }
}

// What is neither shared nor global: the thread's own variables, its parameters, built-in variables and constants.
bool is_private(uintptr_t address, size_t bytes, Access access) {
  const Fiber& fiber = machine.thread[machine.current].fiber;
  if (Range{reinterpret_cast<uintptr_t>(fiber.low()), reinterpret_cast<uintptr_t>(fiber.high())}.holds(address, bytes))
    return true;
  if (access != Access::read && access != Access::read_only) return false;
  const uintptr_t closure = reinterpret_cast<uintptr_t>(machine.call.closure),
                  built_in = reinterpret_cast<uintptr_t>(&builtins);
  if (Range{closure, closure + machine.call.closure_bytes}.holds(address, bytes)) return true;
  if (Range{built_in, built_in + sizeof builtins}.holds(address, bytes)) return true;
  return std::any_of(constants().begin(), constants().end(),
                     [&](const Range& range) { return range.holds(address, bytes); });
}

void check_global(const void* instruction, const void* address) {
  const SharedArray* array = machine.in_kernel ? shared_array_at(address) : nullptr;
  if (array == nullptr) return;
  fail("access to global memory at " + place_of(site_of(instruction)) + " goes to shared array '" + array->name + "'");
}

}  // namespace

void touch(const void* instruction, const void* pointer, size_t bytes, Access access, bool repeated) {
  if (!machine.in_kernel || bytes == 0) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (is_private(address, bytes, access)) return;
  yield();
  const int site = site_of(instruction);
  const SharedArray* array = shared_array_at(pointer);
  if (array != nullptr) {
    touch_shared(*array, address, bytes, access, site);
  } else {
    touch_global(address, bytes, access, site);
  }
  if (repeated) return;
  // What is larger than a register goes in as many accesses as its alignment asks for.
  size_t piece = 16;
  while (address % piece != 0 || bytes % piece != 0) piece /= 2;
  for (size_t done = 0; done < bytes; done += piece) {
    count_access(site, array != nullptr ? Space::shared : Space::global, access, static_cast<const char*>(pointer) + done,
                 piece);
  }
}

void load_bytes(void* value, const void* address, size_t bytes) {
  check_global(__builtin_return_address(0), address);
  touch(__builtin_return_address(0), address, bytes, Access::read_only);
  memcpy(value, address, bytes);
}

void store_bytes(void* address, const void* value, size_t bytes) {
  check_global(__builtin_return_address(0), address);
  touch(__builtin_return_address(0), address, bytes, Access::write);
  memcpy(address, value, bytes);
}

void copy_bytes(void* to, const void* from, size_t bytes) {
  touch(__builtin_return_address(0), from, bytes, Access::read);
  touch(__builtin_return_address(0), to, bytes, Access::write);
  memcpy(to, from, bytes);
}

void fill_bytes(void* to, int value, size_t bytes) {
  touch(__builtin_return_address(0), to, bytes, Access::write);
  memset(to, value, bytes);
}

void access_launch_starts() {
  first_block = block_number + 1;
  blocks.clear();
  shared_cells.clear();
  counts_launch_starts();
}

void access_block_starts() {
  ++block_number;
  blocks.push_back(machine.block);
}

void access_warp_met(int warp) { counts_warp_met(warp); }

void access_block_met() {
  for (size_t w = 0; w < machine.warp.size(); ++w) counts_warp_met(static_cast<int>(w));
}

void access_block_ends() { access_block_met(); }

void access_launch_ends() {
  if (pages.size() <= kPagesKept) return;
  for (const auto& [page, cells] : pages) free(cells);
  pages.clear();
}

}  // namespace segops::simt

using segops::simt::Access;
using segops::simt::touch;

namespace {

void aligned(const void* from, const void* address, size_t bytes, Access access) {
  // In a thread's own memory it means nothing: there a structure of 16 bytes may be copied as one.
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  if (at % bytes != 0 && segops::simt::machine.in_kernel && !segops::simt::is_private(at, bytes, access)) {
    segops::simt::fail("address of a " + segops::simt::describe(access, bytes, segops::simt::site_of(from)) +
                       " is no multiple of that size");
  }
  touch(from, address, bytes, access);
}

}  // namespace

// The names by which -fsanitize=thread calls.
#define ACCESSES(bytes)                                                                                      \
  void __tsan_read##bytes(void* p) { aligned(__builtin_return_address(0), p, bytes, Access::read); }         \
  void __tsan_write##bytes(void* p) { aligned(__builtin_return_address(0), p, bytes, Access::write); }       \
  void __tsan_unaligned_read##bytes(void* p) { touch(__builtin_return_address(0), p, bytes, Access::read); } \
  void __tsan_unaligned_write##bytes(void* p) { touch(__builtin_return_address(0), p, bytes, Access::write); }

extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { touch(__builtin_return_address(0), p, bytes, Access::read); }
void __tsan_write_range(void* p, size_t bytes) { touch(__builtin_return_address(0), p, bytes, Access::write); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
// The guards of a launcher's static variables.
char __tsan_atomic8_load(const volatile char* p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }

const char* simt_variant() { return "race"; }

void simt_register_buffer(const void* data, size_t bytes, const char* name, int writable) {
  const std::lock_guard lock(segops::simt::launch_mutex());
  segops::simt::buffers[reinterpret_cast<uintptr_t>(data)] = {bytes, name, writable != 0};
}

void simt_unregister_buffer(const void* data) {
  const std::lock_guard lock(segops::simt::launch_mutex());
  segops::simt::buffers.erase(reinterpret_cast<uintptr_t>(data));
}
}
