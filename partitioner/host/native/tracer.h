// The event tracer of a delegate call, as Python sees it.
#pragma once

#include <executorch/runtime/core/event_tracer.h>

#include "values.h"

namespace coreml_host {

// The event tracer of a running call, for as long as the call lasts. What is logged through it appears
// in an ETDump as delegate events.
class Tracer {
 public:
  explicit Tracer(et::EventTracer* tracer) : tracer_(tracer) {}

  void close() {
    tracer_ = nullptr;
  }

  bool wants_outputs() const {
    return tracer_ != nullptr &&
        tracer_->event_tracer_debug_level() == et::EventTracerDebugLogLevel::kIntermediateOutputs;
  }

  uint64_t now() const {
    return et::pal_current_ticks();
  }

  void log_time(const std::string& name, uint64_t start, uint64_t end) {
    if (tracer_ != nullptr) {
      tracer_->log_profiling_delegate(name.c_str(), et::kUnsetDelegateDebugIntId, start, end, nullptr, 0);
    }
  }

  // `values` is contiguous, of one of the types that tensors of the runtime have.
  void log_output(const std::string& name, nb::ndarray<nb::ro, nb::device::cpu, nb::c_contig> values) {
    if (tracer_ == nullptr) {
      return;
    }
    std::vector<SizesType> sizes;
    std::vector<executorch::aten::DimOrderType> order;
    std::vector<executorch::aten::StridesType> strides;
    for (size_t axis = 0; axis < values.ndim(); ++axis) {
      sizes.push_back(static_cast<SizesType>(values.shape(axis)));
      order.push_back(static_cast<executorch::aten::DimOrderType>(axis));
      strides.push_back(static_cast<executorch::aten::StridesType>(values.stride(axis)));
    }
    executorch::aten::TensorImpl impl(
        scalar_type_of(values.dtype()),
        static_cast<ssize_t>(values.ndim()),
        sizes.data(),
        const_cast<void*>(values.data()),
        order.data(),
        strides.data());
    const auto logged =
        tracer_->log_intermediate_output_delegate(name.c_str(), et::kUnsetDelegateDebugIntId, Tensor(&impl));
    if (!logged.ok()) {
      throw std::runtime_error(std::string("the value of ") + name + " could not be logged");
    }
  }

 private:
  static ScalarType scalar_type_of(nb::dlpack::dtype dtype) {
    if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Int) && dtype.bits == 8) {
      return ScalarType::Char;
    }
    for (const ElementType& type : kElementTypes) {
      if (static_cast<uint8_t>(type.code) == dtype.code && type.bits == dtype.bits) {
        return type.scalar_type;
      }
    }
    throw std::invalid_argument("a value of this type cannot be logged");
  }

  et::EventTracer* tracer_;
};

}  // namespace coreml_host
