// The one exception the decoder throws for anything a user can mend: main() prints its single line
// on stderr and exits with code 2.
#pragma once

#include <stdexcept>
#include <string>

namespace pythia {

/// `what()` is one line that names the file, the field or tensor, what was expected, what was
/// found.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace pythia
