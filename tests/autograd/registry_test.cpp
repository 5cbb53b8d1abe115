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

TEST_CASE("every input of an op has a name, but for those that are as many as one likes") {
  class Names final : public rewind::SampleSink {
   public:
    explicit Names(const rewind::OpDecl& op) : op_(op) {}
    void add_raw(std::vector<rewind::Tensor> inputs, const void* attr) override {
      for (int i = 0; i < static_cast<int>(inputs.size()); ++i) CHECK_MESSAGE(!op_.input_name(i).starts_with("input "), op_.name);
      CHECK(op_.input_name(static_cast<int>(inputs.size())).starts_with("input "));
      if (op_.saves == nullptr) return;
      const rewind::Saves saves = op_.saves(attr, ~std::uint32_t{0});
      for (int j = 0; j < rewind::Specs::max_outputs; ++j)
        if ((saves.outputs & rewind::bit(j)) != 0) CHECK_MESSAGE(!op_.output_name(j).starts_with("output "), op_.name);
    }
    void error_raw(std::vector<rewind::Tensor>, const void*, std::string) override {}

   private:
    const rewind::OpDecl& op_;
  };
  for (const rewind::OpDecl* op : rewind::all_ops()) {
    const std::string name = op->name;
    if (name == "fused_conv2d") {
      CHECK(op->input_name(5) == "w");
      CHECK(op->output_name(2) == "var of y");
    }
    if (name == "concat") {
      CHECK(op->input_name(3) == "input 3");
      continue;
    }
    Names names(*op);
    op->samples(names);
  }
}

TEST_CASE("names of ops are unique") {
  std::set<std::string> names;
  for (const rewind::OpDecl* op : rewind::all_ops()) CHECK(names.insert(op->name).second);
}
