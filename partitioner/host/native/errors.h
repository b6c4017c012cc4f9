// From whatever a call throws to an error code of the runtime, with the text kept for the calling thread.
#pragma once

#include <stdexcept>
#include <string>

#include <nanobind/nanobind.h>

#include <executorch/runtime/platform/log.h>
#include <executorch/runtime/platform/platform.h>

#include "streams.h"

namespace coreml_host {

namespace nb = nanobind;
namespace et = executorch::runtime;

constexpr const char* kBackendName = "CoreMLBackend";

inline thread_local std::string last_error;

// True only while an object may still be touched: handles outlive the interpreter when a program is
// kept in a global of another extension.
inline bool interpreter_usable() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsInitialized() && !Py_IsFinalizing();
#else
  return Py_IsInitialized() && !_Py_IsFinalizing();
#endif
}

inline std::string describe(nb::python_error& error) {
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
inline std::string loggable(std::string message) {
  for (char& c : message) {
    const auto byte = static_cast<unsigned char>(c);
    c = byte < 0x80 && (byte >= 0x20 || c == '\n') ? c : '?';
  }
  return message;
}

inline et::Error fail(const char* stage, const std::string& message, et::Error code) noexcept {
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
inline et::Error guarded(const char* stage, et::Error code, Body&& body) noexcept {
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

}  // namespace coreml_host
