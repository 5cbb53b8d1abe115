// Walks every op's own samples; see check_op() for what is checked.

#include <rewind/autograd/gradcheck.h>

#include <doctest/doctest.h>

#include <set>
#include <string>

TEST_CASE("every op keeps its contract on its own samples") {
  for (const rewind::OpDecl* op : rewind::all_ops()) {
    SUBCASE(op->name) {
      const rewind::OpReport report = rewind::check_op(*op);
      for (const std::string& problem : report.problems) FAIL_CHECK(problem);
      MESSAGE(std::string(op->name), ": ", report.samples, " samples, ", report.errors, " errors");
    }
  }
}

TEST_CASE("names of ops are unique") {
  std::set<std::string> names;
  for (const rewind::OpDecl* op : rewind::all_ops()) CHECK(names.insert(op->name).second);
}
