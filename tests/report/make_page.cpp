// make_page <data.json> <page.html>: the report of data that some program has written.

#include <rewind/report/report.h>

#include <fstream>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 3) throw rewind::Error("usage: make_page <data.json> <page.html>");
  std::ifstream file(argv[1]);
  rewind::report::write(argv[2], nlohmann::json::parse(file));
  return 0;
} catch (const std::exception& e) {
  std::cerr << "error: " << e.what() << "\n";
  return 1;
}
