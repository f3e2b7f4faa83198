# Writes OUTPUT, the definition of FUNCTION as HEADER declares it: what returns the commit of the git
# checkout SOURCE_DIR. Run at every build; rewrites the file only when the answer changed.
cmake_minimum_required(VERSION 3.24)
execute_process(COMMAND git describe --always --abbrev=12 --dirty --exclude=*
  WORKING_DIRECTORY "${SOURCE_DIR}"
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT commit)
  set(commit "unknown")
endif()
file(CONFIGURE OUTPUT "${OUTPUT}" @ONLY CONTENT
  "#include \"@HEADER@\"

const char* @FUNCTION@() { return \"@commit@\"; }
")
