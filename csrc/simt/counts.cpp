#include "counts.h"

#include <string.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "api.h"
#include "places.h"
#include "runtime.h"

namespace segops::simt {
namespace {

constexpr uintptr_t kSectorBytes = 32, kWordBytes = 4, kBanks = 32;

struct Counts {
  int64_t requests = 0, bytes = 0;
  int64_t sectors = 0;                    // global: of 32 bytes, in each request
  int64_t wavefronts = 0, conflicts = 0;  // shared: and how many more than without bank conflicts
};

// What one instruction does to one kind of memory; a copy reads and writes.
struct Use {
  int site;
  Space space;
  Access access;
  auto operator<=>(const Use&) const = default;
};

constexpr size_t kUsesOfSite = 8;

size_t index_of(Use use) {
  return kUsesOfSite * static_cast<size_t>(use.site) + 4 * static_cast<size_t>(use.space) + static_cast<size_t>(use.access);
}

struct KernelCounts {
  int64_t launches = 0;
  std::map<Use, Counts> uses;
};

// Accesses of a warp in one use since it last met.
struct Log {
  Use use{};
  size_t bytes = 0;
  std::array<std::vector<uintptr_t>, kLanes> addresses;
};

struct WarpLogs {
  std::vector<std::unique_ptr<Log>> logs;  // by index_of
  std::vector<size_t> used;
};

std::map<std::pair<std::string, std::string>, KernelCounts> kernels;  // by kernel and launcher
KernelCounts* current_kernel = nullptr;
std::vector<WarpLogs> warps;

std::unordered_map<const void*, int> sites;
std::vector<const void*> return_addresses;

int64_t distinct(uintptr_t* values, int count) {
  std::sort(values, values + count);
  return std::unique(values, values + count) - values;
}

void count_global(Counts& counts, const Log& log, const uintptr_t* address) {
  uintptr_t sectors[2 * kLanes];
  int n = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (address[lane] == 0) continue;
    sectors[n++] = address[lane] / kSectorBytes;
    sectors[n++] = (address[lane] + log.bytes - 1) / kSectorBytes;
  }
  counts.sectors += distinct(sectors, n);
}

// 32 banks of four-byte words, each of which serves one word at a time, to all lanes that ask for it. Accesses of 8 and 16
// bytes are served by half and quarter warps.
void count_shared(Counts& counts, const Log& log, const uintptr_t* address) {
  const int words = static_cast<int>(std::max<size_t>(log.bytes / kWordBytes, 1)), lanes = kLanes / words;
  for (int first = 0; first < kLanes; first += lanes) {
    uintptr_t asked[kLanes];
    int n = 0;
    for (int lane = first; lane < first + lanes; ++lane) {
      for (int i = 0; i < words && address[lane] != 0; ++i) asked[n++] = address[lane] / kWordBytes + i;
    }
    if (n == 0) continue;
    const int64_t different = distinct(asked, n);
    int of_bank[kBanks] = {};
    for (int64_t i = 0; i < different; ++i) ++of_bank[asked[i] % kBanks];
    const int wavefronts = *std::max_element(of_bank, of_bank + kBanks);
    counts.wavefronts += wavefronts;
    counts.conflicts += wavefronts - 1;
  }
}

void close(const Log& log, Counts& counts) {
  size_t requests = 0;
  for (const auto& addresses : log.addresses) requests = std::max(requests, addresses.size());
  for (size_t n = 0; n < requests; ++n) {
    uintptr_t address[kLanes] = {};  // 0: the lane takes no part
    for (int lane = 0; lane < kLanes; ++lane) {
      if (n >= log.addresses[lane].size()) continue;
      address[lane] = log.addresses[lane][n];
      counts.bytes += static_cast<int64_t>(log.bytes);
    }
    ++counts.requests;
    if (log.use.access == Access::atomic) continue;
    log.use.space == Space::global ? count_global(counts, log, address) : count_shared(counts, log, address);
  }
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

const char* name_of(Access access) {
  return access == Access::write ? "write" : access == Access::atomic ? "atomic" : "read";
}

std::string to_json(const Counts& counts, Space space, Access access) {
  std::string text = "\"requests\": " + std::to_string(counts.requests) + ", \"bytes\": " + std::to_string(counts.bytes);
  if (access == Access::atomic) return text;
  if (space == Space::global) return text + ", \"sectors\": " + std::to_string(counts.sectors);
  return text + ", \"wavefronts\": " + std::to_string(counts.wavefronts) +
         ", \"conflicts\": " + std::to_string(counts.conflicts);
}

std::string to_json(const KernelCounts& kernel, const std::vector<std::string>& places) {
  std::string totals, of_sites;
  for (const Space space : {Space::global, Space::shared}) {
    const std::string memory = space == Space::global ? "global" : "shared";
    for (const Access access : {Access::read, Access::write, Access::atomic}) {
      Counts total;
      for (const auto& [use, counts] : kernel.uses) {
        if (use.space != space || use.access != access) continue;
        total.requests += counts.requests;
        total.bytes += counts.bytes;
        total.sectors += counts.sectors;
        total.wavefronts += counts.wavefronts;
        total.conflicts += counts.conflicts;
        of_sites += std::string(of_sites.empty() ? "" : ",\n    ") + "{\"place\": " + quoted(places[use.site]) +
                    ", \"memory\": \"" + memory + "\", \"access\": \"" + name_of(access) + "\", " +
                    to_json(counts, space, access) + "}";
      }
      totals += ",\n   \"" + memory + "_" + name_of(access) + "\": {" + to_json(total, space, access) + "}";
    }
  }
  return "\"launches\": " + std::to_string(kernel.launches) + totals + ",\n   \"sites\": [" + of_sites + "]";
}

std::string to_json() {
  const std::vector<std::string> places = places_of(return_addresses);
  std::string text = "[";
  for (const auto& [name, kernel] : kernels) {
    text += std::string(text.size() > 1 ? ",\n " : "") + "{\"kernel\": " + quoted(name.first) +
            ", \"launcher\": " + quoted(name.second) + ", " + to_json(kernel, places) + "}";
  }
  return text + "]\n";
}

}  // namespace

int site_of(const void* return_address) {
  const auto [found, is_new] = sites.try_emplace(return_address, static_cast<int>(return_addresses.size()));
  if (is_new) return_addresses.push_back(return_address);
  return found->second;
}

const void* return_address_of(int site) { return return_addresses[site]; }

void counts_launch_starts() {
  current_kernel = &kernels[{machine.kernel, machine.call.launcher}];
  ++current_kernel->launches;
  warps.resize(std::max(warps.size(), machine.warp.size()));
  for (WarpLogs& warp : warps) {  // a launch that failed leaves open requests
    for (const size_t i : warp.used) {
      warp.logs[i]->bytes = 0;
      for (auto& addresses : warp.logs[i]->addresses) addresses.clear();
    }
    warp.used.clear();
  }
}

void count_access(int site, Space space, Access access, const void* address, size_t bytes) {
  WarpLogs& warp = warps[machine.current / kLanes];
  const Use use{site, space, access == Access::read_only ? Access::read : access};
  const size_t i = index_of(use);
  if (i >= warp.logs.size()) warp.logs.resize(i + kUsesOfSite);
  if (!warp.logs[i]) warp.logs[i] = std::make_unique<Log>();
  Log& log = *warp.logs[i];
  if (log.bytes == 0) {
    warp.used.push_back(i);
    log.use = use;
    log.bytes = bytes;
  }
  log.addresses[machine.current % kLanes].push_back(reinterpret_cast<uintptr_t>(address));
}

void counts_warp_met(int w) {
  WarpLogs& warp = warps[w];
  for (const size_t i : warp.used) {
    Log& log = *warp.logs[i];
    close(log, current_kernel->uses[log.use]);
    log.bytes = 0;
    for (auto& addresses : log.addresses) addresses.clear();
  }
  warp.used.clear();
}

}  // namespace segops::simt

extern "C" {

void simt_reset_counters() {
  const std::lock_guard lock(segops::simt::launch_mutex());
  segops::simt::kernels.clear();
}

size_t simt_counters(char* text, size_t capacity) {
  const std::lock_guard lock(segops::simt::launch_mutex());
  const std::string json = segops::simt::to_json();
  if (capacity > 0) {
    const size_t length = std::min(json.size(), capacity - 1);
    memcpy(text, json.data(), length);
    text[length] = 0;
  }
  return json.size();
}
}
