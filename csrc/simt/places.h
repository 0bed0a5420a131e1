// Source lines of instructions, from the debug information (-g1 is enough) through addr2line where it is installed.
#pragma once
#include <string>
#include <vector>

namespace segops::simt {

// For each return address "file:line" of the kernel's own line, not that of a wrapper inlined into it; or "library+0x...".
std::vector<std::string> places_of(const std::vector<const void*>& return_addresses);

}  // namespace segops::simt
