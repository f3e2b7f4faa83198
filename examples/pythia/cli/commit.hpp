// The commit this program was built from, read when it is built.
#pragma once

namespace pythia {

/// The commit's hash, with "-dirty" behind it where tracked files differed; "unknown" outside git.
const char* commit();

}  // namespace pythia
