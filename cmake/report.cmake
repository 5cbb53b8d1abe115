# rewind_report: writes the HTML page of example programs (report/report.h). Not a part of the library, not installed.
find_package(nlohmann_json QUIET)
if(nlohmann_json_FOUND)
  set(report_dir ${PROJECT_SOURCE_DIR}/report)
  # One script in this order; what a file uses when it is loaded comes before it.
  set(scripts
      kit.js
      sections/strategies.js
      sections/frontier.js
      sections/profile.js
      sections/roofline.js
      sections/modules.js
      sections/timeline.js
      sections/holders.js
      sections/schedule.js
      sections/speed.js
      sections/energy.js
      page.js)

  set(REPORT_JS "")
  foreach(script IN LISTS scripts)
    file(READ ${report_dir}/${script} text)
    string(APPEND REPORT_JS "${text}")
  endforeach()
  file(READ ${report_dir}/page.html REPORT_HTML)
  file(READ ${report_dir}/page.css REPORT_CSS)
  configure_file(${report_dir}/embedded.cpp.in ${PROJECT_BINARY_DIR}/report/embedded.cpp @ONLY)
  list(TRANSFORM scripts PREPEND ${report_dir}/)
  set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${scripts} ${report_dir}/page.html
                                                               ${report_dir}/page.css)

  add_library(rewind_report STATIC ${report_dir}/report.cpp ${PROJECT_BINARY_DIR}/report/embedded.cpp)
  add_library(rewind::report ALIAS rewind_report)
  rewind_own_flags(rewind_report)
  target_link_libraries(rewind_report PUBLIC rewind_core nlohmann_json::nlohmann_json)
endif()
