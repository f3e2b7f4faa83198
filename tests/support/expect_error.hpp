// Checks that bad input is refused by one line that names what the user needs to mend it.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

#include "examples/pythia/io/error.hpp"

namespace test_support {

/// The message of the pythia::Error that `action` throws; a test failure and "" when it throws
/// none. Any other exception escapes and fails the test.
template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const pythia::Error& e) {
    return e.what();
  }
  ADD_FAILURE() << "no pythia::Error was thrown";
  return "";
}

/// `action` must throw a pythia::Error of one line that contains every part.
template <class Action>
void expect_error(Action&& action, std::initializer_list<std::string> parts) {
  const std::string message = error_of(action);
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos)
        << "message: " << message << "\nlacks:   " << part;
  }
}

}  // namespace test_support
