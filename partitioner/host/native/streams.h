// The standard streams while Python runs inside a call of the runtime.
#pragma once

#include <cstdio>
#include <iostream>
#include <streambuf>

namespace coreml_host {

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

}  // namespace coreml_host
