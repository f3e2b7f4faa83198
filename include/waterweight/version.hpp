// The library's version: CMakeLists.txt reads these three numbers, nothing else repeats them.
#pragma once

#define WATERWEIGHT_VERSION_MAJOR 0
#define WATERWEIGHT_VERSION_MINOR 1
#define WATERWEIGHT_VERSION_PATCH 0
