# tests/<group>/*.cpp is the program rewind_tests_<group>, and one test of ctest.
find_package(doctest QUIET)
if(doctest_FOUND)
  add_library(rewind_tests_main OBJECT ${PROJECT_SOURCE_DIR}/tests/main.cpp)
  target_link_libraries(rewind_tests_main PUBLIC doctest::doctest rewind_core)
  rewind_own_flags(rewind_tests_main)

  foreach(group core autograd nn optim data profile report whole steady)
    file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${group}/*.cpp)
    list(FILTER sources EXCLUDE REGEX "/(make_page|print_bits).cpp$") # programs of their own, below
    if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=thread") # it has an operator new of its own
      list(FILTER sources EXCLUDE REGEX "/optim/allocation_test.cpp$")
    endif()
    if(NOT sources OR (group MATCHES "^(report|profile)$" AND NOT TARGET rewind_report)) # they read JSON
      continue()
    endif()
    if(group STREQUAL steady AND CMAKE_CXX_FLAGS MATCHES "-fsanitize") # it replaces malloc, and so do they
      continue()
    endif()
    # A layer's tests link what the layer is for: a test of core that needs autograd does not link.
    set(layer rewind::rewind)
    if(TARGET rewind_${group})
      set(layer rewind_${group})
    endif()
    set(target rewind_tests_${group})
    rewind_program(${target} SOURCES ${sources} LINK rewind_tests_main ${layer})
    if(group STREQUAL data)
      target_link_libraries(${target} PRIVATE ZLIB::ZLIB) # its tests write files of their own
    endif()
    if(group STREQUAL profile)
      target_link_libraries(${target} PRIVATE nlohmann_json::nlohmann_json)
    endif()
    target_compile_definitions(${target} PRIVATE REWIND_TESTS_DIR="${PROJECT_SOURCE_DIR}/tests")
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
    add_test(NAME ${group} COMMAND ${target})
    set_tests_properties(${group} PROPERTIES TIMEOUT 1800)
  endforeach()
else()
  message(STATUS "rewind: no unit tests, package doctest is missing (scripts/bootstrap.sh test)")
endif()

# Checks of the tree itself. Debian's own python3, since a `python3` found first may be anything.
find_program(REWIND_PYTHON NAMES python3 PATHS /usr/bin NO_DEFAULT_PATH)
if(REWIND_PYTHON)
  foreach(check layers tree)
    add_test(NAME check_${check} COMMAND ${REWIND_PYTHON} ${PROJECT_SOURCE_DIR}/scripts/check_${check}.py)
    add_test(NAME check_${check}_self_test COMMAND ${REWIND_PYTHON} ${PROJECT_SOURCE_DIR}/scripts/check_${check}.py --self-test)
  endforeach()
endif()
# Other versions of clang-format lay some things out differently; 14 is Debian 12's.
find_program(REWIND_CLANG_FORMAT NAMES clang-format-14)
if(REWIND_CLANG_FORMAT)
  add_test(NAME check_format COMMAND ${PROJECT_SOURCE_DIR}/scripts/format.sh --check)
endif()

# The same bits under every OpenBLAS. A missing variant fails, and says what to install.
if(REWIND_PYTHON)
  rewind_program(rewind_print_bits SOURCES ${PROJECT_SOURCE_DIR}/tests/whole/print_bits.cpp LINK rewind::rewind)
  set_target_properties(rewind_print_bits PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  add_test(NAME blas_variants
           COMMAND ${REWIND_PYTHON} ${PROJECT_SOURCE_DIR}/tests/whole/blas_variants_test.py $<TARGET_FILE:rewind_print_bits>)
  set_tests_properties(blas_variants PROPERTIES TIMEOUT 600)
endif()

# What is counted is what is used. Not under a sanitizer, which has an allocator of its own.
if(REWIND_PYTHON AND TARGET compare_checkpointing AND NOT CMAKE_CXX_FLAGS MATCHES "-fsanitize")
  add_test(NAME resident
           COMMAND ${REWIND_PYTHON} ${PROJECT_SOURCE_DIR}/tests/whole/resident_test.py $<TARGET_FILE:compare_checkpointing>)
  set_tests_properties(resident PROPERTIES TIMEOUT 300)
endif()

# The numbers that a program reads from examples/summary.
if(REWIND_PYTHON AND TARGET summary)
  add_test(NAME summary COMMAND ${REWIND_PYTHON} ${PROJECT_SOURCE_DIR}/tests/whole/summary_test.py $<TARGET_FILE:summary>)
endif()

# examples/profile as a user runs it.
if(REWIND_PYTHON AND TARGET profile)
  add_test(NAME profile_program COMMAND ${REWIND_PYTHON} ${PROJECT_SOURCE_DIR}/tests/profile/program_test.py $<TARGET_FILE:profile>)
  set_tests_properties(profile_program PROPERTIES TIMEOUT 300)
endif()

# The programs of the lecture, and their pages.
if(REWIND_PYTHON AND TARGET rewind_examples_support)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/examples/lecture/*.cpp)
  foreach(source IN LISTS sources)
    cmake_path(GET source STEM name)
    add_test(NAME lecture_${name}
             COMMAND ${REWIND_PYTHON} ${PROJECT_SOURCE_DIR}/tests/whole/lecture_test.py $<TARGET_FILE:lecture_${name}>)
  endforeach()
endif()

# The page of report/ in a browser. Without the browser the test fails, and says what to install.
option(REWIND_BROWSER_TEST "Test the report in headless Chromium" ON)
if(REWIND_BROWSER_TEST AND REWIND_PYTHON AND TARGET rewind_report)
  rewind_program(rewind_make_page SOURCES ${PROJECT_SOURCE_DIR}/tests/report/make_page.cpp LINK rewind::report)
  set_target_properties(rewind_make_page PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  add_test(NAME report_page
           COMMAND_EXPAND_LISTS
           COMMAND ${REWIND_PYTHON} ${PROJECT_SOURCE_DIR}/tests/report/page_test.py $<TARGET_FILE:rewind_make_page>
                   $<$<TARGET_EXISTS:compare_checkpointing>:$<TARGET_FILE:compare_checkpointing>>)
  set_tests_properties(report_page PROPERTIES TIMEOUT 300)
endif()

# Its traces in speedscope, where npm can fetch that; elsewhere the test counts as skipped. make check-trace insists.
if(REWIND_BROWSER_TEST AND REWIND_PYTHON AND TARGET profile)
  add_test(NAME speedscope COMMAND ${REWIND_PYTHON} ${PROJECT_SOURCE_DIR}/tests/profile/speedscope_test.py $<TARGET_FILE:profile>
                                   ${PROJECT_BINARY_DIR}/speedscope)
  set_tests_properties(speedscope PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 300)
endif()

# A project of somebody else, built against this one in every way that we promise.
option(REWIND_CONSUMER_TEST "Test the installed tree with a project of its own" ON)
if(REWIND_CONSUMER_TEST AND REWIND_PYTHON AND EXISTS ${PROJECT_SOURCE_DIR}/rewind.h)
  foreach(way find_package add_subdirectory pkg_config compile_cost)
    add_test(NAME consumer_${way} COMMAND ${PROJECT_SOURCE_DIR}/tests/consumer/run.sh ${way} ${PROJECT_BINARY_DIR})
    # The installed tree is shared, and the cost is measured: one at a time.
    set_tests_properties(consumer_${way} PROPERTIES RUN_SERIAL ON TIMEOUT 900)
  endforeach()
endif()
