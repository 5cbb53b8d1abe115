# rewind_layer: one library target a layer. rewind_program: one executable of ours.

# Headers are spelled <rewind/core/tensor.h> in the tree as they are when installed; a link makes that true here.
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/include)
if(NOT EXISTS ${PROJECT_BINARY_DIR}/include/rewind/CMakeLists.txt)
  file(CREATE_LINK ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR}/include/rewind SYMBOLIC)
endif()

include(GNUInstallDirs)

# Flags of our own targets; none of them reaches those who link with us. Never -ffast-math: the NaN guard and equal bits
# depend on IEEE arithmetic. Designated initialisers are our named arguments, so fields left out are not a mistake.
set(rewind_march $<IF:$<BOOL:${REWIND_PORTABLE}>,x86-64-v3,native>)
function(rewind_own_flags target)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_compile_options(
    ${target}
    PRIVATE -march=${rewind_march}
            -fno-math-errno
            -fno-trapping-math
            -Wall
            -Wextra
            -Wpedantic
            -Wshadow
            -Wconversion
            -Wno-sign-conversion
            -Wno-missing-field-initializers
            -Wno-psabi
            $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict> # GCC 12 sees overlaps in std::string that are not there (bug 105651)
            $<$<BOOL:${REWIND_WERROR}>:-Werror>)
endfunction()

# The portable build holds the kernels twice, in shared libraries of one name: for x86-64-v3, and for v4 (512-bit vectors) in the
# subfolder in which glibc's loader looks first on a machine that has them (ld.so(8), glibc-hwcaps).
function(rewind_core_for_v4)
  add_library(rewind_core_v4 SHARED ${ARGN})
  set(rewind_march x86-64-v4)
  rewind_own_flags(rewind_core_v4)
  target_compile_options(rewind_core_v4 PRIVATE -mprefer-vector-width=512)
  set_target_properties(
    rewind_core_v4 PROPERTIES OUTPUT_NAME rewind_core VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
                              LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/glibc-hwcaps/x86-64-v4)
  target_include_directories(rewind_core_v4 PRIVATE ${PROJECT_BINARY_DIR}/include)
  target_link_libraries(rewind_core_v4 PRIVATE BLAS::BLAS OpenMP::OpenMP_CXX Threads::Threads)
endfunction()

# rewind_layer(<name> SOURCES <folder>... [PUBLIC <target>...] [PRIVATE <target>...])
function(rewind_layer name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;PUBLIC;PRIVATE")
  list(TRANSFORM arg_SOURCES REPLACE "(.+)" "${PROJECT_SOURCE_DIR}/\\1/*.cpp" OUTPUT_VARIABLE patterns)
  file(GLOB sources CONFIGURE_DEPENDS ${patterns})
  if(NOT sources)
    # A layer that has only headers so far is still a library, so that nothing else need know.
    set(sources ${PROJECT_BINARY_DIR}/empty.cpp)
    file(CONFIGURE OUTPUT ${sources} CONTENT "")
  endif()

  set(target rewind_${name})
  if(REWIND_PORTABLE AND name STREQUAL core)
    rewind_core_for_v4(${sources})
    add_library(${target} SHARED ${sources})
    add_dependencies(${target} rewind_core_v4)
  else()
    add_library(${target} ${sources})
  endif()
  add_library(rewind::${name} ALIAS ${target})
  rewind_own_flags(${target})
  # Installed shared libraries find each other where they stand.
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name} VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
                                             INSTALL_RPATH $ORIGIN)
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>
                                              $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(${target} PUBLIC ${arg_PUBLIC} PRIVATE ${arg_PRIVATE})
endfunction()

# rewind_program(<target> SOURCES <file>... [LINK <target>...])
function(rewind_program target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
  add_executable(${target} ${arg_SOURCES})
  rewind_own_flags(${target})
  target_link_libraries(${target} PRIVATE ${arg_LINK})
endfunction()
