// Writes docs/ops.md: every op as it declares itself.

#include <rewind/autograd/op.h>
#include <rewind/optim/ops.h>

#include <fstream>
#include <iostream>

namespace rw = rewind;

namespace {

/// Notes the shapes of that sample of an op which has the most outputs, the largest of those, and what its vjp would keep then.
class Collect final : public rw::SampleSink {
 public:
  explicit Collect(const rw::OpDecl& op) : op_(op) {}

  std::string example, takes;
  rw::Saves saves;

  void add_raw(std::vector<rw::Tensor> inputs, const void* attr) override {
    std::int64_t size = 0;
    for (const auto& t : inputs) size += t.defined() ? t.numel() : 0;
    const rw::Specs specs = op_.infer(inputs, attr);
    const std::pair rank{specs.size(), size};
    if (rank <= best_) return;
    best_ = rank;
    example.clear();
    for (const auto& t : inputs) example += rw::str(example.empty() ? "" : ", ", t.defined() ? rw::str(t.shape()) : "none");
    example += " ->";
    takes.clear();
    for (int j = 0; j < specs.size(); ++j) {
      example += rw::str(" ", specs[j].shape);
      for (int i = 0; i < 32; ++i)
        if ((specs[j].takes & rw::bit(i)) != 0)
          takes += rw::str(takes.empty() ? "" : ", ", op_.output_name(j), " may be in that of ", op_.input_name(i));
    }
    if (op_.saves != nullptr) saves = op_.saves(attr, ~std::uint32_t{0});
  }
  void error_raw(std::vector<rw::Tensor>, const void*, std::string) override {}

 private:
  const rw::OpDecl& op_;
  std::pair<int, std::int64_t> best_{-1, 0};
};

std::string list(const rw::OpDecl& op, std::string (rw::OpDecl::*name)(int) const, std::uint32_t mask) {
  std::string text;
  for (int i = 0; i < 32; ++i)
    if ((mask & rw::bit(i)) != 0 && mask != ~std::uint32_t{0}) text += (text.empty() ? "" : ", ") + (op.*name)(i);
  return text;
}

void write(std::ostream& out, std::span<const rw::OpDecl* const> ops) {
  out << "| op | kind | inputs | outputs | for example | saves | buffers | gradient |\n|---|---|---|---|---|---|---|---|\n";
  for (const rw::OpDecl* op : ops) {
    Collect sample(*op);
    op->samples(sample);
    std::string saves = list(*op, &rw::OpDecl::input_name, sample.saves.inputs);
    const std::string outputs = list(*op, &rw::OpDecl::output_name, sample.saves.outputs);
    if (!outputs.empty()) saves += (saves.empty() ? "" : ", ") + outputs;
    out << "| `" << op->name << "` | " << rw::name_of(op->kind) << " | " << (op->input_names == nullptr ? "" : op->input_names)
        << " | " << (op->output_names == nullptr ? "" : op->output_names) << " | " << sample.example << " | " << saves << " | "
        << (op->mutates != 0   ? "changes " + list(*op, &rw::OpDecl::input_name, op->mutates)
            : op->donates != 0 ? op->output_name(0) + " may be in that of " + list(*op, &rw::OpDecl::input_name, op->donates)
                               : sample.takes)
        << " | " << (op->no_gradient == nullptr ? "yes" : op->no_gradient) << " |\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || argv[1][0] == '-') {
    std::cerr << "usage: rewind_docs FILE\n";
    return 2;
  }
  std::ofstream out(argv[1]);
  out << "# The ops\n\nMade by `make docs` from the declarations of the ops; see autograd/op.h for what they mean. "
         "What an op saves depends on which gradients are wanted and on its attributes; the table shows the sample with the most "
         "outputs, the largest of those, with all gradients wanted. Where outputs are the gradients that somebody wants, they have "
         "no "
         "names.\n\n";
  write(out, rw::all_ops());
  out << "\n## Updates of the optimizers\n\n";
  write(out, rw::optim::all_ops());
  if (!out) {
    std::cerr << "error: cannot write " << argv[1] << "\n";
    return 1;
  }
}
