# What find_package(rewind CONFIG) and pkg-config find after an install.
include(CMakePackageConfigHelpers)

install(TARGETS rewind rewind_core rewind_autograd rewind_nn rewind_optim rewind_data rewind_profile EXPORT rewindTargets)
if(REWIND_PORTABLE)
  install(TARGETS rewind_core_v4 LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/glibc-hwcaps/x86-64-v4 NAMELINK_SKIP)
endif()
install(DIRECTORY core autograd nn optim data profile DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/rewind
        FILES_MATCHING PATTERN "*.h" PATTERN "*.def")
install(FILES rewind.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/rewind OPTIONAL)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} OPTIONAL)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/rewind)
install(EXPORT rewindTargets NAMESPACE rewind:: DESTINATION ${config_dir})
configure_package_config_file(cmake/rewindConfig.cmake.in ${PROJECT_BINARY_DIR}/rewindConfig.cmake
                              INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/rewindConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/rewindConfig.cmake ${PROJECT_BINARY_DIR}/rewindConfigVersion.cmake
        DESTINATION ${config_dir})

# Static archives do not say what they need, so rewind.pc says it in Libs and no one has to ask for --static.
set(pc_system_libs "${OpenMP_CXX_FLAGS} -lopenblas -lz -pthread")
if(BUILD_SHARED_LIBS)
  set(pc_libs "")
  set(pc_libs_private "${pc_system_libs}")
else()
  set(pc_libs "${pc_system_libs}")
  set(pc_libs_private "")
endif()
# The prefix is where the file stands, so that `cmake --install --prefix` and moved trees work.
file(RELATIVE_PATH pc_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" pc_prefix "${pc_prefix}")
configure_file(cmake/rewind.pc.in ${PROJECT_BINARY_DIR}/rewind.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/rewind.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
