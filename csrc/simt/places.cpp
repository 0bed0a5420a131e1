#include "places.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include <map>

namespace segops::simt {
namespace {

bool is_wrapper(const std::string& place) {
  for (const char* part : {"csrc/simt/", "/../simt/", "/device.cuh:", "/mma.cuh:", "/include/c++/"}) {
    if (place.find(part) != std::string::npos) return true;
  }
  return false;
}

// Lines of addr2line -a -i: an address, then the line of the innermost inlined function, then those of its callers.
void read_places(FILE* lines, const std::vector<size_t>& wanted, std::vector<std::string>& places) {
  char text[4096];
  size_t count = 0;
  bool found = false;
  while (fgets(text, sizeof text, lines) != nullptr) {
    std::string line(text);
    line.erase(line.find_last_not_of(" \n") + 1);
    if (line.rfind("0x", 0) == 0) {
      ++count;
      found = false;
      continue;
    }
    line = line.substr(0, line.find(" ("));
    if (found || count == 0 || count > wanted.size() || line[0] == '?' || is_wrapper(line)) continue;
    places[wanted[count - 1]] = line;
    found = true;
  }
}

}  // namespace

std::vector<std::string> places_of(const std::vector<const void*>& return_addresses) {
  std::vector<std::string> places(return_addresses.size());
  std::map<std::string, std::pair<std::string, std::vector<size_t>>> modules;  // file -> addresses, whose they are
  for (size_t i = 0; i < return_addresses.size(); ++i) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(return_addresses[i]) - 1;  // inside the call
    Dl_info info{};
    if (dladdr(return_addresses[i], &info) == 0 || info.dli_fname == nullptr) continue;
    const auto* header = static_cast<const ElfW(Ehdr)*>(info.dli_fbase);
    const uintptr_t offset = header->e_type == ET_DYN ? address - reinterpret_cast<uintptr_t>(info.dli_fbase) : address;
    char hex[32];
    snprintf(hex, sizeof hex, "0x%zx", static_cast<size_t>(offset));
    places[i] = std::string(info.dli_fname) + "+" + hex;
    // A program's own name may be relative to where it was started.
    auto& [addresses, wanted] = modules[access(info.dli_fname, R_OK) == 0 ? info.dli_fname : "/proc/self/exe"];
    addresses += std::string(" ") + hex;
    wanted.push_back(i);
  }
  for (const auto& [file, addresses] : modules) {
    if (file.find('\'') != std::string::npos) continue;
    // The shell's parent is this process, and /proc/self would be the shell.
    char program[4096];
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    const std::string path =
        file != "/proc/self/exe" || length < 0 ? file : std::string(program, static_cast<size_t>(length));
    FILE* lines = popen(("addr2line -a -i -e '" + path + "'" + addresses.first + " 2>/dev/null").c_str(), "r");
    if (lines == nullptr) continue;
    read_places(lines, addresses.second, places);
    pclose(lines);
  }
  return places;
}

}  // namespace segops::simt
