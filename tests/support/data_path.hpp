// Where the tests find their data: the build passes both directories as compile definitions.
#pragma once

#include <filesystem>

namespace test_support {

/// A file or folder below tests/data.
inline std::filesystem::path data_path(const std::filesystem::path& relative) {
  return std::filesystem::path(WATERWEIGHT_TEST_DATA_DIR) / relative;
}

/// A file or folder below examples/.
inline std::filesystem::path examples_path(const std::filesystem::path& relative) {
  return std::filesystem::path(WATERWEIGHT_EXAMPLES_DIR) / relative;
}

}  // namespace test_support
