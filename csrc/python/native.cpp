// segops._native: what operator schemas cannot carry: how the library was built, and texts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "count.h"
#include "isa.h"
#include "segops/messages.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.def("cpu_isa", [] { return std::string(segops::isa_name(segops::isa())); }, "Level of the CPU kernels in use.");
  m.def(
      "cpu_isas",
      [] {
        std::vector<std::string> names;
        for (auto level : {segops::Isa::baseline, segops::Isa::x86_64_v3, segops::Isa::x86_64_v4})
          if (segops::isa_supported(level)) names.emplace_back(segops::isa_name(level));
        return names;
      },
      "Levels this processor can run.");
  m.def(
      "describe_bad_labels",
      [](const std::string& op, int64_t count, int64_t position, int64_t value, const std::vector<int64_t>& shape,
         int64_t classes, std::optional<int64_t> ignore_index, const std::string& name) {
        return segops::describe_bad_labels(op, {count, position, value}, shape, classes, ignore_index, name);
      },
      py::arg("op"), py::arg("count"), py::arg("position"), py::arg("value"), py::arg("shape"), py::arg("classes"),
      py::arg("ignore_index"), py::arg("name") = "target");
  m.def(
      "describe_bad_probabilities",
      [](const std::string& op, int64_t count, int64_t position, int64_t value, const std::vector<int64_t>& shape, bool soft,
         std::optional<int64_t> ignore_index, const std::string& name) {
        return segops::describe_bad_probabilities(op, {count, position, value}, shape, soft, ignore_index, name);
      },
      py::arg("op"), py::arg("count"), py::arg("position"), py::arg("value"), py::arg("shape"), py::arg("soft"),
      py::arg("ignore_index"), py::arg("name") = "target");
  m.def(
      "describe_bad_indices",
      [](const std::string& op, int64_t count, int64_t position, int64_t value, const std::vector<int64_t>& shape,
         int64_t height, int64_t width, int64_t kernel_h, int64_t kernel_w) {
        return segops::describe_bad_indices(op, {count, position, value}, shape, height, width, kernel_h, kernel_w);
      },
      py::arg("op"), py::arg("count"), py::arg("position"), py::arg("value"), py::arg("shape"), py::arg("height"),
      py::arg("width"), py::arg("kernel_h"), py::arg("kernel_w"));
  m.def("count_bad_data", &segops::count_bad_data, py::arg("elements"), "Add to the count of bad labels and indices.");
  m.def("take_bad_data_count", &segops::take_bad_data_count, "The count since the last call.");
  m.attr("compiler") = SEGOPS_COMPILER;
  m.attr("torch_built_with") = SEGOPS_TORCH_VERSION;
}
