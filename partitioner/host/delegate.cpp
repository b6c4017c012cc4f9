// Lends ExecuTorch's runtime a "CoreMLBackend" whose work is done by Python callables.
//
// The runtime calls init / execute / destroy on whichever thread loads or runs a method, with or
// without the GIL. Each entry point therefore takes the GIL itself, and none lets an exception out:
// a failure becomes an ExecuTorch error code, is logged, and its text is kept for the calling thread.

#include <cstdio>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <streambuf>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/core/event_tracer.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/platform/log.h>
#include <executorch/runtime/platform/platform.h>

namespace nb = nanobind;
namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;

namespace {

constexpr const char* kBackendName = "CoreMLBackend";

thread_local std::string last_error;

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

const ElementType* find_element_type(ScalarType scalar_type) {
  for (const ElementType& type : kElementTypes) {
    if (type.scalar_type == scalar_type) {
      return &type;
    }
  }
  return nullptr;
}

std::string scalar_type_name(ScalarType scalar_type) {
  switch (scalar_type) {
    case ScalarType::Char:
      return "int8";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return "scalar type " + std::to_string(static_cast<int>(scalar_type));
  }
}

// True only while an object may still be touched: handles outlive the interpreter when a program is
// kept in a global of another extension.
bool interpreter_usable() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsInitialized() && !Py_IsFinalizing();
#else
  return Py_IsInitialized() && !_Py_IsFinalizing();
#endif
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

struct Handle {
  nb::object session;
};

// Writes to a C stream and, unlike the buffers it stands in for, is never destroyed.
class LastingBuffer final : public std::streambuf {
 public:
  explicit LastingBuffer(std::FILE* file) : file_(file) {}

 protected:
  int_type overflow(int_type c) override {
    return traits_type::eq_int_type(c, traits_type::eof()) ? 0 : std::fputc(c, file_);
  }

  std::streamsize xsputn(const char* text, std::streamsize count) override {
    return static_cast<std::streamsize>(std::fwrite(text, 1, static_cast<size_t>(count), file_));
  }

 private:
  std::FILE* file_;
};

// ExecuTorch's Python bindings point std::cout and std::cerr at a buffer on their stack during a call
// and put back afterwards what they found. When Python switches threads inside a delegate, or while
// such a buffer hands a log line to Python, calls of several threads overlap and one puts back the
// dead buffer of another. While Python runs, the streams therefore point at buffers that last.
class LastingStreams {
 public:
  LastingStreams() {
    out_ = std::cout.rdbuf(lasting_out());
    err_ = std::cerr.rdbuf(lasting_err());
  }

  ~LastingStreams() {
    if (put_back_) {
      std::cout.rdbuf(out_);
      std::cerr.rdbuf(err_);
    }
  }

  // For what is logged from here on, here and by the runtime; the bindings put back what they found.
  void keep() {
    std::cout.rdbuf(lasting_out());
    std::cerr.rdbuf(lasting_err());
    put_back_ = false;
  }

  LastingStreams(const LastingStreams&) = delete;
  LastingStreams& operator=(const LastingStreams&) = delete;

 private:
  static std::streambuf* lasting_out() {
    static LastingBuffer* out = new LastingBuffer(stdout);
    return out;
  }

  static std::streambuf* lasting_err() {
    static LastingBuffer* err = new LastingBuffer(stderr);
    return err;
  }

  std::streambuf* out_;
  std::streambuf* err_;
  bool put_back_ = true;
};

std::string describe(nb::python_error& error) {
  try {
    const std::string type = nb::cast<std::string>(error.type().attr("__name__"));
    return type + ": " + nb::cast<std::string>(nb::str(error.value()));
  } catch (...) {
    PyErr_Clear();
    return "a Python exception that cannot be printed";
  }
}

// The runtime's log line is cut at a fixed length and then decoded as UTF-8 by its Python bindings,
// which end the process when that fails. Only ASCII survives being cut anywhere.
std::string loggable(std::string message) {
  for (char& c : message) {
    const auto byte = static_cast<unsigned char>(c);
    c = byte < 0x80 && (byte >= 0x20 || c == '\n') ? c : '?';
  }
  return message;
}

et::Error fail(const char* stage, const std::string& message, et::Error code) noexcept {
  try {
    last_error = message;
    ET_LOG(Error, "%s: %s failed: %s", kBackendName, stage, loggable(message).c_str());
  } catch (...) {
    // Out of memory; the error code still tells the caller.
  }
  return code;
}

// Runs `body` under the GIL and turns whatever it throws into an error code.
template <typename Body>
et::Error guarded(const char* stage, et::Error code, Body&& body) noexcept {
  if (!interpreter_usable()) {
    return et::Error::InvalidState;
  }
  nb::gil_scoped_acquire gil;
  LastingStreams streams;
  std::string message;
  try {
    body();
    return et::Error::Ok;
  } catch (nb::python_error& error) {
    message = describe(error);
  } catch (const std::invalid_argument& error) {
    message = error.what();
    code = et::Error::InvalidArgument;
  } catch (const std::exception& error) {
    message = error.what();
  } catch (...) {
    message = "unknown C++ exception";
  }
  streams.keep();
  return fail(stage, message, code);
}

// Lists every argument the device's delegate would refuse, not only the first.
std::string refused_arguments(et::Span<et::EValue*> args) {
  std::string refused;
  for (size_t i = 0; i < args.size(); ++i) {
    std::string reason;
    if (!args[i]->isTensor()) {
      reason = "not a tensor";
    } else if (find_element_type(args[i]->toTensor().scalar_type()) == nullptr) {
      reason = scalar_type_name(args[i]->toTensor().scalar_type());
    } else {
      continue;
    }
    refused += (refused.empty() ? "argument " : ", argument ") + std::to_string(i) + " is " + reason;
  }
  return refused;
}

// The tensors of one delegate call as Python objects, closed when the call ends, however it ends.
class ArgumentList {
 public:
  explicit ArgumentList(et::Span<et::EValue*> args) {
    const std::string refused = refused_arguments(args);
    if (!refused.empty()) {
      throw std::invalid_argument(
          "the Core ML delegate takes tensors of bool, uint8, int16, int32, int64, float16, float32 and float64, but " +
          refused);
    }
    for (et::EValue* value : args) {
      const Tensor tensor = value->toTensor();
      list_.append(nb::cast(Argument(tensor, *find_element_type(tensor.scalar_type()))));
    }
  }

  ~ArgumentList() {
    for (nb::handle argument : list_) {
      nb::inst_ptr<Argument>(argument)->close();
    }
  }

  ArgumentList(const ArgumentList&) = delete;
  ArgumentList& operator=(const ArgumentList&) = delete;

  nb::tuple tuple() const {
    return nb::tuple(list_);
  }

 private:
  nb::list list_;
};

class HostBackend final : public et::BackendInterface {
 public:
  // Called with the GIL held. The previous callable is released, handles opened by it live on.
  void set_opener(nb::object opener) {
    Py_INCREF(opener.ptr());
    PyObject* previous = opener_;
    opener_ = opener.ptr();
    Py_XDECREF(previous);
  }

  bool is_available() const override {
    return opener_ != nullptr;
  }

  et::Result<et::DelegateHandle*> init(
      et::BackendInitContext& context,
      et::FreeableBuffer* processed,
      et::ArrayRef<et::CompileSpec> compile_specs) const override {
    std::unique_ptr<Handle> handle;
    const et::Error error = guarded("init", et::Error::DelegateInvalidCompatibility, [&] {
      nb::dict specs;
      for (const et::CompileSpec& spec : compile_specs) {
        specs[spec.key] = nb::bytes(spec.value.buffer, spec.value.nbytes);
      }
      // A copy, because the runtime may free its buffer while Python still holds weights inside it.
      nb::bytes blob(processed->data(), processed->size());
      const char* method = context.get_method_name();
      nb::object named_data = nb::cast(NamedData(context.get_named_data_map()));
      const Closing<NamedData> closing(nb::inst_ptr<NamedData>(named_data));
      nb::object session =
          nb::borrow(opener_)(blob, specs, method == nullptr ? "forward" : method, named_data.attr("get"));
      handle = std::make_unique<Handle>(Handle{std::move(session)});
    });
    if (error != et::Error::Ok) {
      return error;
    }
    processed->Free();
    return handle.release();
  }

  et::Error execute(
      et::BackendExecutionContext& context,
      et::DelegateHandle* handle,
      et::Span<et::EValue*> args) const override {
    return guarded("execute", et::Error::DelegateInvalidHandle, [&] {
      const ArgumentList arguments(args);
      const nb::object& session = static_cast<Handle*>(handle)->session;
      if (context.event_tracer() == nullptr) {
        session(arguments.tuple());
        return;
      }
      nb::object tracer = nb::cast(Tracer(context.event_tracer()));
      const Closing<Tracer> closing(nb::inst_ptr<Tracer>(tracer));
      session(arguments.tuple(), tracer);
    });
  }

  void destroy(et::DelegateHandle* handle) const override {
    // After finalization the session's memory belongs to nobody; leaking it is the only safe choice.
    if (handle == nullptr || !interpreter_usable()) {
      return;
    }
    nb::gil_scoped_acquire gil;
    delete static_cast<Handle*>(handle);
  }

 private:
  // A raw reference that is never dropped at exit: static destructors run after the interpreter is gone.
  PyObject* opener_ = nullptr;
};

HostBackend& host_backend() {
  static HostBackend backend;
  return backend;
}

bool register_opener(nb::object opener) {
  HostBackend& backend = host_backend();
  et::BackendInterface* registered = et::get_backend_class(kBackendName);
  if (registered != nullptr && registered != &backend) {
    return false;
  }
  backend.set_opener(std::move(opener));
  return registered != nullptr || et::register_backend({kBackendName, &backend}) == et::Error::Ok;
}

std::string take_last_error() {
  return std::exchange(last_error, std::string());
}

}  // namespace

NB_MODULE(_delegate, module) {
  // The runtime may hold handles until the process ends; that is not a leak worth reporting.
  nb::set_leak_warnings(false);

  nb::class_<Argument>(module, "Argument", "A tensor of the running delegate call, in the runtime's memory.")
      .def_prop_ro("dtype", &Argument::dtype)
      .def_prop_ro("shape", [](const Argument& self) { return nb::tuple(nb::cast(self.shape())); })
      .def("view", &Argument::view, nb::rv_policy::reference, "The memory as a torch tensor, not copied.")
      .def("resize", &Argument::resize, nb::arg("shape"), "Set the current size of a dynamically shaped output.");
  nb::class_<NamedData>(module, "NamedData", "The program's named data, readable while a delegate is opened.")
      .def("get", &NamedData::get, nb::arg("key"));
  nb::class_<Tracer>(module, "Tracer", "Logs events of the running delegate call into its ETDump.")
      .def_prop_ro("wants_outputs", &Tracer::wants_outputs, "Whether values are logged beside times.")
      .def("now", &Tracer::now, "The present time in ticks of the runtime.")
      .def("log_time", &Tracer::log_time, nb::arg("name"), nb::arg("start"), nb::arg("end"))
      .def("log_output", &Tracer::log_output, nb::arg("name"), nb::arg("values"));
  module.def(
      "register",
      &register_opener,
      nb::arg("opener"),
      "Register the backend, or replace its opener; False if another backend has the name.");
  module.def("take_last_error", &take_last_error, "Message of this thread's last failed delegate call, then forget it.");
}
