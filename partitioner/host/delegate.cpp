// Lends ExecuTorch's runtime a "CoreMLBackend" whose work is done by Python callables.
//
// The runtime calls init / execute / destroy on whichever thread loads or runs a method, with or
// without the GIL. Each entry point therefore takes the GIL itself, and none lets an exception out:
// a failure becomes an ExecuTorch error code, is logged, and its text is kept for the calling thread.

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/core/evalue.h>

#include "native/errors.h"
#include "native/tracer.h"
#include "native/values.h"

using namespace coreml_host;

namespace {

struct Handle {
  nb::object session;
};

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
