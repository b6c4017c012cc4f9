// What a delegate call hands to Python: tensors and named data of the runtime, valid until the call ends.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>

namespace coreml_host {

namespace nb = nanobind;
namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;

// What the Core ML delegate on a device takes; int8 and bfloat16 are not among them.
struct ElementType {
  ScalarType scalar_type;
  const char* name;
  nb::dlpack::dtype_code code;
  uint8_t bits;
};

constexpr ElementType kElementTypes[] = {
    {ScalarType::Bool, "bool", nb::dlpack::dtype_code::Bool, 8},
    {ScalarType::Byte, "uint8", nb::dlpack::dtype_code::UInt, 8},
    {ScalarType::Short, "int16", nb::dlpack::dtype_code::Int, 16},
    {ScalarType::Int, "int32", nb::dlpack::dtype_code::Int, 32},
    {ScalarType::Long, "int64", nb::dlpack::dtype_code::Int, 64},
    {ScalarType::Half, "float16", nb::dlpack::dtype_code::Float, 16},
    {ScalarType::Float, "float32", nb::dlpack::dtype_code::Float, 32},
    {ScalarType::Double, "float64", nb::dlpack::dtype_code::Float, 64},
};

inline const ElementType* find_element_type(ScalarType scalar_type) {
  for (const ElementType& type : kElementTypes) {
    if (type.scalar_type == scalar_type) {
      return &type;
    }
  }
  return nullptr;
}

inline std::string scalar_type_name(ScalarType scalar_type) {
  switch (scalar_type) {
    case ScalarType::Char:
      return "int8";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return "scalar type " + std::to_string(static_cast<int>(scalar_type));
  }
}

// One tensor the runtime passes to execute(). Python sees the runtime's own memory through it, only
// until the call returns; a closed argument refuses instead of reading freed memory.
class Argument {
 public:
  Argument(Tensor tensor, const ElementType& type) : tensor_(tensor), type_(type) {}

  void close() {
    open_ = false;
  }

  std::string dtype() const {
    return type_.name;
  }

  std::vector<int64_t> shape() const {
    require_open();
    return {tensor_.sizes().begin(), tensor_.sizes().end()};
  }

  nb::ndarray<nb::pytorch> view() const {
    require_open();
    const size_t rank = static_cast<size_t>(tensor_.dim());
    std::vector<size_t> shape(tensor_.sizes().begin(), tensor_.sizes().end());
    std::vector<int64_t> strides(tensor_.strides().begin(), tensor_.strides().end());
    void* data = tensor_.mutable_data_ptr();
    if (data == nullptr && tensor_.numel() != 0) {
      throw std::runtime_error("the runtime passed a tensor without memory");
    }
    const nb::dlpack::dtype dtype{static_cast<uint8_t>(type_.code), type_.bits, 1};
    return nb::ndarray<nb::pytorch>(data, rank, shape.data(), nb::handle(), strides.data(), dtype);
  }

  void resize(const std::vector<int64_t>& shape) {
    require_open();
    std::vector<SizesType> sizes(shape.begin(), shape.end());
    const et::Error error = et::resize_tensor(tensor_, et::ArrayRef<SizesType>(sizes.data(), sizes.size()));
    if (error != et::Error::Ok) {
      throw std::runtime_error(
          std::string("the runtime refused the size of an output (") + et::to_string(error) + ")");
    }
  }

 private:
  void require_open() const {
    if (!open_) {
      throw std::runtime_error("this argument belongs to a delegate call that has returned");
    }
  }

  Tensor tensor_;
  const ElementType& type_;
  bool open_ = true;
};

// The program's named data, as far as init() may ask for it.
class NamedData {
 public:
  explicit NamedData(const et::NamedDataMap* map) : map_(map) {}

  void close() {
    map_ = nullptr;
  }

  nb::bytes get(const std::string& key) const {
    if (map_ == nullptr) {
      throw nb::key_error(key.c_str());
    }
    et::Result<et::FreeableBuffer> data = map_->get_data(key);
    if (!data.ok()) {
      throw nb::key_error(key.c_str());
    }
    return nb::bytes(data->data(), data->size());
  }

 private:
  const et::NamedDataMap* map_;
};

// Ends what Python may still hold of a call when the call ends.
template <typename T>
class Closing {
 public:
  explicit Closing(T* object) : object_(object) {}

  ~Closing() {
    object_->close();
  }

  Closing(const Closing&) = delete;
  Closing& operator=(const Closing&) = delete;

 private:
  T* object_;
};

}  // namespace coreml_host
